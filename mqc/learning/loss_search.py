"""The cheapest activations that keep a bound on what rounding costs, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.rewriter import Rewriter

from mqc.analysis.context import CompilerContext
from mqc.calibration import Windows
from mqc.compiler.precision_rules import Rule
from mqc.dialects.llm import LinearOp
from mqc.dialects.quant import UniformType, uniform
from mqc.errors import RecipeError
from mqc.ir.module import mqc_ops
from mqc.ir.op import MqcOp, channels, tensor
from mqc.learning.activations import Activations
from mqc.learning.methods import divergence
from mqc.learning.precision_search import activation_choices, by_benefit, rule_of
from mqc.learning.student import FloatModel, Student
from mqc.learning.training import own_device
from mqc.numerics.weight_rounding import least_scale

#: Bytes of float activations that stay in memory.
_BOUND = 1 << 29
#: Tokens whose logits are in memory at once.
_ROWS = 64

#: The type of an op's result with so many bits.
Kind = Callable[[MqcOp, int], UniformType]


def search_bits(
    ctx: CompilerContext, module: ModuleOp, bound: float, kind: Kind, pinned: Sequence[Rule], windows: Windows
) -> list[Rule]:
    """Give 16 bits to as few as possible of the values that matrix products alone read, and 8 to all others
    of them, so that predictions are within `bound` of the float model's, behind the same prefix.

    Values get 16 bits in the order of the noise that this spares for what it costs
    (`mqc.learning.sensitivity`). How many do is found by bisection: each time the module is evaluated with
    its rounded values and weights.

    Args:
        bound: mean KL divergence of the predictions, nats a token.
        pinned: rules of the user: what they select keeps its bits.

    Returns a rule for each value. Raises `RecipeError` if 16 bits for all of them do not keep the bound.

    Time: four evaluations of the float model on the windows, and one for each halving of the values' number.
    """
    found, _ = activation_choices(module, lambda op: kind(op, 8), pinned)
    choices, spared = by_benefit(
        ctx,
        module,
        [choice for choice in found if _scales_suffice(ctx, choice.op, kind(choice.op, 16))],
        windows,
    )
    types = {choice.op: uniform(choice.op.results[0]) for choice in choices}
    measured = _Measured(ctx, module, windows, 1 + math.ceil(math.log2(len(choices) + 1)))

    def give(count: int) -> None:
        """16 bits to the first `count`. A type that a value had already is kept: it may be learned."""
        for number, choice in enumerate(choices):
            bits, had = 16 if number < count else 8, types[choice.op]
            new = had if had is not None and had.bits == bits else kind(choice.op, bits)
            _retype(choice.op, new)

    def loss(count: int) -> float:
        give(count)
        return measured.loss(f"16 bits for {count} of {len(choices)} values")

    least = loss(len(choices))
    if least > bound:
        raise RecipeError(
            f"search-precision: with 16 bits for all {len(choices)} values that matrix products read, "
            f"predictions are {least:.4f} nats a token from the float model's, and {bound:.4f} are allowed: "
            "allow more, or give weights more bits (w8a8; groups or weights8 with 4 bits)"
        )
    fails, keeps = -1, len(choices)
    while keeps - fails > 1:
        middle = (fails + keeps) // 2
        fails, keeps = (fails, middle) if loss(middle) <= bound else (middle, keeps)
    give(keeps)
    return [rule_of(choice, 16 if n < keeps else 8, spared) for n, choice in enumerate(choices)]


class _Measured:
    """How far a module's predictions are from the float model's, as its types change, for so many `times`."""

    def __init__(self, ctx: CompilerContext, module: ModuleOp, windows: Windows, times: int) -> None:
        self.ctx, self.module, self.windows = ctx, module, windows
        self._times, self._done = times, 0
        *self._body, self._last = mqc_ops(module)
        count, tokens = windows.shape
        self._exact = Activations(count, tokens, channels(self._last.operands[0]), _BOUND)

    def loss(self, done: str) -> float:
        """Mean KL divergence in nats a token. done: what is measured, for the progress."""
        device = own_device()
        teacher, student = (kind(self.ctx, self.module, device) for kind in (FloatModel, Student))
        total = 0.0
        with torch.no_grad():
            for number, window in enumerate(self.windows):
                if number not in self._exact:
                    self._exact[number] = self._features(teacher, window)
                pair = self._exact.get(number, device), self._features(student, window)
                for exact, got in zip(*(torch.split(rows, _ROWS) for rows in pair), strict=True):
                    logits = student.capped(student.value(self._last, [got]))
                    expected = teacher.capped(teacher.value(self._last, [exact]))
                    total += float(divergence(logits, expected)) * len(exact)
                share = (self._done + (number + 1) / len(self.windows)) / self._times
                self.ctx.progress(f"search-precision: {done}", share)
        self._done += 1
        return total / self.windows.size

    def _features(self, model: FloatModel, window: Windows) -> torch.Tensor:
        """What the last matrix reads, `[tokens, channels]`."""
        wanted = self._last.operands[0]
        values = model.walk(self._body, model.arguments(window))
        return next(result for op, result in values if op.results[0] is wanted)


def _scales_suffice(ctx: CompilerContext, op: MqcOp, finer: UniformType) -> bool:
    """Whether the biases of the products that read a value stay within s32 in finer steps: their weights are
    rounded already."""
    users = [use.operation for use in op.results[0].uses]
    return all(
        bool((least_scale(ctx.weights[user.bias], finer.real_scale) <= ctx.weights[user.weight_scale]).all())
        for user in users
        if isinstance(user, LinearOp) and user.bias is not None and user.weight_scale is not None
    )


def _retype(op: MqcOp, kind: UniformType) -> None:
    Rewriter.replace_value_with_new_type(op.results[0], tensor(kind, channels(op.results[0])))
