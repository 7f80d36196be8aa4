"""Short convolutions in the `int` dialect, and the rows that they keep."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from xdsl.dialects.builtin import IntegerAttr, TensorType
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def

from mqc.arrays import Array
from mqc.dialects.constraints import Limit, within, zero_of
from mqc.dialects.int_core import ACCUMULATOR, ACTIVATIONS, constant, same_channels
from mqc.dialects.int_requant import AccumulatorOp
from mqc.ir.op import (
    EvaluationContext,
    State,
    WeightAttr,
    channels,
    element_type,
    grown,
    rows_by_position,
    s16,
    s32,
)
from mqc.numerics import arithmetic as a

#: Most tokens that a convolution sees at once.
MOST_TAPS = 64


@irdl_op_definition
class CausalConvOp(AccumulatorOp):
    """Causal convolution of each channel by itself, with s16 weights `[channels, taps]`, whose last column
    meets the token itself. What lies before the first token is `x_zero`. All rows stay, those of a prefix
    (`prefix_x`) first.

    `acc_shift` brings the sum into s32; `mqc.analysis.proofs` proves it of the weights.

    `y[t] = shift_right_round(bias + Σ weight[:, i]·(x[t − taps + 1 + i] − x_zero), acc_shift)`
    """

    name = "int.causal_conv"
    x = operand_def(TensorType)
    layer = prop_def(IntegerAttr)
    weight = prop_def(WeightAttr)
    bias = prop_def(WeightAttr)
    prefix_x = opt_prop_def(WeightAttr)
    x_zero = prop_def(IntegerAttr)
    acc_shift = prop_def(IntegerAttr)
    result = result_def(TensorType)

    PORTS: ClassVar = {"x": ACTIVATIONS, "result": ACCUMULATOR}
    LIMITS: ClassVar = (
        zero_of("x_zero", "x"),
        same_channels("x"),
        within("layer", 0, 2**31 - 1),
        within("acc_shift", 0, 31),
        Limit(f"1 to {MOST_TAPS} taps", lambda op: 0 < op.taps <= MOST_TAPS),
        constant("weight", s16, "[channels, taps]", lambda op: (channels(op.x), op.taps)),
        constant("bias", s32, "[channels]", lambda op: (channels(op.x),)),
        Limit(
            "prefix_x of x's type, [prefix tokens, channels]",
            lambda op: (
                op.prefix_x is None
                or (
                    op.prefix_x.type.get_element_type() == element_type(op.x)
                    and op.prefix_x.shape == (op.prefix_x.shape[0], channels(op.x))
                )
            ),
        ),
    )

    @property
    def taps(self) -> int:
        return int((*self.weight.shape, 0, 0)[1])

    def states(self) -> tuple[State, ...]:
        name = f"conv.{self.get('layer')}"
        return (rows_by_position(name, (channels(self.x),), element_type(self.x), self.prefix_x),)

    def macs(self) -> int:
        return channels(self.x) * self.taps

    def evaluate(self, ctx: EvaluationContext, x: Array) -> Array:
        (state,) = self.states()
        rows = grown(ctx, state, x, ctx.array, np.concatenate)
        new, before = len(x), self.taps - 1
        seen = rows[-(new + before) :].astype(np.int64) - self.get("x_zero")
        seen = np.concatenate([np.zeros((new + before - len(seen), seen.shape[1]), np.int64), seen])
        weight = ctx.array(self.weight).astype(np.int64)
        total = sum(seen[i : i + new] * weight[:, i] for i in range(self.taps)) + ctx.array(self.bias)
        result: Array = a.shift_right_round(total, self.get("acc_shift")).astype(np.int32)
        return result
