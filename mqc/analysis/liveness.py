"""When each value of a program is alive, and whether a memory plan respects it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xdsl.dialects import func
from xdsl.dialects.builtin import IntegerAttr, ModuleOp

from mqc.dialects.constraints import bits
from mqc.errors import IRError
from mqc.ir.module import mqc_ops
from mqc.ir.op import MqcOp, channels

#: Bytes that offsets and sizes of values are multiples of.
ALIGNMENT = 64


@dataclass(frozen=True)
class LiveRange:
    """A value in memory: the op that writes it, from its number to that of its last reader.

    size: bytes per token, a multiple of `ALIGNMENT`.
    """

    op: MqcOp
    first: int
    last: int
    size: int


def live_ranges(module: ModuleOp) -> Iterator[LiveRange]:
    """The values of an `int` module that lie in memory, in program order.

    Values that a kernel fuses away and the logits, which go to the caller, do not.
    """
    order = {op: i for i, op in enumerate(mqc_ops(module))}
    for i, op in enumerate(order):
        users = [use.operation for use in op.results[0].uses]
        if "fused_into" in op.attributes or any(isinstance(u, func.ReturnOp) for u in users):
            continue
        size = -(-channels(op.results[0]) * bits(op.results[0]) // 8 // ALIGNMENT) * ALIGNMENT
        yield LiveRange(op, i, max((_last_use(u, order) for u in users), default=i), size)


def _last_use(user: object, order: dict[MqcOp, int]) -> int:
    """When a user reads the value: a fused op reads it when the op it is fused into runs."""
    assert isinstance(user, MqcOp)
    while "fused_into" in user.attributes:
        (use,) = user.results[0].uses
        assert isinstance(use.operation, MqcOp)
        user = use.operation
    return order[user]


def check_memory_plan(module: ModuleOp) -> int:
    """Prove that every value lies inside the arena and no two live ones overlap.

    Returns `mqc.arena`, bytes per token. Raises `IRError` naming the value.
    """
    arena = _integer(module.attributes.get("mqc.arena"))
    if arena is None or arena < 0:
        raise IRError("the module states no mqc.arena; run plan-memory")
    live: list[tuple[int, int, LiveRange]] = []  # (begin, end, value)
    for value in live_ranges(module):
        begin = _integer(value.op.attributes.get("offset"))
        if begin is None or begin < 0 or begin % ALIGNMENT or begin + value.size > arena:
            raise IRError(
                f"%{value.op.value_name} has no place in the arena of {arena} bytes; run plan-memory"
            )
        live = [other for other in live if other[2].last >= value.first]
        for low, high, other in live:
            if begin < high and low < begin + value.size:
                raise IRError(
                    f"%{value.op.value_name} lies on %{other.op.value_name}, which is read later; "
                    "run plan-memory"
                )
        live.append((begin, begin + value.size, value))
    return arena


def _integer(attribute: object) -> int | None:
    return attribute.value.data if isinstance(attribute, IntegerAttr) else None
