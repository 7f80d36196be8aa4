"""`allocate-vtcm`: give every buffer of a tiled program its place in VTCM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.htp_schedule import Buffer, buffers, lower_bound
from mqc.costs import ModelSize, Work
from mqc.errors import TargetError
from mqc.ir.module import static_functions
from mqc.ir.op import attr
from mqc.pass_base import Pass


@dataclass(frozen=True)
class AllocateVtcm(Pass):
    """Place buffers so that those in use at once do not overlap: the largest first, each at the lowest
    place that is free while it is in use.

    Options:
        vtcm_bytes: bytes of VTCM; 8 MiB on Snapdragon 8 Gen 2 and 8 Gen 3.

    Each function gets `vtcm_peak`, the bytes that it uses, and `vtcm_live`, the largest sum of bytes in
    use at once, below which no allocation can come. Time grows with the number of pairs of buffers that
    are in use at once. Raises `TargetError` naming what is in use where VTCM is too small.
    """

    name = "allocate-vtcm"
    requires: ClassVar[str] = "htp"
    ensures: ClassVar[str] = "htp"
    vtcm_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        self.expect(self.vtcm_bytes >= 1, f"vtcm_bytes must be 1 or more, got {self.vtcm_bytes}")

    def work(self, size: ModelSize, length: int) -> Work:
        return Work()

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        for name, function in static_functions(module).items():
            found = buffers(function)
            peak = self.place(name, found)
            function.attributes["vtcm_peak"] = attr(peak)
            function.attributes["vtcm_live"] = attr(lower_bound(found))
        module.attributes["mqc.vtcm"] = attr(self.vtcm_bytes)
        return True

    def place(self, name: str, found: list[Buffer]) -> int:
        occupied: dict[int, list[tuple[int, int]]] = {}  # by number of op, the places in use
        peak = 0
        for buffer in sorted(found, key=lambda b: (-b.size, b.first)):
            times = range(buffer.first, buffer.last + 1)
            start = 0
            for begin, end in sorted({place for t in times for place in occupied.get(t, ())}):
                if start + buffer.size <= begin:
                    break
                start = max(start, end)
            if start + buffer.size > self.vtcm_bytes:
                live = sorted(
                    (b for b in found if b.first <= buffer.last and buffer.first <= b.last),
                    key=lambda b: -b.size,
                )
                listed = ", ".join(f"%{b.op.value_name} {b.size}" for b in live[:6])
                raise TargetError(
                    f"npu: @{name} does not fit VTCM of {self.vtcm_bytes} bytes: in use at once are "
                    f"{listed} bytes, …; use fewer tokens or a smaller context (lower-to-htp), smaller "
                    "tiles (tile-htp), or more VTCM"
                )
            for t in times:
                occupied.setdefault(t, []).append((start, start + buffer.size))
            buffer.op.attributes["offset"] = attr(start)
            peak = max(peak, start + buffer.size)
        return peak
