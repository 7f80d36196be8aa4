"""`plan-memory`: place every value in one arena, reusing the space of dead ones."""

from __future__ import annotations

from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.liveness import live_ranges
from mqc.costs import ModelSize, Work
from mqc.ir.op import attr
from mqc.pass_base import Pass


class PlanMemory(Pass):
    """Give each op whose result lives in memory an `offset`, in bytes per token of a chunk.

    A value occupies its space from its op to its last user; the lowest free place that is large
    enough is taken (first fit, in program order). Values that a kernel fuses away and the logits,
    which go to the caller, take none. The module gets `mqc.arena`, the bytes per token in all.
    """

    name = "plan-memory"
    requires: ClassVar[str] = "int"
    ensures: ClassVar[str] = "int"

    def work(self, size: ModelSize, length: int) -> Work:
        return Work()

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        live: list[tuple[int, int, int]] = []  # (offset, end, last use)
        arena = 0
        for value in live_ranges(module):
            live = [interval for interval in live if interval[2] >= value.first]
            start = 0
            for begin, end, _ in sorted(live):
                if start + value.size <= begin:
                    break
                start = max(start, end)
            live.append((start, start + value.size, value.last))
            arena = max(arena, start + value.size)
            value.op.attributes["offset"] = attr(start)
        module.attributes["mqc.arena"] = attr(arena)
        return True
