"""Where the values of `htp` functions lie in VTCM and when, and whether a schedule respects it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from xdsl.dialects.builtin import IntegerAttr, ModuleOp, TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import SSAValue

from mqc.analysis.liveness import LiveRange
from mqc.dialects.htp_core import VTCM, HtpOp, TransferType, buffer_bytes, space
from mqc.dialects.htp_memory import CacheOp, DmaLoadOp, DmaStoreOp, DmaWaitOp
from mqc.errors import IRError
from mqc.ir.module import function_ops, static_functions
from mqc.ir.op import MqcOp
from mqc.numerics.htp_tiles import VECTOR_BYTES

#: Copies that may be under way at once.
MAX_TRANSFERS = 16


@dataclass(frozen=True)
class Buffer:
    """Memory in VTCM: the op that it stands on, and when it is in use, by number of op.

    size: bytes, with the vector of slack behind it.
    """

    op: MqcOp
    first: int
    last: int
    size: int

    @property
    def offset(self) -> int | None:
        """Its place, None before `allocate-vtcm`."""
        stated = self.op.attributes.get("offset")
        return stated.value.data if isinstance(stated, IntegerAttr) else None


def homes(function: FuncOp) -> dict[SSAValue, MqcOp]:
    """The op on which the memory of each value stands: through waits and values made in tiles."""
    found: dict[SSAValue, MqcOp] = {}
    for op in function_ops(function):
        before = continued(op)
        if isinstance(op, DmaWaitOp):
            before = op.transfer
        found[op.results[0]] = op if before is None else found[before]
    return found


def continued(op: MqcOp) -> SSAValue | None:
    """The operand that an op writes to in place."""
    if isinstance(op, DmaStoreOp):
        return op.dest
    return op.tied() if isinstance(op, HtpOp) else None


def buffers(function: FuncOp) -> list[Buffer]:
    """The buffers of a tiled function, in the order in which they come into use.

    A copy uses its buffer from its begin, and what a copy reads is in use until its wait. Time is linear
    in the number of ops.
    """
    home = homes(function)
    first: dict[MqcOp, int] = {}
    last: dict[MqcOp, int] = {}
    size: dict[MqcOp, int] = {}
    for i, op in enumerate(function_ops(function)):
        used = [operand for operand in op.operands if operand in home]
        if isinstance(op, DmaWaitOp) and isinstance(op.transfer.owner, DmaStoreOp):
            used.append(op.transfer.owner.x)
        last.update({home[value]: i for value in used})
        kind = op.results[0].type
        kind = kind.tensor if isinstance(kind, TransferType) else kind
        if home[op.results[0]] is op and isinstance(kind, TensorType) and space(kind) == VTCM:
            first[op], last[op], size[op] = i, i, buffer_bytes(kind)
    return [Buffer(op, first[op], last[op], size[op]) for op in first]


def lower_bound(buffers: Sequence[Buffer | LiveRange]) -> int:
    """The largest sum of bytes in use at once: no allocation can need less."""
    if not buffers:
        return 0
    changes = [0] * (max(b.last for b in buffers) + 2)
    for b in buffers:
        changes[b.first] += b.size
        changes[b.last + 1] -= b.size
    return max(accumulate(changes))


def is_tiled(function: FuncOp) -> bool:
    """Whether `tile-htp` has given the values of a function memory spaces."""
    kinds = (op.results[0].type for op in function_ops(function))
    return any(isinstance(kind, TensorType) and space(kind) is not None for kind in kinds)


def vtcm_bytes(module: ModuleOp) -> int | None:
    """Bytes of VTCM that the module was allocated for, None before `allocate-vtcm`."""
    stated = module.attributes.get("mqc.vtcm")
    return stated.value.data if isinstance(stated, IntegerAttr) else None


def check_schedule(module: ModuleOp) -> dict[str, int]:
    """Prove that the tiled functions of a module respect memory.

    Every copy is waited for once, and what it reads or writes is left alone until then; a value made in
    tiles is not read once it has been continued; at most 16 copies are under way; every buffer has an
    aligned place in VTCM, and no two in use at once overlap. That nothing is read before its copy has
    ended follows from the types: a copy under way is no tensor.

    Returns the bytes of VTCM that each function uses. Raises `IRError` naming function and value.
    """
    capacity = vtcm_bytes(module)
    if capacity is None:
        raise IRError("the module states no mqc.vtcm; run allocate-vtcm")
    used = {}
    for name, function in static_functions(module).items():
        _check_transfers(name, function)
        used[name] = max((end for end in _check_places(name, function, capacity)), default=0)
    return used


def _check_transfers(name: str, function: FuncOp) -> None:
    active: set[SSAValue] = set()
    for op in function_ops(function):
        result = op.results[0]
        if isinstance(op, DmaWaitOp):
            active.discard(op.transfer)
        elif isinstance(op, DmaLoadOp | DmaStoreOp):
            waits = [use.operation for use in result.uses]
            if len(waits) != 1 or not isinstance(waits[0], DmaWaitOp):
                raise IRError(f"@{name}: {op.name} %{op.value_name} must be waited for by one htp.dma_wait")
            active.add(result)
            if len(active) > MAX_TRANSFERS:
                raise IRError(f"@{name}: more than {MAX_TRANSFERS} copies are under way at %{op.value_name}")
        before = continued(op)
        if before is not None and not before.has_one_use():
            raise IRError(
                f"@{name}: {op.name} %{op.value_name} continues %{before.name_hint} in place, "
                "which another op uses too"
            )
    if active:
        raise IRError(f"@{name}: a copy is still under way at the end")


def _check_places(name: str, function: FuncOp, capacity: int) -> Iterator[int]:
    live: list[Buffer] = []
    for buffer in buffers(function):
        begin, value = buffer.offset, buffer.op.value_name
        if begin is None or begin < 0 or begin + buffer.size > capacity:
            raise IRError(
                f"@{name}: %{value} of {buffer.size} bytes has no place in VTCM of {capacity} bytes; "
                "run allocate-vtcm"
            )
        if begin % VECTOR_BYTES:
            raise IRError(f"@{name}: %{value} lies at {begin}, no multiple of {VECTOR_BYTES}")
        live = [other for other in live if other.last >= buffer.first]
        for other in live:
            assert other.offset is not None
            if begin < other.offset + other.size and other.offset < begin + buffer.size:
                raise IRError(
                    f"@{name}: %{value} lies on %{other.op.value_name}, which is in use until "
                    f"op {other.last}; run allocate-vtcm"
                )
        live.append(buffer)
        yield begin + buffer.size


def state_layout(module: ModuleOp) -> tuple[dict[str, int], int]:
    """Where the states of @main begin in the NPU's memory for them (DDR), by name; and its size in bytes."""
    places: dict[str, int] = {}
    end = 0
    for function in static_functions(module).values():
        for op in function_ops(function):
            if isinstance(op, CacheOp) and op.state not in places:
                places[op.state] = end
                end += buffer_bytes(op.results[0].type)
    return places, end
