"""The `htp` dialect: the program of a Hexagon-style NPU, with static shapes, explicit memories and DMA.

Modelled on the ops of Qualcomm's HTP (`HtpOp.QNN`). Semantics are those of the `int` ops, bit for bit.
"""

from __future__ import annotations

from typing import Any

from xdsl.ir import Dialect, Operation

from mqc.dialects import htp_attention, htp_compute, htp_memory
from mqc.dialects.htp_core import HtpOp, TransferType
from mqc.dialects.int_ops import Int, RequantOp
from mqc.ir.op import MqcOp, channels

Htp = Dialect(
    "htp",
    [
        htp_memory.ConstantOp, htp_memory.CacheOp, htp_memory.EmptyOp, htp_memory.StridedSliceOp,
        htp_memory.DmaLoadOp, htp_memory.DmaStoreOp, htp_memory.DmaWaitOp,
        htp_compute.GatherTokensOp, htp_compute.GatherPositionsOp, htp_compute.FullyConnectedOp,
        htp_compute.RmsNormOp, htp_compute.LayerNormOp, htp_compute.RotaryEmbeddingOp,
        htp_compute.MultiplyOp, htp_compute.AddOp, htp_compute.NeuronOp,
        htp_attention.CacheWriteKeysOp, htp_attention.CacheWriteValuesOp, htp_attention.MatMulKeysOp,
        htp_attention.MaskedSoftmaxOp, htp_attention.MatMulValuesOp,
    ],
    [TransferType],
)  # fmt: skip

_CARRIERS: dict[type[MqcOp], type[HtpOp]] = {
    op.CARRIES: op for op in Htp.operations if issubclass(op, HtpOp) and op.CARRIES is not None
}


#: By the name that an op has on levels `llm` and `int` alike.
_INT: dict[str, type[Operation]] = {op.name.partition(".")[2]: op for op in Int.operations}


def _moves(norm: MqcOp) -> bool:
    """Whether products alone read a norm, so that `fold-norm` makes its bias theirs."""
    return all(use.operation.name == "llm.linear" for use in norm.results[0].uses)


def without_form(op: MqcOp) -> str:
    """What of an `llm` or `int` op no `htp` op carries out yet, in words; empty if nothing."""
    name = op.name.partition(".")[2]
    kind = _INT.get(name)
    if kind not in (None, RequantOp) and kind not in _CARRIERS:
        return op.name
    operands: Any = op
    if name == "linear" and operands.gates is not None:
        return f"{op.name} of experts"
    if name == "layer_norm" and operands.bias is not None and not _moves(op):
        return f"{op.name} with a bias that no product takes up"
    if name == "attention" and operands.chunk is not None:
        return f"{op.name} in chunks"
    if name == "attention" and operands.sinks is not None:
        return f"{op.name} with sinks"
    if name == "attention" and operands.softcap is not None:
        return f"{op.name} with a softcap"
    if name == "attention" and operands.key_bias is not None:
        return f"{op.name} with a bias of keys"
    if name == "attention" and channels(operands.k) != channels(operands.v):
        return f"{op.name} with values of another width than keys"
    return ""


def carrier(op: MqcOp) -> type[HtpOp] | None:
    """The `htp` op that carries out an `int` op, with the requantization behind it if there is one."""
    return None if without_form(op) else _CARRIERS.get(type(op))
