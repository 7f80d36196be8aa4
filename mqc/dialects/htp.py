"""The `htp` dialect: the program of a Hexagon-style NPU, with static shapes, explicit memories and DMA.

Modelled on the ops of Qualcomm's HTP (`HtpOp.QNN`). Semantics are those of the `int` ops, bit for bit.
"""

from __future__ import annotations

from xdsl.ir import Dialect

from mqc.dialects import htp_attention, htp_compute, htp_memory
from mqc.dialects.htp_core import HtpOp, TransferType
from mqc.ir.op import MqcOp

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


def carrier(op: MqcOp) -> type[HtpOp] | None:
    """The `htp` op that carries out an `int` op, with the requantization behind it if there is one."""
    return _CARRIERS.get(type(op))
