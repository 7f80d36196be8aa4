"""Which `htp` op carries out each `int` op."""

from __future__ import annotations

from mqc.backend import Kernel
from mqc.dialects import htp_attention, htp_compute, int_ops
from mqc.dialects.htp_core import HtpOp
from mqc.ir.op import MqcOp

#: The op that carries out an `int` op; products of accumulators run with the requant behind them.
_FORMS: dict[type[MqcOp], type[HtpOp]] = {
    int_ops.EmbeddingOp: htp_compute.GatherTokensOp,
    int_ops.LinearOp: htp_compute.FullyConnectedOp,
    int_ops.RmsNormOp: htp_compute.RmsNormOp,
    int_ops.LayerNormOp: htp_compute.LayerNormOp,
    int_ops.RopeOp: htp_compute.RotaryEmbeddingOp,
    int_ops.MulOp: htp_compute.MultiplyOp,
    int_ops.AttentionOp: htp_attention.MaskedSoftmaxOp,
    int_ops.LutOp: htp_compute.NeuronOp,
    int_ops.AddOp: htp_compute.AddOp,
}


def select(op: MqcOp) -> Kernel | None:
    """The `htp` op that an `int` op becomes, None if there is none."""
    if isinstance(op, int_ops.RequantOp):
        owner = op.x.owner
        found = _FORMS.get(type(owner)) if isinstance(owner, MqcOp) else None
        return None if found is None else Kernel(found.name)
    found = _FORMS.get(type(op))
    if found is None:
        return None
    users = [use.operation for use in op.results[0].uses]
    fused = len(users) == 1 and isinstance(users[0], int_ops.RequantOp)
    return Kernel(found.name, fused_into="int.requant" if fused else None)
