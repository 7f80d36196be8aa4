"""`absorb-prefix`: freeze the keys and values of attention-sink tokens into the cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import Evaluation
from mqc.arrays import Array
from mqc.calibration import Calibration, Windows
from mqc.compiler.observation import observe
from mqc.dialects.llm import AddOp, AttentionOp, LinearOp
from mqc.errors import CalibrationError, PassError, RecipeError
from mqc.ir.module import context_length, mqc_ops, prefix_tokens, returned_value, set_prefix
from mqc.ir.op import MqcOp
from mqc.pass_base import Pass

#: Another prefix token must lower the score by this; the sample hardly tells less apart.
_WORTHWHILE = 0.01
#: Windows of calibration text to score on, and their tokens. All candidates see the beginnings, where the
#: outliers are; the best few see the whole.
_WINDOWS, _TOKENS = 4, 128
_BEGINNING, _FEW = 32, 3


@dataclass(frozen=True)
class AbsorbPrefix(Pass):
    """Run a fixed prefix once and make its keys and values the first rows of every cache.

    The first tokens of a sequence draw attention and grow activations hundreds of times larger
    than any other token's; static ranges must not have to cover them (PrefixQuant, arXiv
    2410.05265). The prefix takes positions 0…p−1 and is subject to windows like any token.

    Tokens that the tokenizer puts in front of every text come first in it: the model was trained to see them
    there, and behind no other token.

    Options:
        tokens: the prefix; if absent, tokens are chosen behind which, on calibration data, outliers in the
            matrix products' inputs and outputs are smallest and text is most likely, as long as one helps.
        most: how many tokens to consider besides (0 leaves the module as it is).
    """

    name = "absorb-prefix"
    tokens: tuple[int, ...] | None = None
    most: int = 2

    def __post_init__(self) -> None:
        self.expect(self.most >= 0, f"most must be 0 or more, got {self.most}")
        self.expect(min(self.tokens or (0,)) >= 0, f"tokens must be token ids, got {self.tokens}")

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
            if isinstance(op, AttentionOp):
                for name, state in zip(("k", "v"), op.states(), strict=True):
                    rows = evaluation.state[state.name].numpy()
                    ref = ctx.weights.add(f"{op.value_name}.prefix_{name}", rows)
                    op.properties[f"prefix_{name}"] = ref
        set_prefix(module, tokens)
        return True

    def _search(self, ctx: CompilerContext, module: ModuleOp) -> tuple[int, ...]:
        if self.most < 1:
            return ()
        calibration = ctx.calibration
        if calibration is None:
            raise CalibrationError("absorb-prefix needs calibration data, or option tokens")
        sample = calibration.part(_WINDOWS, _TOKENS)
        walks = iter(range(1 + 2 * self.most))

        def trials(prefixes: list[tuple[int, ...]], windows: Windows) -> list[_Trial]:
            walk = next(walks)
            return _trials(
                ctx, module, prefixes, windows,
                lambda share: ctx.progress(self.name, (walk + share) / (1 + 2 * self.most)),
            )  # fmt: skip

        (best,) = trials([calibration.start], sample)
        for _ in range(self.most):
            candidates = [(*best.prefix, t) for t in _candidates(calibration, best.suspects())]
            tried = sorted(trials(candidates, sample[:, :_BEGINNING]), key=_Trial.score)
            seen = trials([trial.prefix for trial in tried[:_FEW]], sample)
            found = min(seen, key=_Trial.score)
            if found.score() > best.score() - _WORTHWHILE:
                break
            best = found
        return best.prefix


def _candidates(calibration: Calibration, suspects: list[int]) -> list[int]:
    """Tokens worth trying: the start token, those that were outliers most often, and frequent ones."""
    start = [] if calibration.bos is None else [calibration.bos]
    tokens, counts = np.unique(calibration.windows, return_counts=True)
    frequent = tokens[np.argsort(-counts, kind="stable")[:8]].tolist()
    outliers = [token for token, _ in Counter(suspects).most_common(4)]
    return list(dict.fromkeys([*start, *outliers, *frequent]))


@dataclass(frozen=True)
class _Trial:
    """What is seen when the float module evaluates windows, each behind a prefix by itself.

    tokens: of all windows. peaks: each token's largest magnitude, `[tokens]`, of values that linears read or
    write. loss: of the text, in nats a token.
    """

    prefix: tuple[int, ...]
    tokens: Windows
    peaks: dict[MqcOp, Array]
    loss: float

    def score(self) -> float:
        """The mean, over values that linears read or write, of log2(largest magnitude of any token / median
        of the tokens' largest magnitudes): the bits that a static range wastes; plus the loss of the text in
        nats a token."""
        ratios = [
            np.log2(max(float(peaks.max()), 1e-9) / max(float(np.median(peaks)), 1e-9))
            for peaks in self.peaks.values()
        ]
        return float(np.mean(ratios)) + self.loss

    def suspects(self) -> list[int]:
        """The tokens that carry outliers: four of the residual stream's largest behind each sum."""
        residual = [peaks for op, peaks in self.peaks.items() if isinstance(op, AddOp)]
        return [int(self.tokens[place]) for peaks in residual for place in np.argsort(peaks)[-4:]]


def _trials(
    ctx: CompilerContext,
    module: ModuleOp,
    prefixes: list[tuple[int, ...]],
    windows: Windows,
    report: Callable[[float], None],
) -> list[_Trial]:
    """One for each of several prefixes of the same length. All are evaluated in one walk over the module."""
    first, length = len(prefixes[0]), windows.shape[1]
    rows = np.array([[*prefix, *window] for prefix in prefixes for window in windows], np.int64)
    following = torch.from_numpy(np.roll(rows, -1, 1)).reshape(-1, 1)
    peaks: dict[MqcOp, list[torch.Tensor]] = {}
    losses: list[torch.Tensor] = []
    logits = returned_value(module)

    def note(op: MqcOp, result: torch.Tensor) -> None:
        read = any(isinstance(use.operation, LinearOp) for use in op.results[0].uses)
        if isinstance(op, LinearOp | AddOp) or read:
            peaks.setdefault(op, []).append(torch.maximum(result.amax(-1), -result.amin(-1)))
        if op.results[0] is logits:
            seen = sum(map(len, losses))
            predicted = result.gather(1, following[seen : seen + len(result)])
            losses.append(torch.logsumexp(result, 1) - predicted[:, 0])

    observe(ctx, module, rows, after=note, logits=True, report=report)

    def behind(found: list[torch.Tensor], tokens: int) -> Array:
        """Of each window's tokens the first behind the prefix, `[prefixes, windows · tokens]`."""
        by_window = torch.cat(found).view(rows.shape).double().numpy()
        return np.asarray(by_window[:, first : first + tokens].reshape(len(prefixes), -1))

    by_op = {op: behind(found, length) for op, found in peaks.items()}
    # The last token of a window has no other behind it.
    mean = behind(losses, length - 1).mean(1) if length > 1 else np.zeros(len(prefixes))
    return [
        _Trial(prefix, windows.reshape(-1), {op: array[i] for op, array in by_op.items()}, float(mean[i]))
        for i, prefix in enumerate(prefixes)
    ]
