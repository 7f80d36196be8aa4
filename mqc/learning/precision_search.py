"""Where 16-bit activations, and 8-bit weights among 4-bit ones, pay most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.arrays import Array
from mqc.calibration import Windows
from mqc.compiler.precision_rules import Rule, group_size, linears, value_bits, weight_bits
from mqc.dialects.llm import LinearOp
from mqc.dialects.quant import UniformType
from mqc.errors import RecipeError
from mqc.ir.module import mqc_ops
from mqc.ir.op import MqcOp
from mqc.learning.sensitivity import Noise, sensitivities
from mqc.numerics.weight_rounding import best_steps, round_nearest


@dataclass(frozen=True)
class Choice:
    """What may get more bits: the selector of its rule, what they cost (multiply-accumulates a token, or
    weights), and the noise that they spare."""

    selector: str
    op: MqcOp
    cost: int
    noise: Noise


def search_activations(
    ctx: CompilerContext,
    module: ModuleOp,
    share: float,
    kind: Callable[[MqcOp], UniformType],
    plan: Sequence[Rule],
    pinned: Sequence[Rule],
    windows: Windows,
) -> list[Rule]:
    """Rules that give 16 bits to values which matrix products read, and 8 to all others of them, so that
    `share` of the products' multiply-accumulates have 8-bit activations.

    Args:
        kind: the 8-bit type of an op's result.
        plan: rules for what is not searched: values that other ops read too, like the residual stream.
        pinned: rules of the user: what they select is left to them.

    Raises `RecipeError` if what has 16 bits by these rules leaves no room.
    """
    linears = [op for op in mqc_ops(module) if isinstance(op, LinearOp)]
    budget = (1 - share) * sum(op.macs() for op in linears)
    costs: dict[MqcOp, int] = {}
    for op in linears:
        assert isinstance(op.x.owner, MqcOp)
        costs[op.x.owner] = costs.get(op.x.owner, 0) + op.macs()
    choices = []
    for producer, cost in costs.items():
        alone = all(isinstance(use.operation, LinearOp) for use in producer.results[0].uses)
        if alone and not any(rule.selects(producer) for rule in pinned):
            selector = f"%{producer.value_name}"
            choices.append(Choice(selector, producer, cost, _value_noise(kind(producer))))
        elif value_bits([*plan, *pinned], producer) == 16:
            budget -= cost
    if budget < 0:
        raise RecipeError(
            f"assign-precision: values that have 16 bits by a rule leave less than {share:.1%} of the "
            "multiply-accumulates with 8-bit activations"
        )
    return _spend(ctx, module, choices, budget, windows, (8, 16))


def search_weights(
    ctx: CompilerContext, module: ModuleOp, share: float, group: int, pinned: Sequence[Rule], windows: Windows
) -> list[Rule]:
    """Rules that give 8 bits to at most `share` of the weights, where it spares the output most, and 4 to all
    others, but for those whose bits a pass has set. A matrix has as many weights as multiply-accumulates a
    token.

    Args:
        group: input channels per group of the 4-bit weights, 0 for one step a row.
    """
    every = [op for op in linears(module) if op.weight_bits is None]
    choices = [
        Choice(f"weight:%{op.value_name}", op, op.macs(), _weight_noise(ctx, op, group))
        for op in every
        if not any(rule.selects_weight(op) for rule in pinned)
    ]
    kept = sum(op.macs() for op in every if weight_bits(pinned, op) == 8)
    budget = share * sum(op.macs() for op in every) - kept
    return _spend(ctx, module, choices, budget, windows, (4, 8))


def _value_noise(quantized: UniformType) -> Noise:
    def noise(operands: list[torch.Tensor], result: torch.Tensor) -> torch.Tensor:
        return quantized.fake_quantize(result) - result

    return noise


def _weight_noise(ctx: CompilerContext, op: LinearOp, group: int) -> Noise:
    @cache
    def rounded() -> tuple[Array, Array]:
        """The integers, a quarter of the weights' size, and their steps."""
        weight, size = ctx.weights[op.weight], group_size(op, group)
        step = best_steps(weight, size, 4)
        return round_nearest(weight, step.repeat(size, 1), 4), step

    def noise(operands: list[torch.Tensor], result: torch.Tensor) -> torch.Tensor:
        stored, step = rounded()
        lost = stored * step.repeat(group_size(op, group), 1) - ctx.weights[op.weight]
        return F.linear(operands[0], torch.from_numpy(lost).to(result.device, torch.float32))

    return noise


def _spend(
    ctx: CompilerContext,
    module: ModuleOp,
    choices: list[Choice],
    budget: float,
    windows: Windows,
    bits: tuple[int, int],
) -> list[Rule]:
    """A rule for each choice, with the more of the two `bits` where that spares most for what it costs, as
    often as the budget buys it."""
    if not choices:
        return []
    spared = sensitivities(ctx, module, {c.selector: (c.op, c.noise) for c in choices}, windows)
    chosen = set()
    for choice in sorted(choices, key=lambda c: -spared[c.selector] / c.cost):
        if choice.cost <= budget:
            budget -= choice.cost
            chosen.add(choice.selector)
    return [
        Rule(c.selector, bits[c.selector in chosen], f"{spared[c.selector]:.1e} nats for {c.cost} MACs")
        for c in choices
    ]
