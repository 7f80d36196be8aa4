"""Which kernel carries out each `int` op on the CPU."""

from __future__ import annotations

from xdsl.dialects import func
from xdsl.ir import SSAValue

from mqc.backend import Kernel
from mqc.backends.cpu.extensions import extension
from mqc.dialects import int_ops
from mqc.ir.op import MqcOp, element_type, s32

#: Producers of s32 values that run as the first half of the requant that follows.
_FUSED = (
    int_ops.LinearOp, int_ops.RmsNormOp, int_ops.LayerNormOp, int_ops.RopeOp, int_ops.MulOp,
)  # fmt: skip


def kind(value: SSAValue) -> str:
    """`u8`, `u16` or `s32`: how kernel names spell an element type."""
    return "s32" if element_type(value) == s32 else f"u{int_ops.bits(value)}"


def select(op: MqcOp) -> Kernel | None:
    """Kernel of an op, None if there is none for its types and use."""
    if isinstance(op, _FUSED):
        return _producer(op)
    result = kind(op.results[0])
    match op:
        case int_ops.RequantOp():
            return _requant(op, result)
        case int_ops.EmbeddingOp():
            return Kernel(f"embedding_{result}", layout="n16k4")
        case int_ops.AttentionOp():
            return Kernel(f"attention_{result}")
        case int_ops.LutOp():
            return Kernel(f"lut_{kind(op.x)}_{result}")
        case int_ops.AddOp():
            return Kernel(f"add_{kind(op.a)}_{kind(op.b)}_{result}")
    found = extension(op)
    return Kernel(found.name) if found is not None else None


def _producer(op: MqcOp) -> Kernel | None:
    users = [use.operation for use in op.results[0].uses]
    if len(users) != 1 or not isinstance(users[0], int_ops.RequantOp):
        return None
    layout = None
    if isinstance(op, int_ops.LinearOp):
        layout = "n16k4" if op.get("weight_bits") == 8 else "n16k4.s4"
    return Kernel(op.name.removeprefix("int."), layout, fused_into="int.requant")


def _requant(op: int_ops.RequantOp, result: str) -> Kernel | None:
    producer = op.x.owner
    returned = any(isinstance(use.operation, func.ReturnOp) for use in op.result.uses)
    if (result == "s32") != returned or (returned and op.get("zero_point") != 0):
        return None
    match producer:
        case int_ops.LinearOp():
            return Kernel(f"linear_{kind(producer.x)}_{result}")
        case _ if returned:
            return None
        case int_ops.NormOp():
            return Kernel(f"norm_{kind(producer.x)}_{result}")
        case int_ops.RopeOp():
            return Kernel(f"rope_{kind(producer.x)}_{result}")
        case int_ops.MulOp():
            return Kernel(f"mul_{kind(producer.a)}_{kind(producer.b)}_{result}")
    return None
