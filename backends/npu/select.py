"""Which `htp` op carries out each `int` op."""

from __future__ import annotations

from mqc.backend import Kernel
from mqc.dialects.htp import carrier
from mqc.dialects.int_ops import AccumulatorOp, RequantOp
from mqc.ir.op import MqcOp


def select(op: MqcOp) -> Kernel | None:
    """The `htp` op that an `int` op becomes, None if there is none."""
    if isinstance(op, RequantOp):
        found = None if op.accumulator is None else carrier(op.accumulator)
        return None if found is None else Kernel(found.name)
    found = carrier(op)
    if found is None:
        return None
    fused = isinstance(op, AccumulatorOp) and op.requant() is not None
    return Kernel(found.name, fused_into=RequantOp.name if fused else None)
