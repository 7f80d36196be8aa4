"""Accumulators, and what brings them back to activations."""

from __future__ import annotations

from typing import ClassVar

from xdsl.dialects.builtin import IntegerAttr, TensorType
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def

from mqc.arrays import Array
from mqc.dialects.constraints import MULTIPLIERS, SHIFTS, zero_of
from mqc.dialects.int_core import ACCUMULATOR, RESCALED, IntOp, constant, same_channels
from mqc.ir.op import EvaluationContext, WeightAttr, channels, s8, s32
from mqc.numerics import arithmetic as a


class AccumulatorOp(IntOp):
    """An op that gives s32 accumulators. Kernels carry it out together with the `int.requant` behind it, so
    that accumulators never reach memory."""

    def requant(self) -> RequantOp | None:
        """The `int.requant` that alone reads the accumulators; None if they are used otherwise."""
        users = [use.operation for use in self.results[0].uses]
        return users[0] if len(users) == 1 and isinstance(users[0], RequantOp) else None


@irdl_op_definition
class RequantOp(IntOp):
    """Rescale accumulators to a narrower type, per tensor or per channel.

    "Integer semantics" in docs/architecture.md defines `requantize`.

    `y = clamp(requantize(x, multiplier, shift) + zero_point)`
    """

    name = "int.requant"
    x = operand_def(TensorType)
    multiplier = prop_def(WeightAttr)
    shift = prop_def(WeightAttr)
    zero_point = prop_def(IntegerAttr)
    result = result_def(TensorType)

    PORTS: ClassVar = {"x": ACCUMULATOR, "result": RESCALED}
    LIMITS: ClassVar = (
        zero_of("zero_point"),
        same_channels("x"),
        constant("multiplier", s32, "[1 or channels]", lambda op: (1,), lambda op: (channels(op.result),)),
        constant("shift", s8, "[1 or channels]", lambda op: (1,), lambda op: (channels(op.result),)),
    )
    VALUES: ClassVar = (MULTIPLIERS, SHIFTS)

    @property
    def accumulator(self) -> AccumulatorOp | None:
        """The op whose accumulators it rescales; None if they come from elsewhere."""
        owner = self.x.owner
        return owner if isinstance(owner, AccumulatorOp) else None

    def evaluate(self, ctx: EvaluationContext, x: Array) -> Array:
        scaled = a.requantize(x, ctx.array(self.multiplier), ctx.array(self.shift))
        return self.narrow(scaled + self.get("zero_point"))
