"""Which kernel carries out each `int` op on the CPU."""

from __future__ import annotations

from xdsl.dialects import func
from xdsl.ir import SSAValue

from mqc.backend import Kernel
from mqc.c_kernels import registered_kernel
from mqc.dialects import int_ops
from mqc.dialects.constraints import bits
from mqc.ir.op import MqcOp, element_type, s32


def kind(value: SSAValue) -> str:
    """`u8`, `u16` or `s32`: how kernel names spell an element type."""
    return "s32" if element_type(value) == s32 else f"u{bits(value)}"


def select(op: MqcOp) -> Kernel | None:
    """Kernel of an op, None if there is none for its types and use."""
    if isinstance(op, int_ops.AccumulatorOp):
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
        case int_ops.JoinOp():
            return Kernel(f"join_{kind(op.a)}_{kind(op.b)}_{result}")
    found = registered_kernel(op)
    return Kernel(found.name) if found is not None else None


def _producer(op: int_ops.AccumulatorOp) -> Kernel | None:
    """The first half of the requant that follows."""
    if op.requant() is None:
        return None
    name, fused = op.name.removeprefix("int."), int_ops.RequantOp.name
    if not isinstance(op, int_ops.LinearOp):
        return Kernel(name, fused_into=fused)
    layout = "n16k4" if op.get("weight_bits") == 8 else "n16k4.s4"
    return Kernel(name, layout, fused, row_sums=True)


def _requant(op: int_ops.RequantOp, result: str) -> Kernel | None:
    producer = op.accumulator
    returned = any(isinstance(use.operation, func.ReturnOp) for use in op.result.uses)
    if (result == "s32") != returned or (returned and op.get("zero_point") != 0):
        return None
    match producer:
        case int_ops.LinearOp() if producer.gates is not None:
            return None if returned else Kernel(f"experts_{kind(producer.x)}_{result}")
        case int_ops.LinearOp():
            return Kernel(f"linear_{kind(producer.x)}_{result}")
        case _ if returned:
            return None
        case int_ops.NormOp():
            return Kernel(f"norm_{kind(producer.x)}_{result}")
        case int_ops.RopeOp():
            return Kernel(f"rope_{kind(producer.x)}_{result}")
        case int_ops.RouteOp():
            return Kernel(f"route_{kind(producer.x)}_{result}")
        case int_ops.CausalConvOp():
            return Kernel(f"convolution_{kind(producer.x)}_{result}")
        case int_ops.LinearAttentionOp():
            return Kernel(f"linear_attention_{result}")
        case int_ops.GateOp():
            return Kernel(f"gate_{kind(producer.x)}_{kind(producer.gates)}_{result}")
        case int_ops.MulOp():
            return Kernel(f"mul_{kind(producer.a)}_{kind(producer.b)}_{result}")
    return None
