"""Mixture of experts in the `llm` dialect: which experts a token goes to, and with what weights.

All experts stand side by side: the channels of a value are one block per expert. `llm.route` gives the
weight of every expert, 0 unless it was chosen; an `llm.linear` with such gates computes chosen blocks only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from xdsl.dialects.builtin import IntegerAttr, StringAttr, TensorType
from xdsl.ir import SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def

from mqc.dialects.equivariance import Constraint, Fix, tie_all
from mqc.dialects.llm_core import LlmOp
from mqc.ir.op import EvaluationContext, WeightAttr, channels
from mqc.numerics.routing import NORMALIZATIONS


@irdl_op_definition
class RouteOp(LlmOp):
    """The weight of each expert, 0 unless it is one of the `top_k` chosen.

    `p` are the scores `x`, or their softmax if `shares` is 1. Chosen are the largest of `p + bias`. If there
    are `groups` of experts, only those in the `top_groups` best of them can be: a group is as good as the sum
    of its `group_scores` largest. `normalization` of the chosen weights: `none`, by their `sum`, or their
    `softmax`. `gain` `[experts]` multiplies them at the end.

    `y = gain · normalized(p where chosen, else 0)`
    """

    name = "llm.route"
    x = operand_def(TensorType)
    top_k = prop_def(IntegerAttr)
    shares = prop_def(IntegerAttr)
    normalization = prop_def(StringAttr)
    bias = opt_prop_def(WeightAttr)
    gain = opt_prop_def(WeightAttr)
    groups = prop_def(IntegerAttr)
    top_groups = prop_def(IntegerAttr)
    group_scores = prop_def(IntegerAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        experts, groups = channels(self.x), self.get("groups")
        self.expect(channels(self.result) == experts, "a weight per expert")
        self.expect(self.get("shares") in (0, 1), "shares must be 0 or 1")
        self.expect(self.get("normalization") in NORMALIZATIONS, f"normalization of {NORMALIZATIONS}")
        for name in ("bias", "gain"):
            ref = self.ref(name)
            self.expect(ref is None or ref.shape == (experts,), f"{name} must be [experts]")
        self.expect(groups > 0 and experts % groups == 0, "groups must divide the experts")
        self.expect(0 < self.get("top_groups") <= groups, "top_groups in [1, groups]")
        self.expect(0 < self.get("group_scores") <= experts // groups, "group_scores of a group's experts")
        most = experts // groups * self.get("top_groups")
        self.expect(0 < self.get("top_k") <= most, f"top_k in [1, {most}]")

    def compute(self, ctx: EvaluationContext, x: torch.Tensor) -> torch.Tensor:
        p = torch.softmax(x, -1) if self.get("shares") else x
        choice = p if self.bias is None else p + ctx.torch(self.bias)
        groups = self.get("groups")
        if self.get("top_groups") < groups:
            parts = choice.view(len(x), groups, -1)
            best = parts.topk(self.get("group_scores")).values.sum(-1).topk(self.get("top_groups")).indices
            kept = torch.zeros(parts.shape[:2], dtype=torch.bool, device=x.device).scatter_(1, best, True)
            choice = parts.masked_fill(~kept[..., None], -torch.inf).view_as(x)
        index = choice.topk(self.get("top_k")).indices
        weight = p.gather(1, index)
        if self.get("normalization") == "sum":
            weight = weight / weight.sum(-1, keepdim=True)
        elif self.get("normalization") == "softmax":
            weight = torch.softmax(weight, -1)
        y = torch.zeros_like(x).scatter(1, index, weight)
        return y if self.gain is None else y * ctx.torch(self.gain)


@irdl_op_definition
class GateOp(LlmOp):
    """Product with one number for each of equal blocks of channels: of the chosen experts' results with their
    weights.

    `y = x · gates, each block of channels by its gate`
    """

    name = "llm.gate"
    x = operand_def(TensorType)
    gates = operand_def(TensorType)
    result = result_def(TensorType)

    def check(self) -> None:
        self.expect(channels(self.x) == channels(self.result), "channels must not change")
        self.expect(channels(self.x) % channels(self.gates) == 0, "gates must divide the channels")

    def compute(self, ctx: EvaluationContext, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        return (x.view(*gates.shape, -1) * gates[..., None]).view_as(x)

    def equivariance(self) -> list[Constraint]:
        return [Fix(self.gates), tie_all(self.x, self.result, channels(self.x))]


def routed_product(
    x: torch.Tensor,
    gates: torch.Tensor,
    axis: int,
    outputs: int,
    product: Callable[[torch.Tensor, slice, slice], torch.Tensor],
) -> torch.Tensor:
    """A product whose matrix has a block for each expert, of which each token takes those it chose.

    Args:
        x: `[tokens, inputs]`. gates: `[tokens, experts]`, 0 where an expert was not chosen.
        axis: 0 if the matrix's rows are in blocks, so that blocks of the result are 0 where not chosen; 1 if
            its columns are, so that blocks of the inputs are not read.
        outputs: of the whole matrix.
        product: of some tokens' inputs with rows and columns of the matrix.
    """
    experts = gates.shape[1]
    y = x.new_zeros(len(x), outputs)
    size = (outputs if axis == 0 else x.shape[1]) // experts
    everything = slice(None)
    for expert in torch.nonzero((gates != 0).any(0))[:, 0].tolist():
        tokens = torch.nonzero(gates[:, expert])[:, 0]
        block = slice(expert * size, (expert + 1) * size)
        if axis == 0:
            y[:, block].index_copy_(0, tokens, product(x[tokens], block, everything))
        else:
            y.index_add_(0, tokens, product(x[:, block][tokens], everything, block))
    return y


def check_gates(op: LlmOp, gates: SSAValue | None, axis: int | None, shape: Sequence[int]) -> None:
    """Raise a verifier error unless a matrix `[outputs, inputs]` has a block for each gate along an axis."""
    op.expect((gates is None) == (axis is None), "gates need expert_axis, and the other way round")
    if gates is not None:
        op.expect(axis in (0, 1), "expert_axis must be 0 or 1")
        op.expect(shape[axis or 0] % channels(gates) == 0, "gates must divide the weight along expert_axis")
