"""Layers whose integers are shared out among processes, by torch's FSDP2."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, share_comm_ctx
from torch.utils.checkpoint import checkpoint

from mqc.ir.op import MqcOp
from mqc.learning.student import Student, Values


def shard(student: Student, layers: tuple[tuple[MqcOp, ...], ...], processes: int) -> list[ShardedLayer]:
    """Share out the offsets of a student's layers, in place of the whole ones."""
    mesh = init_device_mesh(student.device.type, (processes,))
    found: list[Any] = [ShardedLayer(student, layer, mesh) for layer in layers]
    share_comm_ctx(found)  # else each keeps its whole gradient until the backward pass ends
    return found


class ShardedLayer(torch.nn.Module):
    """Evaluates the ops of a layer of a student. Of the offsets of its integers each process keeps its rows;
    the whole exists while the layer is evaluated, and in the backward pass.

    Gradients are sums over all processes, which must evaluate a layer, and its gradient, equally often.
    """

    def __init__(self, student: Student, layer: tuple[MqcOp, ...], mesh: DeviceMesh) -> None:
        super().__init__()
        self._student, self._layer = student, layer
        offsets = student.parameters.offsets
        self._names = [name for op in layer if (name := student.names[op]) in offsets]
        self._offsets = torch.nn.ParameterList([offsets.pop(name) for name in self._names])
        sharded: Any = fully_shard(self, mesh=mesh, reshard_after_forward=True)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other
        offsets.update(zip(self._names, self._offsets, strict=True))

    def forward(self, values: Values, recompute: bool) -> torch.Tensor:
        """The result of the layer's last op, from the values that it reads.

        recompute: in the backward pass, rather than keep what is between.
        """
        return checkpoint(self._run, values, use_reentrant=False) if recompute else self._run(values)

    def _run(self, values: Values) -> torch.Tensor:
        with self._student.with_whole(dict(zip(self._names, self._offsets, strict=True))):
            return self._student.run_ops(self._layer, values)
