"""Mixture of experts in the `int` dialect: `int.route` and `int.gate`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from xdsl.dialects.builtin import IntegerAttr, StringAttr, TensorType
from xdsl.ir import SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def

from mqc.arrays import Array
from mqc.dialects.constraints import Limit, Values, bits, limits, scales, within, zero_of
from mqc.dialects.int_core import ACCUMULATOR, ACTIVATIONS, constant, same_channels
from mqc.dialects.int_requant import AccumulatorOp, RequantOp
from mqc.ir.op import EvaluationContext, WeightAttr, channels, s32
from mqc.numerics import arithmetic as a
from mqc.numerics.routing import BIAS_LIMIT, NORMALIZATIONS, Mask, best_groups, largest, shares_of_sum

#: Most experts: kernels keep numbers for each on the stack.
MAX_EXPERTS = 4096


@irdl_op_definition
class RouteOp(AccumulatorOp):
    """The weight of each expert, 0 unless it is one of the `top_k` chosen.

    d = x − x_zero, and softmax(d) that of min(requantize(max d − d, score_multiplier, score_shift), 65535).
    p = softmax(d) if `shares` is 1, else d. Chosen are the largest of p + bias, of equal ones the first; with
    `groups`, only of the `top_groups` groups with the largest sums of their `group_scores` largest.
    `normalization` of what was chosen: `none`; `softmax` of its d; by its `sum`: floor(2^30 · v / Σ v) of
    v = max(p, 0), and 0 if that sum is.

    `y = normalized(p where chosen, else 0)`
    """

    name = "int.route"
    x = operand_def(TensorType)
    x_zero = prop_def(IntegerAttr)
    top_k = prop_def(IntegerAttr)
    shares = prop_def(IntegerAttr)
    normalization = prop_def(StringAttr)
    bias = opt_prop_def(WeightAttr)
    groups = prop_def(IntegerAttr)
    top_groups = prop_def(IntegerAttr)
    group_scores = prop_def(IntegerAttr)
    score_multiplier = prop_def(IntegerAttr)
    score_shift = prop_def(IntegerAttr)
    result = result_def(TensorType)

    PORTS: ClassVar = {"x": ACTIVATIONS, "result": ACCUMULATOR}
    LIMITS: ClassVar = (
        zero_of("x_zero", "x"),
        same_channels("x"),
        Limit(f"at most {MAX_EXPERTS} experts", lambda op: channels(op.x) <= MAX_EXPERTS),
        within("shares", 0, 1),
        Limit(f"normalization of {NORMALIZATIONS}", lambda op: op.get("normalization") in NORMALIZATIONS),
        Limit(
            "softmax once: of all scores, or of the chosen ones",
            lambda op: not op.get("shares") or op.get("normalization") != "softmax",
        ),
        Limit(
            "groups divide the experts",
            lambda op: op.get("groups") > 0 and channels(op.x) % op.get("groups") == 0,
        ),
        Limit("top_groups in [1, groups]", lambda op: 0 < op.get("top_groups") <= op.get("groups")),
        Limit("group_scores of a group's experts", lambda op: 0 < op.get("group_scores") <= op.group_size),
        Limit(
            "top_k of the experts of top_groups",
            lambda op: 0 < op.get("top_k") <= op.group_size * op.get("top_groups"),
        ),
        *scales("score_"),
        Limit("score_multiplier not negative", lambda op: op.get("score_multiplier") >= 0),
        constant("bias", s32, "[experts]", lambda op: (channels(op.x),)),
    )
    VALUES: ClassVar = (
        Values("bias", "in [-2^30, 2^30]", lambda op, b: np.abs(b.astype(np.int64)) <= BIAS_LIMIT),
    )

    @property
    def group_size(self) -> int:
        return channels(self.x) // int(self.get("groups"))

    def evaluate(self, ctx: EvaluationContext, x: Array) -> Array:
        d = x.astype(np.int64) - self.get("x_zero")
        p = self._softmax(d, np.ones(d.shape, np.bool_)) if self.get("shares") else d
        choice = p if self.bias is None else p + ctx.array(self.bias)
        groups, kept = self.get("groups"), self.get("top_groups")
        allowed = best_groups(choice, groups, kept, self.get("group_scores")) if kept < groups else None
        chosen = largest(choice, self.get("top_k"), allowed)
        match self.get("normalization"):
            case "softmax":
                y = self._softmax(d, chosen)
            case "sum":
                y = shares_of_sum(p, chosen)
            case _:
                y = np.where(chosen, p, 0)
        return y.astype(np.int32)

    def _softmax(self, d: Array, visible: Mask) -> Array:
        top = np.where(visible, d, a.INT32_MIN).max(-1, keepdims=True)
        below = np.where(visible, top - d, 0)
        u = a.requantize(below, self.get("score_multiplier"), self.get("score_shift"))
        return a.softmax(np.minimum(u, 65535), visible)


@irdl_op_definition
class GateOp(AccumulatorOp):
    """Elementwise product of each of equal blocks of channels with its gate.

    `y = shift_right_round((x − x_zero)·(gate − gates_zero), acc_shift)`
    """

    name = "int.gate"
    x = operand_def(TensorType)
    gates = operand_def(TensorType)
    x_zero = prop_def(IntegerAttr)
    gates_zero = prop_def(IntegerAttr)
    acc_shift = prop_def(IntegerAttr)
    result = result_def(TensorType)

    PORTS: ClassVar = {"x": ACTIVATIONS, "gates": ACTIVATIONS, "result": ACCUMULATOR}
    LIMITS: ClassVar = (
        zero_of("x_zero", "x"),
        zero_of("gates_zero", "gates"),
        same_channels("x"),
        Limit("gates divide the channels", lambda op: channels(op.x) % channels(op.gates) == 0),
        within("acc_shift", 0, 31),
        Limit(
            "acc_shift brings the product into 31 bits",
            lambda op: bits(op.x) + bits(op.gates) - op.get("acc_shift") <= 30,
        ),
    )

    def evaluate(self, ctx: EvaluationContext, x: Array, gates: Array) -> Array:
        d = x.astype(np.int64).reshape(*gates.shape, -1) - self.get("x_zero")
        product = d * (gates.astype(np.int64) - self.get("gates_zero"))[..., None]
        result: Array = a.shift_right_round(product, self.get("acc_shift")).reshape(x.shape).astype(np.int32)
        return result


def most_chosen(gates: SSAValue, zero: int) -> int:
    """How many gates of a token differ from `zero` at most: `top_k`, where an `int.route` gives them."""
    requant = gates.owner
    if isinstance(requant, RequantOp) and requant.get("zero_point") == zero:
        route = requant.accumulator
        if isinstance(route, RouteOp):
            return int(route.get("top_k"))
    return channels(gates)


#: What must hold of an op whose matrix has a block for each gate.
GATES = (
    Limit(
        "gates, gates_zero and expert_axis together",
        lambda op: len({op.gates is None, op.gates_zero is None, op.expert_axis is None}) == 1,
    ),
    Limit("expert_axis 0 or 1", lambda op: op.gates is None or op.get("expert_axis") in (0, 1)),
    Limit(
        "gates_zero in the range of gates",
        lambda op: op.gates is None or 0 <= op.get("gates_zero") <= limits(op.gates)[1],
    ),
    Limit(
        "gates divide the matrix along expert_axis",
        lambda op: op.gates is None or op.matrix_shape[op.get("expert_axis")] % channels(op.gates) == 0,
    ),
)
