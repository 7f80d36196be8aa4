"""Where 16-bit activations, and 8-bit weights among 4-bit ones, pay most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.arrays import Array, row_blocks
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
    choices, others = activation_choices(module, kind, pinned)
    every = sum(choice.cost for choice in choices) + sum(others.values())
    kept = sum(cost for op, cost in others.items() if value_bits([*plan, *pinned], op) == 16)
    budget = (1 - share) * every - kept
    if budget < 0:
        raise RecipeError(
            f"assign-precision: values that have 16 bits by a rule leave less than {share:.1%} of the "
            "multiply-accumulates with 8-bit activations"
        )
    return _spend(ctx, module, choices, budget, windows, (8, 16))


def activation_choices(
    module: ModuleOp, kind: Callable[[MqcOp], UniformType], pinned: Sequence[Rule]
) -> tuple[list[Choice], dict[MqcOp, int]]:
    """The values that matrix products alone read, and no rule of the user selects; and the ops of the others
    that matrix products read, with the multiply-accumulates of these.

    Args:
        kind: the 8-bit type of an op's result.
    """
    costs: dict[MqcOp, int] = {}
    for op in mqc_ops(module):
        if isinstance(op, LinearOp):
            assert isinstance(op.x.owner, MqcOp)
            costs[op.x.owner] = costs.get(op.x.owner, 0) + op.macs()
    choices, others = [], {}
    for producer, cost in costs.items():
        alone = all(isinstance(use.operation, LinearOp) for use in producer.results[0].uses)
        if alone and not any(rule.selects(producer) for rule in pinned):
            selector = f"%{producer.value_name}"
            choices.append(Choice(selector, producer, cost, _value_noise(kind(producer))))
        else:
            others[producer] = cost
    return choices, others


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
        """The integers, which may lie in a temporary file, and their steps."""
        weight, size = ctx.weights[op.weight], group_size(op, group)
        step = np.concatenate([best_steps(weight[rows], size, 4) for rows in row_blocks(weight.shape)])
        integers = ctx.weights.build(
            f"{op.weight.key.data}.nearest", weight.shape, np.int8,
            lambda rows: round_nearest(weight[rows], step[rows].repeat(size, 1), 4),
        )  # fmt: skip
        return ctx.weights[integers], step

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
    ordered, spared = by_benefit(ctx, module, choices, windows)
    chosen = set()
    for choice in ordered:
        if choice.cost <= budget:
            budget -= choice.cost
            chosen.add(choice.selector)
    return [rule_of(choice, bits[choice.selector in chosen], spared) for choice in choices]


def by_benefit(
    ctx: CompilerContext, module: ModuleOp, choices: Sequence[Choice], windows: Windows
) -> tuple[list[Choice], dict[str, float]]:
    """Choices in the order of the noise that they spare for what they cost, and that noise by selector, in
    nats a token."""
    if not choices:
        return [], {}
    spared = sensitivities(ctx, module, {c.selector: (c.op, c.noise) for c in choices}, windows)
    return sorted(choices, key=lambda c: -spared[c.selector] / c.cost), spared


def rule_of(choice: Choice, bits: int, spared: dict[str, float]) -> Rule:
    """The rule that gives a choice its bits, with what more of them spare and cost as its remark."""
    return Rule(choice.selector, bits, f"{spared[choice.selector]:.1e} nats for {choice.cost} MACs")
