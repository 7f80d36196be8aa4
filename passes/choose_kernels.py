"""`choose-kernels`: ask a backend how it carries out each op, and lay out weights for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp, StringAttr

from mqc.analysis.context import CompilerContext
from mqc.errors import TargetError
from mqc.ir.module import mqc_ops
from mqc.ir.op import MqcOp, WeightAttr
from mqc.numerics.layouts import pack
from mqc.pass_base import Pass
from mqc.registry import backend


@dataclass(frozen=True)
class ChooseKernels(Pass):
    """Attach `kernel` to every op and pack weights into the layout its kernel reads.

    Options:
        backend: name of the backend to ask.

    Raises `TargetError` naming op and types if the backend has no kernel for an op.
    """

    name = "choose-kernels"
    requires: ClassVar[str] = "int"
    ensures: ClassVar[str] = "int"
    backend: str = "cpu"

    def run(self, ctx: CompilerContext, module: ModuleOp) -> None:
        chosen = backend(self.backend)
        packed: dict[tuple[WeightAttr, str], WeightAttr] = {}
        for op in mqc_ops(module):
            kernel = chosen.select(op)
            if kernel is None:
                types = ", ".join(str(v.type) for v in (*op.operands, *op.results))
                raise TargetError(
                    f"backend {chosen.name} has no kernel for {op.name} %{op.value_name} ({types})"
                )
            op.attributes["kernel"] = StringAttr(kernel.name)
            if kernel.fused_into is not None:
                op.attributes["fused_into"] = StringAttr(kernel.fused_into)
            if kernel.layout is not None:
                _pack(ctx, op, kernel.layout, packed)


def _pack(
    ctx: CompilerContext,
    op: MqcOp,
    layout: str,
    packed: dict[tuple[WeightAttr, str], WeightAttr],
) -> None:
    name = "table" if "table" in op.properties else "weight"
    ref = op.properties[name]
    assert isinstance(ref, WeightAttr)
    if (ref, layout) not in packed:
        packed[ref, layout] = ctx.weights.add(ref.key.data, pack(ctx.weights[ref], layout))
    op.properties[name] = packed[ref, layout]
    op.properties["layout"] = StringAttr(layout)
