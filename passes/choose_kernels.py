"""`choose-kernels`: ask a backend how it carries out each op, and lay out weights for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp, StringAttr

from mqc.analysis.context import CompilerContext
from mqc.backend import Kernel
from mqc.costs import ModelSize, Work
from mqc.dialects.int_core import IntOp
from mqc.dialects.int_ops import LinearOp
from mqc.errors import TargetError, UnsupportedOpError
from mqc.ir.module import mqc_ops
from mqc.ir.op import WeightAttr
from mqc.ir.weight_store import WeightStore
from mqc.numerics.layouts import pack, unpack
from mqc.numerics.products import effective_weight, row_sums
from mqc.pass_base import Pass
from mqc.registry import backend


@dataclass(frozen=True)
class ChooseKernels(Pass):
    """Attach `kernel` to every op and bring weights into the layout its kernel reads.

    A module whose kernels were chosen for another backend is laid out anew, matrix by matrix.

    Options:
        backend: name of the backend to ask.

    Raises `TargetError` naming op and types if the backend has no kernel for an op; `UnsupportedOpError`
    before the first pass runs, if the kind of op tells that.
    """

    name = "choose-kernels"
    requires: ClassVar[str] = "int"
    ensures: ClassVar[str] = "int"
    backend: str = "cpu"

    def __post_init__(self) -> None:
        backend(self.backend)

    def check(self, module: ModuleOp, before: Sequence[Pass]) -> None:
        chosen = backend(self.backend)
        for op in mqc_ops(module):
            if (why := chosen.refuses(op)) is not None:
                raise UnsupportedOpError(f"%{op.value_name}", op.name, why)

    def work(self, size: ModelSize, length: int) -> Work:
        return Work(written=size.weights + size.logits)

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        chosen = backend(self.backend)
        ops = list(mqc_ops(module))
        laid_out: dict[tuple[WeightAttr, str | None, str | None], WeightAttr] = {}
        for i, op in enumerate(ops):
            kernel = chosen.select(op)
            if kernel is None:
                types = ", ".join(str(v.type) for v in (*op.operands, *op.results))
                raise TargetError(
                    f"backend {chosen.name} has no kernel for {op.name} %{op.value_name} ({types})"
                )
            op.attributes["kernel"] = StringAttr(kernel.name)
            op.attributes.pop("fused_into", None)
            if kernel.fused_into is not None:
                op.attributes["fused_into"] = StringAttr(kernel.fused_into)
            if isinstance(op, IntOp) and op.MATRIX is not None:
                _lay_out(ctx.weights, op, op.MATRIX, kernel, laid_out)
            ctx.progress(self.name, (i + 1) / len(ops))
        return True


def _lay_out(
    weights: WeightStore,
    op: IntOp,
    name: str,
    kernel: Kernel,
    known: dict[tuple[WeightAttr, str | None, str | None], WeightAttr],
) -> None:
    """Bring the op's matrix into the kernel's layout, from whatever layout it is in."""
    ref, layout = op.properties[name], op.get("layout")
    assert isinstance(ref, WeightAttr)
    matrix = weights[ref] if layout is None else unpack(weights[ref], layout, *op.matrix_shape)
    if kernel.row_sums and isinstance(op, LinearOp) and op.row_sums is None:
        factor = None if op.group_scale is None else weights[op.group_scale]
        sums = row_sums(effective_weight(matrix, factor), *op.sums_shape[1:])
        op.properties["row_sums"] = weights.add(f"{ref.key.data}.row_sums", sums)
    if layout == kernel.layout:
        return
    if (ref, layout, kernel.layout) not in known:
        packed = matrix if kernel.layout is None else pack(matrix, kernel.layout)
        known[ref, layout, kernel.layout] = weights.add(ref.key.data, packed)
    op.properties[name] = known[ref, layout, kernel.layout]
    op.properties.pop("layout", None)
    if kernel.layout is not None:
        op.properties["layout"] = StringAttr(kernel.layout)
