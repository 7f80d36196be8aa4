"""Where 16-bit activations, and 8-bit weights among 4-bit ones, pay most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from xdsl.dialects.builtin import ModuleOp

from mqc.calibration import Windows
from mqc.dialects.core import MqcOp
from mqc.dialects.llm import LinearOp
from mqc.dialects.quant import UniformType
from mqc.errors import RecipeError
from mqc.ir import CompilerContext, gives_logits, mqc_ops
from mqc.learning.sensitivity import Noise, sensitivities
from mqc.precision_rules import Rule
from mqc.weight_rounding import best_steps, round_nearest


@dataclass(frozen=True)
class Choice:
    """What may get more bits: the rule that gives them, what it costs (multiply-accumulates a token, or
    weights), and the noise that it spares."""

    rule: Rule
    op: MqcOp
    cost: int
    noise: Noise


def search_activations(
    ctx: CompilerContext,
    module: ModuleOp,
    share: float,
    kind: Callable[[MqcOp], UniformType],
    pinned: Sequence[Rule],
    windows: Windows,
) -> list[Rule]:
    """Rules that give 16 bits to values which matrix products read, and 8 to all others of them, so that
    `share` of the products' multiply-accumulates have 8-bit activations.

    Args:
        kind: the 8-bit type of an op's result.
        pinned: rules of the user: what they select is left to them.

    Raises `RecipeError` if what is pinned to 16 bits leaves no room.
    """
    linears = [op for op in mqc_ops(module) if isinstance(op, LinearOp)]
    budget = (1 - share) * sum(op.macs() for op in linears)
    costs: dict[MqcOp, int] = {}
    for op in linears:
        assert isinstance(op.x.owner, MqcOp)
        costs[op.x.owner] = costs.get(op.x.owner, 0) + op.macs()
    choices = []
    for producer, cost in costs.items():
        rule = next((rule for rule in reversed(pinned) if rule.selects(producer)), None)
        if rule is None and not all(isinstance(use.operation, LinearOp) for use in producer.results[0].uses):
            # The residual stream itself, read by products: 16 bits whatever they cost.
            rule = Rule("", 16)
        if rule is None:
            rule16 = Rule(f"%{producer.value_name}", 16)
            choices.append(Choice(rule16, producer, cost, _value_noise(kind(producer))))
        elif rule.bits == 16:
            budget -= cost
    if budget < 0:
        raise RecipeError(
            f"assign-precision: values that are pinned to 16 bits leave less than {share:.1%} of the "
            "multiply-accumulates with 8-bit activations"
        )
    chosen = _spend(ctx, module, choices, budget, windows)
    return [Rule(f"%{c.op.value_name}", 16 if c in chosen else 8) for c in choices]


def search_weights(
    ctx: CompilerContext, module: ModuleOp, share: float, group: int, pinned: Sequence[Rule], windows: Windows
) -> list[Rule]:
    """Rules that give 8 bits to that share of the 4-bit weights where it spares the output most.

    Args:
        group: input channels per group of the 4-bit weights, 0 for one step a row.
    """
    linears = [op for op in mqc_ops(module) if isinstance(op, LinearOp) and not gives_logits(op)]
    choices = []
    for op in linears:
        if not any(rule.selects_weight(op) for rule in pinned):
            choices.append(
                Choice(Rule(f"weight:%{op.value_name}", 8), op, op.macs(), _weight_noise(ctx, op, group))
            )
    budget = share * sum(op.macs() for op in linears)
    chosen = _spend(ctx, module, choices, budget, windows)
    return [c.rule for c in choices if c in chosen]


def _value_noise(quantized: UniformType) -> Noise:
    def noise(operands: list[torch.Tensor], result: torch.Tensor) -> torch.Tensor:
        return quantized.fake_quantize(result) - result

    return noise


def _weight_noise(ctx: CompilerContext, op: LinearOp, group: int) -> Noise:
    def noise(operands: list[torch.Tensor], result: torch.Tensor) -> torch.Tensor:
        weight = ctx.weights[op.weight]
        size = group or weight.shape[1]
        step = best_steps(weight, size, 4).repeat(size, 1)
        lost = torch.from_numpy(round_nearest(weight, step, 4) * step - weight)
        return F.linear(operands[0], lost.to(result.device, torch.float32))

    return noise


def _spend(
    ctx: CompilerContext, module: ModuleOp, choices: list[Choice], budget: float, windows: Windows
) -> list[Choice]:
    """The choices that spare most for what they cost, as many as the budget buys."""
    noises = {str(c.rule): (c.op, c.noise) for c in choices}
    spared = sensitivities(ctx, module, noises, windows)
    chosen = []
    for choice in sorted(choices, key=lambda c: -spared[str(c.rule)] / c.cost):
        if choice.cost <= budget:
            budget -= choice.cost
            chosen.append(choice)
    return chosen
