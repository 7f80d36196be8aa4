"""That the functions of level `htp` compute what @main says: by numbering values.

Every value gets a number that stands for how it is computed from token ids, positions and constants: equal
numbers, equal values. The ops of @main and those of a function are numbered in the same terms. Copies between
memories do not count, parts of a value are put together, and constants made for HVX count as those of @main
that they were made from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from xdsl.dialects.builtin import IntegerAttr, ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import SSAValue

from mqc.analysis.evaluation import Evaluation
from mqc.analysis.htp_records import check_records, sizes_of
from mqc.dialects import htp_attention, htp_compute, htp_memory, int_ops
from mqc.dialects.htp import without_form
from mqc.dialects.htp_core import pack_scale, shape
from mqc.errors import IRError
from mqc.ir.module import function_ops, main_function, mqc_ops, returned_value, static_functions
from mqc.ir.op import MqcOp, WeightAttr, element_type
from mqc.ir.weight_store import WeightStore
from mqc.numerics.arithmetic import EXP2_TABLE
from mqc.numerics.htp_tiles import LANES

Number = int
#: A value in the making: columns (or heads) `[first, first + count)` and what they are.
Parts = list[tuple[int, int, Number]]


class _Numbers:
    """Gives equal numbers to equal keys, and keys back."""

    def __init__(self) -> None:
        self._number: dict[tuple[Any, ...], Number] = {}
        self._key: list[tuple[Any, ...]] = []

    def of(self, *key: Any) -> Number:
        if key not in self._number:
            self._number[key] = len(self._key)
            self._key.append(key)
        return self._number[key]

    def key(self, number: Number) -> tuple[Any, ...]:
        return self._key[number]

    def rows(self, of: Number, total: int, first: int, count: int) -> Number:
        return of if count == total else self.of("rows", of, first, count)


def _integers(*ops: MqcOp) -> tuple[tuple[str, int], ...]:
    """Integer properties by name: an `htp` op has those of the `int` ops that it carries out."""
    named = ((k, v) for op in ops for k, v in op.properties.items())
    return tuple(sorted((k, v.value.data) for k, v in named if isinstance(v, IntegerAttr)))


def _outcome(op: int_ops.AttentionOp | htp_attention.MatMulValuesOp) -> tuple[int, ...]:
    """How weighted sums of values become the result of attention."""
    return tuple(op.get(name) for name in ("v_zero", "multiplier", "shift", "zero_point"))


def check_static_functions(module: ModuleOp, weights: WeightStore) -> None:
    """Prove that each function computes the logits of @main and keeps the same states.

    Time is linear in the ops; every matrix is read once. Raises `IRError` naming the function and its first
    op that computes what @main does not.
    """
    numbers = _Numbers()
    main = _Main(module, weights, numbers)
    for name, function in static_functions(module).items():
        _Function(name, function, weights, numbers, main).check()


class _Main:
    """The numbers of @main: `known` all of them, `logits`, and of the states `kept` new rows and `prefix`."""

    def __init__(self, module: ModuleOp, weights: WeightStore, numbers: _Numbers) -> None:
        self.weights, self.n = weights, numbers
        self.known: set[Number] = set()
        self.kept: set[Number] = set()
        self.prefix: set[Number] = set()
        evaluation = Evaluation(module, weights)
        ids, positions = main_function(module).body.block.args
        self.value: dict[SSAValue, Number] = {ids: numbers.of("ids"), positions: numbers.of("positions")}
        for op in mqc_ops(module):
            if isinstance(op, int_ops.LinearOp):
                check_records(op, evaluation)
            if not isinstance(op, int_ops.AccumulatorOp):
                self.value[op.results[0]] = self.number(op)
                self.known.add(self.value[op.results[0]])
        self.logits = self.value[returned_value(module)]

    def constant(self, ref: WeightAttr) -> Number:
        return self.n.of("constant", ref)

    def number(self, op: MqcOp) -> Number:
        of, value = self.n.of, self.value
        end = (_integers(op), element_type(op.results[0]))
        if without_form(op):
            return of("unknown to htp", op)
        match op:
            case int_ops.EmbeddingOp():
                tables = (self.constant(ref) for ref in (op.table, op.multiplier, op.shift))
                return of("embedding", value[op.indices], *tables, *end)
            case int_ops.RequantOp():
                return self.rescaled(op)
            case int_ops.LutOp():
                return of("lut", value[op.x], self.constant(op.table), *end)
            case int_ops.AddOp():
                return of("add", value[op.a], value[op.b], *end)
            case int_ops.AttentionOp():
                return self.attention(op)
        return of("unknown to htp", op)

    def rescaled(self, op: int_ops.RequantOp) -> Number:
        of, value, acc, kind = self.n.of, self.value, op.accumulator, element_type(op.result)
        if acc is None or without_form(acc):
            return of("unknown to htp", op)
        if isinstance(acc, int_ops.LinearOp):
            sizes = sizes_of(acc)
            form = (sizes.bits, sizes.group, acc.get("acc_shift"), op.get("zero_point"), kind)
            return of("linear", value[acc.x], self.constant(acc.weight), *form)
        packed = pack_scale(self.weights[op.multiplier], self.weights[op.shift])
        end = (of("scale", packed.shape, packed.tobytes()), _integers(acc, op), kind)
        if isinstance(acc, int_ops.NormOp):
            return of(acc.name, value[acc.x], *end)
        if isinstance(acc, int_ops.RopeOp):
            tables = (of("row of", value[acc.positions], self.constant(ref)) for ref in (acc.cos, acc.sin))
            return of("rope", value[acc.x], *tables, *end)
        if isinstance(acc, int_ops.MulOp):
            return of("mul", value[acc.a], value[acc.b], *end)
        return of("unknown to htp", op)

    def attention(self, op: int_ops.AttentionOp) -> Number:
        dim, group = op.head_dim, op.get("heads") // op.get("kv_heads")
        written = []
        for part, rows, prefix in (("key", op.k, op.prefix_k), ("value", op.v, op.prefix_v)):
            form = (f"{part}.{op.get('layer')}", dim, op.get("q_zero") if part == "key" else None)
            written.append(self.n.of("written", *form, self.value[rows]))
            if prefix is not None:
                self.prefix.add(self.n.of("written", *form, self.constant(prefix)))
        self.kept.update(written)
        scores = [op.get(name) for name in ("window", "score_multiplier", "score_shift")]
        end, heads = _outcome(op), []
        for head in range(op.get("heads")):
            keys, values = (self.n.rows(w, op.get("kv_heads"), head // group, 1) for w in written)
            seen = self.n.of("scores", self.value[op.q], keys, head, dim)
            heads.append(self.n.of("head", seen, *scores, values, *end))
        return self.n.of("attention", tuple(heads), element_type(op.result))


@dataclass
class _Function:
    """Numbers one function and compares with those of @main."""

    name: str
    function: FuncOp
    weights: WeightStore
    n: _Numbers
    main: _Main

    def check(self) -> None:
        ids, positions = self.function.body.block.args
        self.value: dict[SSAValue, Number | Parts] = {
            ids: self.n.of("ids"),
            positions: self.n.of("positions"),
        }
        self.kept: set[Number] = set()
        for op in function_ops(self.function):
            self.value[op.results[0]] = self.number(op)
        last = self.function.body.block.last_op
        assert last is not None
        for value in last.operands:
            if self.whole(value) != self.main.logits:
                raise IRError(f"@{self.name} returns %{value.name_hint}, which is not the logits of @main")
        wanted = self.main.kept if last.operands else self.main.prefix
        if self.kept != wanted:
            raise IRError(f"@{self.name} does not write the keys and values that @main keeps")

    def fail(self, value: SSAValue, what: str) -> IRError:
        owner = value.owner.name if isinstance(value.owner, MqcOp) else "a value"
        return IRError(f"@{self.name}: {owner} %{value.name_hint} {what}")

    def whole(self, value: SSAValue) -> Number:
        """The number of a value that something reads: its parts must be all of one value of @main."""
        found = self.value[value]
        if isinstance(found, int):
            return found
        made = self.together(value, sorted(found))
        if made not in self.main.known:
            raise self.fail(value, "computes what @main does not")
        self.value[value] = made
        return made

    def together(self, value: SSAValue, parts: Parts) -> Number:
        keys = [self.n.key(part) for _, _, part in parts]
        kind = element_type(value)
        if {key[0] for key in keys} == {"heads"}:
            return self.n.of("attention", tuple(head for key in keys for head in key[1]), kind)
        # Products of x: columns from `first` on are those of the record that holds this output.
        for (first, _, _), (what, x, matrix, *form) in zip(parts, keys, strict=True):
            if what != "columns" or (x, *form) != (keys[0][1], *keys[0][3:]):
                raise self.fail(value, "is put together from different values")
            if first != LANES * self.n.key(matrix)[2]:
                raise self.fail(value, "has its columns in another order than @main")
        matrices = {self.n.key(key[2])[1] for key in keys}
        if len(matrices) != 1:
            raise self.fail(value, "is put together from different matrices")
        return self.n.of("linear", keys[0][1], matrices.pop(), *keys[0][3:])

    def constant(self, value: SSAValue) -> WeightAttr:
        what, *rest = self.n.key(self.whole(value))
        if what != "constant":
            raise self.fail(value, "must be a whole constant")
        ref = rest[0]
        assert isinstance(ref, WeightAttr)
        return ref

    def scale(self, value: SSAValue) -> Number:
        packed = self.weights[self.constant(value)]
        return self.n.of("scale", packed.shape, packed.tobytes())

    def number(self, op: MqcOp) -> Number | Parts:
        of, result = self.n.of, op.results[0]
        match op:
            case htp_memory.ConstantOp():
                return of("constant", op.value)
            case htp_memory.CacheOp():
                return of("state", op.state)
            case htp_memory.EmptyOp():
                return []
            case htp_memory.StridedSliceOp():
                return self.n.rows(self.whole(op.x), shape(op.x)[0], op.get("first"), shape(result)[0])
            case htp_memory.DmaLoadOp():
                count = op.result.type.tensor.get_shape()[0]
                return self.n.rows(self.whole(op.x), shape(op.x)[0], op.get("first"), count)
            case htp_memory.DmaWaitOp():
                return self.value[op.transfer]
            case htp_memory.DmaStoreOp():
                tile = self.value[op.x]
                if isinstance(tile, int):
                    raise self.fail(op.x, "must be made for the logits")
                first = op.get("first")
                return self.add(op.dest, ((first + at, count, part) for at, count, part in tile))
            case htp_compute.GatherPositionsOp():
                return of("row of", self.whole(op.indices), self.whole(op.table))
            case htp_compute.FullyConnectedOp():
                return self.product(op)
            case htp_attention.CacheWriteOp():
                return self.write(op)
            case htp_attention.MatMulKeysOp():
                heads = range(op.get("head"), op.get("head") + op.get("heads"))
                numbers = (self.whole(op.q), self.whole(op.keys))
                scores = tuple(of("scores", *numbers, head, op.get("head_dim")) for head in heads)
                return of("all scores", scores, op.get("window"))
            case htp_attention.MaskedSoftmaxOp():
                return self.softmax(op)
            case htp_attention.MatMulValuesOp():
                return self.weighted(op)
        made = self.elementwise(op)
        if made not in self.main.known:
            raise self.fail(result, "computes what @main does not")
        return made

    def elementwise(self, op: MqcOp) -> Number:
        of, whole = self.n.of, self.whole
        end = (_integers(op), element_type(op.results[0]))
        match op:
            case htp_compute.GatherTokensOp():
                return of("embedding", *(whole(v) for v in op.operands), *end)
            case htp_compute.NormOp():
                assert op.CARRIES is not None
                return of(op.CARRIES.name, whole(op.x), self.scale(op.scale), *end)
            case htp_compute.RotaryEmbeddingOp():
                return of("rope", whole(op.x), whole(op.cos), whole(op.sin), self.scale(op.scale), *end)
            case htp_compute.MultiplyOp():
                return of("mul", whole(op.a), whole(op.b), self.scale(op.scale), *end)
            case htp_compute.AddOp():
                return of("add", whole(op.a), whole(op.b), *end)
            case htp_compute.NeuronOp():
                return of("lut", whole(op.x), whole(op.table), *end)
        raise self.fail(op.results[0], "is no op that can be compared with @main")

    def product(self, op: htp_compute.FullyConnectedOp) -> Parts:
        matrix = self.whole(op.weight)
        if self.n.key(matrix)[0] == "constant":
            matrix = self.n.of("rows", matrix, 0, shape(op.weight)[0])
        kind = element_type(op.result)
        form = (op.get("weight_bits"), op.get("group"), op.get("acc_shift"), op.get("zero_point"), kind)
        part = self.n.of("columns", self.whole(op.x), matrix, *form)
        place = (op.get("first"), op.get("outputs"), part)
        return [place] if op.dest is None else self.add(op.dest, [place])

    def add(self, dest: SSAValue, places: Iterable[tuple[int, int, Number]]) -> Parts:
        """A value that is written into, with what is new; `dest` itself is read no more."""
        found = self.value[dest]
        if isinstance(found, int):
            raise self.fail(dest, "is whole, and something is written into it")
        found.extend(places)
        return found

    def write(self, op: htp_attention.CacheWriteOp) -> Number:
        what, *state = self.n.key(self.whole(op.cache_in))
        if what != "state":
            raise self.fail(op.result, "must write into a state as it was")
        q_zero = op.get("q_zero") if isinstance(op, htp_attention.CacheWriteKeysOp) else None
        written = self.n.of("written", *state, op.get("head_dim"), q_zero, self.whole(op.x))
        self.kept.add(written)
        return written

    def softmax(self, op: htp_attention.MaskedSoftmaxOp) -> Number:
        if not np.array_equal(self.weights[self.constant(op.exponentials)], EXP2_TABLE):
            raise self.fail(op.result, "has other exponentials than 2^(-i / 2048) with 30 fraction bits")
        what, *rest = self.n.key(self.whole(op.x))
        if what != "all scores" or len(rest[0]) != op.get("heads") or rest[1] != op.get("window"):
            raise self.fail(op.result, "reads no scores of its heads and window")
        return self.n.of("probabilities", rest[0], *map(op.get, ("window", "multiplier", "shift")))

    def weighted(self, op: htp_attention.MatMulValuesOp) -> Parts:
        what, *rest = self.n.key(self.whole(op.p))
        if what != "probabilities" or len(rest[0]) != op.get("heads") or rest[1] != op.get("window"):
            raise self.fail(op.result, "reads no probabilities of its heads and window")
        end = _outcome(op)
        values = self.whole(op.values)
        heads = tuple(self.n.of("head", seen, *rest[1:], values, *end) for seen in rest[0])
        return self.add(op.dest, [(op.get("head"), op.get("heads"), self.n.of("heads", heads))])
