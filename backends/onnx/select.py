"""Which `int` ops have an ONNX form, and how their weights are laid out. Needs no ONNX package."""

from __future__ import annotations

from mqc.backend import Kernel
from mqc.dialects import int_ops
from mqc.ir.op import MqcOp

#: Method of a form (`mqc.backends.onnx.emitter`) that emits each op.
RULES: dict[type[MqcOp], str] = {
    int_ops.EmbeddingOp: "embedding",
    int_ops.LinearOp: "linear",
    int_ops.RequantOp: "requant",
    int_ops.RmsNormOp: "norm",
    int_ops.LayerNormOp: "norm",
    int_ops.RopeOp: "rope",
    int_ops.AttentionOp: "attention",
    int_ops.LutOp: "lut",
    int_ops.MulOp: "mul",
    int_ops.AddOp: "add",
    int_ops.JoinOp: "join",
    int_ops.RouteOp: "route",
    int_ops.GateOp: "gate",
    int_ops.CausalConvOp: "convolution",
}


#: By the name that an op has on levels `llm` and `int` alike: those of the ops that no form has.
_MISSING = {op.name.partition(".")[2] for op in int_ops.Int.operations if op not in RULES}


def refuses(op: MqcOp) -> str | None:
    """Why what an `llm` op becomes has no form; None if it may have one."""
    missing = op.name.partition(".")[2] in _MISSING
    return "has no form in ONNX yet; target cpu-int8 has one" if missing else None


def select(op: MqcOp) -> Kernel | None:
    """The op's own name as kernel, None if no form has it."""
    if type(op) not in RULES:
        return None
    layout = None
    if isinstance(op, int_ops.EmbeddingOp):
        layout = "kn"  # a table that gives the logits too stands once
    if isinstance(op, int_ops.LinearOp):
        layout = "kn" if op.get("weight_bits") == 8 else "kn.s4"
    return Kernel(op.name.removeprefix("int."), layout)
