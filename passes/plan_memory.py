"""`plan-memory`: place every value in one arena, reusing the space of dead ones."""

from __future__ import annotations

from typing import ClassVar

from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp

from mqc.dialects.core import MqcOp, attr, channels
from mqc.dialects.int_ops import bits
from mqc.ir import CompilerContext, mqc_ops
from mqc.pass_base import Pass

ALIGNMENT = 64


class PlanMemory(Pass):
    """Give each op whose result lives in memory an `offset`, in bytes per token of a chunk.

    A value occupies its space from its op to its last user; the lowest free place that is large
    enough is taken (first fit, in program order). Values that a kernel fuses away and the logits,
    which go to the caller, take none. The module gets `mqc.arena`, the bytes per token in all.
    """

    name = "plan-memory"
    requires: ClassVar[str] = "int"
    ensures: ClassVar[str] = "int"

    def run(self, ctx: CompilerContext, module: ModuleOp) -> None:
        ops = list(mqc_ops(module))
        order = {op: i for i, op in enumerate(ops)}
        live: list[tuple[int, int, int]] = []  # (offset, end, last use)
        arena = 0
        for i, op in enumerate(ops):
            live = [interval for interval in live if interval[2] >= i]
            users = [use.operation for use in op.results[0].uses]
            if "fused_into" in op.attributes or any(isinstance(u, func.ReturnOp) for u in users):
                continue
            size = -(-channels(op.results[0]) * bits(op.results[0]) // 8 // ALIGNMENT) * ALIGNMENT
            start = 0
            for begin, end, _ in sorted(live):
                if start + size <= begin:
                    break
                start = max(start, end)
            live.append((start, start + size, max((_last_use(u, order) for u in users), default=i)))
            arena = max(arena, start + size)
            op.attributes["offset"] = attr(start)
        module.attributes["mqc.arena"] = attr(arena)


def _last_use(user: object, order: dict[MqcOp, int]) -> int:
    """When a user reads the value: a fused op reads it when the op it is fused into runs."""
    assert isinstance(user, MqcOp)
    while "fused_into" in user.attributes:
        (use,) = user.results[0].uses
        assert isinstance(use.operation, MqcOp)
        user = use.operation
    return order[user]
