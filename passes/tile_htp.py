"""`tile-htp`: bring weights and cache through VTCM in tiles, by double-buffered DMA."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.analysis.context import CompilerContext
from mqc.costs import ModelSize, Work
from mqc.dialects.htp_compute import FullyConnectedOp
from mqc.dialects.htp_core import DDR, VTCM, HtpOp, TransferType, in_space, shape, static
from mqc.dialects.htp_memory import (
    ConstantOp,
    DmaLoadOp,
    DmaStoreOp,
    DmaWaitOp,
    EmptyOp,
    StridedSliceOp,
)
from mqc.ir.module import static_functions
from mqc.ir.op import MqcOp, element_type, s32
from mqc.numerics.htp_tiles import LANES
from mqc.pass_base import Pass


@dataclass(frozen=True)
class TileHtp(Pass):
    """Give every value a memory space, and move what lies in DDR by DMA.

    A constant or a head of the cache is copied to VTCM before the op that reads it; what several ops
    read is copied once. A matrix comes in tiles of whole records, of which each makes some columns of
    the result; logits leave in such tiles. Each copy begins when the one before has ended, while the
    data of that one is being used.

    Options:
        tile_bytes: most bytes of a tile of weights, and of a tile of logits.
    """

    name = "tile-htp"
    requires: ClassVar[str] = "htp"
    ensures: ClassVar[str] = "htp"
    tile_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        self.expect(self.tile_bytes >= 1, f"tile_bytes must be 1 or more, got {self.tile_bytes}")

    def work(self, size: ModelSize, length: int) -> Work:
        return Work(written=size.weights + size.logits)

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        functions = static_functions(module)
        for i, function in enumerate(functions.values()):
            _Tiling(function, self.tile_bytes).run()
            ctx.progress(self.name, (i + 1) / len(functions))
        return True


class _Tiling:
    def __init__(self, function: func.FuncOp, tile_bytes: int) -> None:
        self.function, self.tile_bytes = function, tile_bytes
        self.values: dict[SSAValue, SSAValue] = {}
        self.ops: list[MqcOp] = []
        self.loaded: dict[SSAValue, SSAValue] = {}
        self.loc: Any = None

    def run(self) -> None:
        block = self.function.body.block
        *old, last = block.ops
        for op in (*old, last):
            op.detach()
        self.values.update({arg: arg for arg in block.args})
        returned = last.operands[0] if last.operands else None
        for op in old:
            assert isinstance(op, HtpOp)
            self.loc = op.attributes.get("loc")
            if isinstance(op, FullyConnectedOp):
                self.values[op.result] = self.fully_connected(op, op.result is returned)
            elif not isinstance(op, StridedSliceOp):
                self.values[op.results[0]] = self.move(op)
        block.add_ops(_prefetched(self.ops))
        results = [self.values[value] for value in last.operands]
        block.add_op(func.ReturnOp(*results))
        for op in (last, *reversed(old)):
            op.drop_all_references()
            op.erase(safe_erase=False)
        inputs = [arg.type for arg in block.args]
        self.function.function_type = type(self.function.function_type).from_lists(
            inputs, [value.type for value in results]
        )

    def emit(self, kind: type[MqcOp], operands: list[SSAValue], result: Any, name: Any, **p: Any) -> SSAValue:
        op = kind.build_op(operands, result, name, **p)
        if self.loc is not None:
            op.attributes["loc"] = self.loc
        self.ops.append(op)
        value: SSAValue = op.results[0]
        return value

    def move(self, op: HtpOp) -> SSAValue:
        """The op with its values in memory."""
        operands = []
        for name, port in op.PORTS.items():
            if name != "result" and (value := getattr(op, name)) is not None:
                operands.append(self.load(value) if port.space == VTCM else self.values[value])
        where = op.PORTS["result"].space if "result" in op.PORTS else VTCM
        if isinstance(op, ConstantOp):
            where = DDR
        result = in_space(op.results[0].type, where)
        return self.emit(type(op), operands, result, op.results[0].name_hint, **op.properties)

    def load(self, value: SSAValue) -> SSAValue:
        """A value in VTCM: itself if it was computed there, else a copy."""
        owner = value.owner
        if not isinstance(owner, ConstantOp | StridedSliceOp):
            return self.values[value]
        if value not in self.loaded:
            source, first = (owner.x, owner.get("first")) if isinstance(owner, StridedSliceOp) else (value, 0)
            self.loaded[value] = self.copy(self.values[source], first, shape(value)[0])
        return self.loaded[value]

    def copy(self, source: SSAValue, first: int, count: int) -> SSAValue:
        kind = static(element_type(source), count, *shape(source)[1:], space=VTCM)
        transfer = self.emit(DmaLoadOp, [source], TransferType(kind), source.name_hint, first=first)
        return self.emit(DmaWaitOp, [transfer], kind, source.name_hint)

    def fully_connected(self, op: FullyConnectedOp, logits: bool) -> SSAValue:
        """The product in tiles of records."""
        records, tile = op.records(), self.tile_bytes
        x, weight = self.load(op.x), self.values[op.weight]
        per_tile = max(1, tile // records.record_bytes)
        if logits:
            per_tile = max(1, min(per_tile, tile // (4 * op.tokens * LANES)))
        name = op.result.name_hint
        result = in_space(op.result.type, DDR if logits else VTCM)
        shared = {k: v for k, v in op.properties.items() if k not in ("outputs", "first")}
        whole = per_tile >= records.count and not logits
        dest = None if whole else self.emit(EmptyOp, [], result, name)
        for begin in range(0, records.count, per_tile):
            count = min(per_tile, records.count - begin)
            first = begin * LANES
            outputs = min(count * LANES, records.outputs - first)
            operands = [x, self.copy(weight, begin, count)]
            if logits:
                assert dest is not None
                kind = static(s32, op.tokens, outputs, space=VTCM)
                tile_value = self.emit(
                    FullyConnectedOp, operands, kind, name, outputs=outputs, first=0, **shared
                )
                store = self.emit(DmaStoreOp, [tile_value, dest], TransferType(result), name, first=first)
                dest = self.emit(DmaWaitOp, [store], result, name)
                continue
            operands += [] if dest is None else [dest]
            dest = self.emit(FullyConnectedOp, operands, result, name, outputs=outputs, first=first, **shared)
        assert dest is not None
        return dest


def _prefetched(ops: list[MqcOp]) -> Iterator[MqcOp]:
    """The ops with each load moved up to the end of the load before it, or to where its source is made;
    and the wait for a store moved down to the next store. Constants stand first."""
    constants = [op for op in ops if isinstance(op, ConstantOp)]
    yield from constants
    made: set[SSAValue] = {op.result for op in constants}
    loads = [op for op in reversed(ops) if isinstance(op, DmaLoadOp)]
    free = True  # no load is under way
    store: MqcOp | None = None  # the wait that is put off
    for op in ops:
        if free and loads and loads[-1].x in made:
            yield loads.pop()
            free = False
        if isinstance(op, ConstantOp | DmaLoadOp):
            continue
        if isinstance(op, DmaWaitOp) and isinstance(op.transfer.owner, DmaStoreOp):
            store = op
            continue
        if isinstance(op, DmaStoreOp) and store is not None:
            yield store
            store = None
        yield op
        made.update(op.results)
        free |= isinstance(op, DmaWaitOp)
    if store is not None:
        yield store
