"""The time line of a tiled `htp` function on a chip, from its schedule.

Nothing here is measured. One DMA queue copies while compute ops run in order; a wait stalls until its copy
has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from xdsl.dialects.builtin import IntegerAttr, TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import SSAValue

from mqc.analysis.htp_schedule import buffers, is_tiled, lower_bound
from mqc.backend import Span
from mqc.backends.npu.chips import Chip
from mqc.backends.npu.cost import FREE, Cost, cost
from mqc.dialects.htp_memory import DmaLoadOp, DmaStoreOp, DmaWaitOp
from mqc.errors import IRError
from mqc.ir.module import function_ops
from mqc.ir.op import MqcOp

#: What can bound an op.
BOUNDS = ("ddr", "vtcm", "matrix", "hvx", "dma set-up")


@dataclass(frozen=True)
class Row:
    """An op in the schedule. kind: its name; for a copy or a wait, of the op that uses the data.

    begin: when it began. seconds: how long it held up what follows, of which `stalled` waiting for a
    copy. bound: one of `BOUNDS`. span: when the op itself is at work, or waits.
    """

    op: str
    value: str
    kind: str
    begin: float
    seconds: float
    stalled: float
    bound: str
    cost: Cost
    span: Span = field(repr=False)


@dataclass(frozen=True)
class KindTotal:
    """Sum of the rows of a kind. bound: what most of the time is bound by."""

    ops: int
    seconds: float
    stalled: float
    ddr_bytes: float
    macs: float
    bound: str


@dataclass(frozen=True)
class FunctionCost:
    """One run of a function. vtcm_peak: bytes of VTCM in use at most. busy: seconds that each unit
    works, the longest first; units work at the same time."""

    tokens: int
    seconds: float
    joules: float
    vtcm_peak: int
    busy: dict[str, float]
    rows: list[Row] = field(repr=False)

    @property
    def ddr_bytes(self) -> float:
        return sum(row.cost.ddr_bytes for row in self.rows)

    @property
    def macs(self) -> float:
        return sum(row.cost.macs for row in self.rows)

    @property
    def per_token(self) -> dict[str, float]:
        totals = {"seconds": self.seconds, "joules": self.joules, "ddr_bytes": self.ddr_bytes}
        return {name: total / self.tokens for name, total in totals.items()}

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that ops account for by what bounds them, the largest first. They add up to the time."""
        return _bounds(self.rows)

    @property
    def kinds(self) -> dict[str, KindTotal]:
        """By kind of op, the slowest first."""
        grouped: dict[str, list[Row]] = {}
        for row in self.rows:
            grouped.setdefault(row.kind, []).append(row)
        totals = {
            kind: KindTotal(
                sum(row.op == kind for row in rows),
                sum(row.seconds for row in rows),
                sum(row.stalled for row in rows),
                sum(row.cost.ddr_bytes for row in rows),
                sum(row.cost.macs for row in rows),
                next(iter(_bounds(rows))),
            )
            for kind, rows in grouped.items()
        }
        return dict(sorted(totals.items(), key=lambda item: -item[1].seconds))


def _bounds(rows: Iterable[Row]) -> dict[str, float]:
    found = dict.fromkeys(BOUNDS, 0.0)
    for row in rows:
        found[row.bound] += row.seconds
    return _descending(found)


def _descending(found: dict[str, float]) -> dict[str, float]:
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _busy(rows: list[Row], chip: Chip) -> dict[str, float]:
    copies = sum(row.op in (DmaLoadOp.name, DmaStoreOp.name) for row in rows)
    found = dict.fromkeys(BOUNDS, 0.0) | {"dma set-up": copies * chip.dma_setup_s}
    for row in rows:
        for unit, seconds in row.cost.seconds(chip).items():
            found[unit] += seconds
    return _descending(found)


def function_cost(function: FuncOp, chip: Chip, filled: int | None = None) -> FunctionCost:
    """The schedule of a tiled function, simulated. filled: see `cost`.

    Raises `IRError` if the function is not tiled.
    """
    if not is_tiled(function):
        raise IRError(f"@{function.sym_name.data} is not tiled; run tile-htp")
    rows = list(_schedule(function, chip, filled))
    seconds = max((row.begin + row.seconds for row in rows), default=0.0)
    joules = sum(row.cost.joules(chip) for row in rows) + chip.static_w * seconds
    stated = function.attributes.get("vtcm_peak")
    peak = stated.value.data if isinstance(stated, IntegerAttr) else lower_bound(buffers(function))
    ids = function.body.block.args[0].type
    assert isinstance(ids, TensorType)
    return FunctionCost(ids.get_shape()[0], seconds, joules, peak, _busy(rows, chip), rows)


def _schedule(function: FuncOp, chip: Chip, filled: int | None) -> Iterator[Row]:
    now = queue = 0.0  # when the compute units, and the DMA queue, are free
    ends: dict[SSAValue, tuple[float, str]] = {}  # of copies under way
    for op in function_ops(function):
        if isinstance(op, FREE) and not isinstance(op, DmaWaitOp):
            continue
        asked, result = cost(op, chip, filled), op.results[0]
        begin, stalled, bound = now, 0.0, "ddr"
        times = asked.seconds(chip)
        if isinstance(op, DmaLoadOp | DmaStoreOp):
            unit, start, work = "DMA", max(queue, now), chip.dma_setup_s + times["ddr"]
            queue = start + work
            ends[result] = queue, "ddr" if times["ddr"] >= chip.dma_setup_s else "dma set-up"
        elif isinstance(op, DmaWaitOp):
            end, bound = ends.pop(op.transfer)
            stalled = max(0.0, end - now)
            unit, start, work = "waiting for DMA", now, stalled
            now += stalled
        else:
            bound = max(times, key=lambda name: times[name])
            unit, start, work = "matrix unit" if asked.matrix_cycles else "HVX", now, times[bound]
            now += work
        facts = {"bound": bound, "ddr_bytes": asked.ddr_bytes, "macs": asked.macs}
        span = Span(unit, op.value_name, op.name, start, work, facts)
        yield Row(op.name, op.value_name, _kind(op), begin, now - begin, stalled, bound, asked, span)


def _kind(op: MqcOp) -> str:
    """The name of the op, or of the one that a copy serves."""
    if isinstance(op, DmaWaitOp):
        owner = op.transfer.owner
        assert isinstance(owner, DmaLoadOp | DmaStoreOp)
        return _kind(owner)
    if isinstance(op, DmaStoreOp):
        made = op.x.owner
        return made.name if isinstance(made, MqcOp) else op.name
    if isinstance(op, DmaLoadOp):
        waits = (use.operation for use in op.result.uses)
        users = [use.operation for wait in waits for use in wait.results[0].uses]
        return users[0].name if users else op.name
    return op.name
