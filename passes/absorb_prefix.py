"""`absorb-prefix`: freeze the keys and values of attention-sink tokens into the cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import Evaluation
from mqc.analysis.histogram import Histogram
from mqc.calibration import Calibration, Windows
from mqc.compiler.divergence import divergences
from mqc.compiler.observation import Operands, observe
from mqc.compiler.precision_rules import DEFAULT_PLAN, Rule, value_bits
from mqc.costs import ModelSize, Work, walk
from mqc.dialects.llm import AddOp
from mqc.dialects.llm_core import LlmOp
from mqc.dialects.quant import affine_range
from mqc.errors import CalibrationError, PassError, RecipeError
from mqc.ir.module import context_length, mqc_ops, prefix_tokens, set_prefix
from mqc.ir.op import MqcOp
from mqc.pass_base import Pass

#: Nats a token. A prefix costs as much by itself (docs/measurements.md), so less is not tried to be bettered.
_ENOUGH = 0.05
#: Another prefix token must lower the divergence by this share; the sample hardly tells less apart.
_WORTHWHILE = 0.1
#: Windows of calibration text to simulate, and their tokens. All candidates see the beginnings, where a
#: prefix changes most; the best few see the whole.
_WINDOWS, _TOKENS = 4, 128
_BEGINNING, _FEW = 32, 3
#: Ranges are tried in so many steps: many prefixes are simulated, and the sample is small.
_STEPS = 10


@dataclass(frozen=True)
class AbsorbPrefix(Pass):
    """Run a fixed prefix once and make its keys and values the first rows of every cache.

    The first tokens of a sequence draw attention and grow activations hundreds of times larger
    than any other token's; static ranges must not have to cover them (PrefixQuant, arXiv
    2410.05265). The prefix takes positions 0…p−1 and is subject to windows like any token.

    Tokens that the tokenizer puts in front of every text come first in it: the model was trained to see them
    there, and behind no other token. Any other token makes another model: what is said behind it differs
    from what the model says. So others are added only where the mean KL divergence from the model with 8-bit
    activations, in static ranges as the default plan has them, falls by it. It is simulated on calibration
    text. Where it is less than 0.05 nats a token without them, none are tried.

    Options:
        tokens: the prefix; if absent, it is searched for.
        most: how many tokens to add at most to those of the tokenizer; 0: no prefix at all.
    """

    name = "absorb-prefix"
    tokens: tuple[int, ...] | None = None
    most: int = 2

    def __post_init__(self) -> None:
        self.expect(self.most >= 0, f"most must be 0 or more, got {self.most}")
        self.expect(min(self.tokens or (0,)) >= 0, f"tokens must be token ids, got {self.tokens}")

    def work(self, size: ModelSize, length: int) -> Work:
        if self.tokens is not None or self.most < 1:
            return Work()
        twice = walk(size, 2 * _WINDOWS * min(_TOKENS, length), logits=True)
        return twice + Work(
            elements=_WINDOWS * min(_TOKENS, length) * (6 * size.outputs + 4 * size.vocabulary)
        )

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        if prefix_tokens(module):
            raise PassError("absorb-prefix: the module has a prefix already")
        tokens = self.tokens if self.tokens is not None else self._search(ctx, module)
        if not tokens:
            return False
        start = () if ctx.calibration is None else ctx.calibration.start
        if tuple(tokens[: len(start)]) != start:
            raise RecipeError(
                f"absorb-prefix: the tokenizer puts {list(start)} in front of every text, so the prefix must "
                f"begin with it: {[*start, *tokens]}"
            )
        if len(tokens) >= context_length(module):
            raise PassError("absorb-prefix: the prefix fills the whole context")
        evaluation = Evaluation(module, ctx.weights)
        with torch.no_grad():
            evaluation.run(torch.tensor(tokens), torch.arange(len(tokens)))
        for op in mqc_ops(module):
            assert isinstance(op, LlmOp)
            for name, state in zip(op.PREFIX, op.states(), strict=True):
                rows = evaluation.state[state.name].numpy()
                op.properties[name] = ctx.weights.add(f"{op.value_name}.{name}", rows)
        set_prefix(module, tokens)
        return True

    def _search(self, ctx: CompilerContext, module: ModuleOp) -> tuple[int, ...]:
        if self.most < 1:
            return ()
        calibration = ctx.calibration
        if calibration is None:
            raise CalibrationError("absorb-prefix needs calibration data, or option tokens")
        sample = calibration.part(_WINDOWS, _TOKENS)
        simulate = _Simulation(ctx, module, calibration.start, sample)
        walks = 2 + 2 * self.most
        report = partial(ctx.progress, self.name)
        (best,) = simulate([calibration.start], sample.shape[1], lambda share: report((1 + share) / walks))
        for number in range(self.most):
            if best.divergence < _ENOUGH:
                break
            candidates = [(*best.prefix, t) for t in _candidates(calibration, best.suspects)]

            def told(share: float, done: int = 2 + 2 * number) -> None:
                report((done + share) / walks)

            tried = sorted(simulate(candidates, _BEGINNING, told), key=lambda trial: trial.divergence)
            few = [trial.prefix for trial in tried[:_FEW]]
            seen = simulate(few, sample.shape[1], lambda share: told(1 + share))
            found = min(seen, key=lambda trial: trial.divergence)
            if found.divergence > best.divergence * (1 - _WORTHWHILE):
                break
            best = found
        return best.prefix


def _candidates(calibration: Calibration, suspects: tuple[int, ...]) -> list[int]:
    """Tokens worth trying: the start token, those that were outliers most often, and frequent ones."""
    start = [] if calibration.bos is None else [calibration.bos]
    tokens, counts = np.unique(calibration.windows, return_counts=True)
    frequent = tokens[np.argsort(-counts, kind="stable")[:8]].tolist()
    outliers = [token for token, _ in Counter(suspects).most_common(4)]
    return list(dict.fromkeys([*start, *outliers, *frequent]))


@dataclass(frozen=True)
class _Trial:
    """divergence: mean KL from the float model's predictions to those with 8-bit activations behind a prefix,
    in nats a token. suspects: the tokens that carry outliers, four of the residual stream's largest behind
    each sum."""

    prefix: tuple[int, ...]
    divergence: float
    suspects: tuple[int, ...]


class _Simulation:
    """The float module with 8-bit activations, on windows `[windows, tokens]`, beside itself as it is behind
    the tokens `start`."""

    def __init__(
        self, ctx: CompilerContext, module: ModuleOp, start: tuple[int, ...], windows: Windows
    ) -> None:
        self._ctx, self._module, self._windows = ctx, module, windows
        plan = [Rule.parse(rule) for rule in DEFAULT_PLAN]
        ops = list(mqc_ops(module))
        self._last = ops[-1]
        self._rounded = {op for op in ops[:-1] if value_bits(plan, op) == 8}
        self._evaluation = Evaluation(module, ctx.weights)
        (self._exact,) = self._walk([start], windows)

    def __call__(
        self, prefixes: list[tuple[int, ...]], tokens: int, report: Callable[[float], None]
    ) -> list[_Trial]:
        """Each of several prefixes of the same length, in front of the first tokens of the windows. All are
        evaluated in one walk over the module."""
        first, windows = len(prefixes[0]), self._windows[:, :tokens]
        suspects: list[list[int]] = [[] for _ in prefixes]

        def note(op: MqcOp, result: torch.Tensor) -> torch.Tensor | None:
            if op in self._rounded:
                result = result.clone()
            shape = len(prefixes), len(windows), first + windows.shape[1], -1
            for values, found in zip(result.view(shape)[:, :, first:], suspects, strict=True):
                if isinstance(op, AddOp):
                    peaks = values.abs().amax(-1).reshape(-1)
                    largest = peaks.topk(min(4, len(peaks))).indices
                    found += windows.reshape(-1)[largest.numpy()].tolist()
                if op in self._rounded:
                    values.copy_(_in_8_bits(values))
            return result

        behind = self._walk(prefixes, windows, note, report)
        exact = tuple(x[:, :tokens].flatten(0, 1) for x in self._exact)
        others = [tuple(x.flatten(0, 1) for x in operands) for operands in behind]
        farther = divergences(self._evaluation, self._last, exact, others)
        return [
            _Trial(prefix, divergence, tuple(found))
            for prefix, divergence, found in zip(prefixes, farther, suspects, strict=True)
        ]

    def _walk(
        self,
        prefixes: list[tuple[int, ...]],
        windows: Windows,
        note: Callable[[MqcOp, torch.Tensor], torch.Tensor | None] = lambda op, result: None,
        report: Callable[[float], None] = lambda share: None,
    ) -> list[Operands]:
        """What the op that gives the logits reads, `[windows, tokens, channels]`, behind each prefix."""
        rows = np.array([[*prefix, *window] for prefix in prefixes for window in windows], np.int64)
        shape = len(prefixes), len(windows), rows.shape[1], -1
        behind: list[Operands] = []

        def keep(op: MqcOp, operands: list[Operands]) -> None:
            if op is self._last:
                views = [x.view(shape)[:, :, len(prefixes[0]) :] for x in operands[0]]
                behind.extend(zip(*views, strict=True))

        observe(self._ctx, self._module, rows, before=keep, after=note, together=len(rows), report=report)
        return behind


def _in_8_bits(values: torch.Tensor) -> torch.Tensor:
    histogram = Histogram()
    histogram.add(values)
    return affine_range(*histogram.least_squares(8, _STEPS), 8).fake_quantize(values)
