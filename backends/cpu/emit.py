"""The C11 program of an `int` module: one call of a kernel per op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.ir import Attribute, SSAValue

from mqc.analysis.evaluation import Evaluation
from mqc.analysis.liveness import check_memory_plan
from mqc.analysis.verification import verify_module
from mqc.arrays import Array
from mqc.backends.cpu.select import select
from mqc.c_kernels import registered_kernel
from mqc.dialects import int_ops
from mqc.dialects.constraints import bits, limits
from mqc.errors import TargetError
from mqc.ir.module import context_length, main_function, mqc_ops, prefix_tokens
from mqc.ir.op import MqcOp, WeightAttr, channels, plain
from mqc.ir.weight_store import WeightStore, numpy_dtype
from mqc.numerics.arithmetic import EXP2_TABLE
from mqc.numerics.routing import NORMALIZATIONS

#: TILE_ROWS in dot.h.
_TILE_ROWS = 4


@dataclass(frozen=True)
class CProgram:
    """Source text, and the arrays that the program addresses by number.

    caches: the ops that keep rows, in the order of their caches. ops: those that run, in order.
    """

    source: str
    constants: list[Array]
    caches: Sequence[MqcOp]
    ops: Sequence[MqcOp]


#: What a timed program begins with: when the last call began, and when each of its ops ended, in ns.
_MARKS = """#include <time.h>
u64 mqc_marks[{count}];
static void mark(const Run *r, int i) {{
    struct timespec t;
    if (r->tid) return;
    timespec_get(&t, TIME_UTC);
    mqc_marks[i] = (u64)t.tv_sec * 1000000000u + (u64)t.tv_nsec;
}}"""


def emit(module: ModuleOp, weights: WeightStore, timed: bool = False) -> CProgram:
    """Emit a module that went through `choose-kernels` and `plan-memory`.

    timed: note in `mqc_marks` (u64, one more than there are ops that run) when ops end.

    Only names that `select` gives reach the text, and numbers: a program that was altered cannot
    choose what is compiled, nor address memory outside its tensors and the arena. The text depends
    on shapes and scalar attributes only, so that programs of one architecture differ in a few
    numbers. Raises `TargetError` for an op without its kernel, `IRError` for a memory plan that
    does not hold.
    """
    return _Emitter(module, weights, timed).run()


class _Emitter:
    def __init__(self, module: ModuleOp, weights: WeightStore, timed: bool) -> None:
        verify_module(module)
        self.timed = timed
        self.arena = check_memory_plan(module)
        self.module, self.weights = module, weights
        self.evaluation = Evaluation(module, weights)
        self.constants: list[Array] = []
        self.numbers: dict[WeightAttr, int] = {}
        self.lines: list[str] = []
        self.ops: list[MqcOp] = []
        #: The ops that keep something, in the order of their caches.
        self.attentions, self.convolutions, self.recurrences = (
            [op for op in mqc_ops(module) if isinstance(op, kind)]
            for kind in (int_ops.AttentionOp, int_ops.CausalConvOp, int_ops.LinearAttentionOp)
        )
        self.caches = [*self.attentions, *self.convolutions, *self.recurrences]
        self.tables: list[str] = []
        self.exp2 = ""
        self.sources: dict[str, str] = {}
        self.widest = self.tile = 0
        self.rules: dict[type[MqcOp], Callable[[Any], None]] = {
            int_ops.EmbeddingOp: self.embedding,
            int_ops.RequantOp: self.requant,
            int_ops.AttentionOp: self.attention,
            int_ops.LutOp: self.lut,
            int_ops.AddOp: self.add,
            int_ops.JoinOp: self.join,
        }

    def run(self) -> CProgram:
        for op in mqc_ops(self.module):
            _check_kernel(op)
            if "fused_into" not in op.attributes:
                self.mark()
                self.rules.get(type(op), self.external)(op)
                self.ops.append(op)
        self.mark()
        return CProgram(self.text(), self.constants, self.caches, self.ops)

    def mark(self) -> None:
        if self.timed:
            self.lines.append(f"    mark(r, {len(self.ops)});")

    def text(self) -> str:
        planes = -(-self.widest // 4) * 4
        counts = f"{len(self.attentions)}, {len(self.convolutions)}, {len(self.recurrences)}"
        fields = f"{counts}, ATTENTION, ROWS, {self.arena}, {planes}, {self.tile}, run"
        return "\n".join(
            [
                '#include "kernels.h"',
                *([_MARKS.format(count=len(self.ops) + 1)] if self.timed else []),
                *self.sources.values(),
                f"static const Attention ATTENTION[] = {{{', '.join([*self.tables, '{0}'])}}};",
                f"static const Rows ROWS[] = {{{', '.join([*self.rows(), '{0}'])}}};",
                "static void run(Run *r) {",
                *self.lines,
                "}",
                f"const Program mqc_program = {{{fields}}};",
                "",
            ]
        )

    def rows(self) -> list[str]:
        """Bytes of a row and how many there are, of convolutions and of states of fixed size."""
        kept = [state for op in (*self.convolutions, *self.recurrences) for state in op.states()]
        sizes = [prod(state.shape) * numpy_dtype(state.element).itemsize for state in kept]
        places = [context_length(self.module) if state.grows else 1 for state in kept]
        return [f"{{{size}, {count}}}" for size, count in zip(sizes, places, strict=True)]

    # ---- pieces of C

    def constant(self, array: Array) -> str:
        self.constants.append(np.ascontiguousarray(array))
        return f"r->constants[{len(self.constants) - 1}]"

    def padded(self, array: Array, dtype: Any) -> str:
        """`[outputs]` or `[outputs, experts]` as rows of outputs, padded to blocks of 16."""
        rows = array.reshape(len(array), -1).T
        full = np.zeros((len(rows), -(-len(array) // 16) * 16), dtype)
        full[:, : len(array)] = rows
        return self.constant(full)

    def weight(self, ref: Attribute) -> str:
        """A stored tensor, addressed where it lies (memory-mapped, if the store is)."""
        assert isinstance(ref, WeightAttr)
        if ref not in self.numbers:
            self.constants.append(self.weights[ref])
            self.numbers[ref] = len(self.constants) - 1
        return f"r->constants[{self.numbers[ref]}]"

    def place(self, value: SSAValue) -> str:
        if any(isinstance(use.operation, func.ReturnOp) for use in value.uses):
            return "r->logits"
        owner = value.owner
        assert isinstance(owner, MqcOp)
        return f"value(r, {plain(owner.attributes['offset'])})"

    def call(self, op: MqcOp, struct: str, fields: list[Any], arguments: list[str]) -> None:
        kernel = plain(op.attributes["kernel"])
        initializer = ", ".join(map(str, fields))
        self.lines.append(
            f"    {{ {struct} p = {{{initializer}}}; "
            f"{kernel}(r, &p, {', '.join(arguments)}); }} /* %{op.value_name} */"
        )

    def scale(self, multiplier: Array, shift: Array, count: int, op: MqcOp) -> str:
        """A `Requant` for `count` channels and the limits of the op's result."""
        padded = -(-count // 16) * 16
        arrays = []
        left, right = np.maximum(-shift.astype(np.int32), 0), np.maximum(shift.astype(np.int32), 0)
        for array in (multiplier, left, right):
            full = np.zeros(padded, np.int32)
            full[:count] = array
            arrays.append(self.constant(full))
        low, high = limits(op.results[0])
        low_text = "INT32_MIN" if low < -(2**30) else str(low)
        return f"{{{', '.join(arrays)}, {int(left.max() > 0)}, {op.get('zero_point')}, {low_text}, {high}}}"

    # ---- ops

    def requant(self, op: int_ops.RequantOp) -> None:
        count = channels(op.result)
        requant = self.scale(self.weights[op.multiplier], self.weights[op.shift], count, op)
        producer = op.accumulator
        match producer:
            case int_ops.LinearOp() if producer.gates is not None:
                self.experts(op, producer, producer.gates, requant)
            case int_ops.LinearOp():
                sums = self.padded(producer.sums(self.evaluation), np.int32)
                fields = self.linear(op, producer, producer.correction(self.evaluation), sums, requant)
                if bits(producer.x) == 16:
                    self.widest = max(self.widest, channels(producer.x))
                self.call(op, "Linear", fields, [self.place(producer.x), self.place(op.result)])
            case int_ops.NormOp():
                centered = isinstance(producer, int_ops.LayerNormOp)
                refs = (producer.properties.get(name) for name in ("bias", "bias_shift"))
                added = ["0" if ref is None else self.weight(ref) for ref in refs]
                fields = [
                    count, producer.get("groups"), int(centered), producer.get("x_zero"),
                    f"{producer.get('epsilon')}u", *added, requant,
                ]  # fmt: skip
                self.call(op, "Norm", fields, [self.place(producer.x), self.place(op.result)])
            case int_ops.RopeOp():
                head_dim, half = producer.get("head_dim"), producer.cos.shape[1]
                fields = [
                    self.weight(producer.cos), self.weight(producer.sin), count // head_dim,
                    head_dim, half, producer.get("interleaved"), producer.get("x_zero"), requant,
                ]  # fmt: skip
                self.call(op, "Rope", fields, [self.place(producer.x), self.place(op.result)])
            case int_ops.MulOp():
                fields = [*(producer.get(n) for n in ("a_zero", "b_zero", "acc_shift")), requant]
                places = [self.place(v) for v in (producer.a, producer.b, op.result)]
                self.call(op, "Mul", fields, [str(count), *places])
            case int_ops.GateOp():
                fields = [producer.get(n) for n in ("x_zero", "gates_zero", "acc_shift")]
                places = [self.place(v) for v in (producer.x, producer.gates, op.result)]
                self.call(op, "Gate", [*fields, channels(producer.gates), requant], [str(count), *places])
            case int_ops.RouteOp():
                self.route(op, producer, requant)
            case int_ops.CausalConvOp():
                self.convolution(op, producer, requant)
            case int_ops.LinearAttentionOp():
                self.linear_attention(op, producer, requant)
            case _:
                raise TargetError(f"cpu: no kernel requantizes %{op.x.name_hint}")

    def linear(self, op: MqcOp, linear: int_ops.LinearOp, added: Array, sums: str, requant: str) -> list[Any]:
        """The fields of a `Linear`; added: to the sums of x·w, s64 `[outputs]`. sums: of the weights."""
        n, k = channels(linear.result), channels(linear.x)
        groups4, weight_bits = -(-k // 4), linear.get("weight_bits")
        correction = np.zeros(-(-n // 16) * 16, np.int64)
        correction[:n] = added
        dot, factor, group4, factor_bytes = f"dot_s{weight_bits}", "0", 0, 0
        if linear.group_scale is not None:
            table = self.weights[linear.group_scale]
            groups = table.shape[1]
            if k // groups % 4:
                raise TargetError(f"cpu: %{op.value_name}: groups must be multiples of 4 inputs")
            blocks = np.zeros((-(-n // 16) * 16, groups), np.uint8)
            blocks[:n] = table
            factor = self.constant(blocks.reshape(-1, 16, groups).transpose(0, 2, 1))
            dot, group4, factor_bytes = f"{dot}_grouped", k // groups // 4, 16 * groups
        weight = self.weight(linear.weight)
        columns = f"{groups4 * weight_bits * 8}, {groups4}, {factor}, {group4}, {factor_bytes}"
        packed = f"{{{weight}, {columns}, {sums}}}"
        return [packed, dot, k, n, self.constant(correction), linear.get("acc_shift"), requant]

    def experts(self, op: MqcOp, linear: int_ops.LinearOp, gates: SSAValue, requant: str) -> None:
        axis, count = linear.get("expert_axis"), channels(gates)
        added, sums = linear.correction(self.evaluation), self.padded(linear.sums(self.evaluation), np.int32)
        apart = ["0", "0"]
        if axis == 1:
            apart = [self.padded(added, np.int64), sums]
            added, sums = self.evaluation.array(linear.bias), "0"
        product = ", ".join(map(str, self.linear(op, linear, added, sums, requant)))
        fields = [
            f"{{{product}}}", linear.get("weight_bits"), count, axis, bits(gates), linear.get("gates_zero"),
            *apart,
        ]  # fmt: skip
        width = channels(linear.x) // (count if axis == 1 else 1)
        self.tile = max(self.tile, _TILE_ROWS * (width + 8))
        self.call(op, "Experts", fields, [self.place(v) for v in (linear.x, gates, op.results[0])])

    def route(self, op: MqcOp, route: int_ops.RouteOp, requant: str) -> None:
        sizes = [route.get(name) for name in ("top_k", "groups", "top_groups", "group_scores", "shares")]
        bias = "0" if route.bias is None else self.weight(route.bias)
        fields = [
            channels(route.x), *sizes, NORMALIZATIONS.index(route.get("normalization")),
            route.get("x_zero"), *_factor(route, "score_"), bias, requant,
        ]  # fmt: skip
        places = [self.exp2_table(), self.place(route.x), self.place(op.results[0])]
        self.call(op, "Route", fields, places)

    def convolution(self, op: MqcOp, conv: int_ops.CausalConvOp, requant: str) -> None:
        count = channels(conv.x)
        fields = [
            self.caches.index(conv), count, conv.taps,
            self.constant(self.weights[conv.weight].T), self.weight(conv.bias),
            conv.get("x_zero"), conv.get("acc_shift"), requant,
        ]  # fmt: skip
        self.call(op, "Convolution", fields, [self.place(conv.x), self.place(op.results[0])])

    def linear_attention(self, op: MqcOp, attention: int_ops.LinearAttentionOp, requant: str) -> None:
        get, operands = attention.get, [attention.q, attention.k, attention.v, attention.step]
        beta = memory = [0] * 3
        if attention.beta is not None:
            operands.append(attention.beta)
            beta = _factor(attention, "beta_")
        if attention.memory_multiplier is not None:
            memory = _factor(attention, "memory_")
        shifts = ("sum_shift", "value_shift", "update_shift", "acc_shift", "skip_shift")
        fields = [
            self.caches.index(attention), get("heads"), get("key_heads"), attention.key_dim,
            attention.value_dim, channels(attention.step) // get("heads"),
            attention.decay_multiplier.shape[0] // get("heads"), len(prefix_tokens(self.module)),
            "0" if attention.initial is None else self.weight(attention.initial),
            *[*(bits(x) for x in operands), 0][:5],
            *(get(f"{name}_zero") or 0 for name in ("q", "k", "v", "step", "beta")),
            self.weight(attention.decay_multiplier), self.weight(attention.decay_shift),
            *beta, *memory, int(attention.memory_multiplier is not None),
            *(get(name) or 0 for name in shifts),
            "0" if attention.skip is None else self.weight(attention.skip), requant,
        ]  # fmt: skip
        places = ", ".join(self.place(x) for x in operands)
        given = f"&(const LinearOperands){{{places}}}"
        self.call(op, "LinearAttention", fields, [self.exp2_table(), given, self.place(op.results[0])])

    def exp2_table(self) -> str:
        self.exp2 = self.exp2 or self.constant(EXP2_TABLE.astype(np.int32))
        return self.exp2

    def embedding(self, op: int_ops.EmbeddingOp) -> None:
        width = channels(op.result)
        high = limits(op.result)[1]
        fields = [
            self.weight(op.table), -(-width // 4) * 64, width, self.weight(op.multiplier),
            self.weight(op.shift), op.get("zero_point"), high,
        ]  # fmt: skip
        is_token = op.indices is main_function(self.module).body.block.args[0]
        self.call(op, "Embedding", fields, ["r->ids" if is_token else "0", self.place(op.result)])

    def attention(self, op: int_ops.AttentionOp) -> None:
        number = self.attentions.index(op)
        capacity = -(-context_length(self.module) // 64) * 64
        fields = [
            number, op.get("heads"), op.get("kv_heads"), op.head_dim, op.value_dim,
            op.get("window") or 0, op.get("chunk") or 0, capacity,
            *(op.get(f"{name}_zero") for name in "qkv"),
            *_factor(op, "score_"), *_factor(op, ""), op.get("zero_point"),
            limits(op.result)[1],
        ]  # fmt: skip
        self.tables.append(f"{{{', '.join(map(str, fields))}}}")
        places = ", ".join(self.place(v) for v in (op.q, op.k, op.v, op.result))
        kernel = plain(op.attributes["kernel"])
        refs = (op.sinks, op.cap_table, op.key_bias)
        optional = ("0" if ref is None else self.weight(ref) for ref in refs)
        tables = ", ".join([self.exp2_table(), *optional, str(op.position_limit() or 0)])
        self.lines.append(
            f"    {{ ScoreTables t = {{{tables}}}; {kernel}(r, &ATTENTION[{number}], &t, {places}); }} "
            f"/* %{op.value_name} */"
        )

    def lut(self, op: int_ops.LutOp) -> None:
        kernel = plain(op.attributes["kernel"])
        arguments = [
            self.weight(op.table), str(op.get("segment_bits") or 0), str(channels(op.x)),
            self.place(op.x), self.place(op.result),
        ]  # fmt: skip
        self.lines.append(f"    {kernel}(r, {', '.join(arguments)}); /* %{op.value_name} */")

    def add(self, op: int_ops.AddOp) -> None:
        self.rescaled(op, "Add", [])

    def join(self, op: int_ops.JoinOp) -> None:
        self.rescaled(op, "Join", [channels(op.a), channels(op.b), self.weight(op.index)])

    def rescaled(self, op: int_ops.RescaledOp, struct: str, fields: list[Any]) -> None:
        for name in ("a", "b"):
            fields += [op.get(f"{name}_zero"), *_factor(op, f"{name}_")]
        fields += [op.get("zero_point"), limits(op.result)[1]]
        places = [self.place(v) for v in (op.a, op.b, op.result)]
        self.call(op, struct, fields, [str(channels(op.result)), *places])

    def external(self, op: MqcOp) -> None:
        kernel = registered_kernel(op)
        assert kernel is not None, "_check_kernel asked select"
        if op.states():
            raise TargetError(f"cpu: {op.name} %{op.value_name} keeps state; kernels of one's own cannot")
        self.sources[kernel.name] = kernel.source
        arguments = [
            str(channels(op.results[0])), *(self.place(v) for v in (*op.operands, *op.results)),
            *(self.weight(op.properties[name]) for name in kernel.weights),
            *(str(int(op.get(name))) for name in kernel.scalars),
        ]  # fmt: skip
        self.lines.append(f"    {kernel.name}(r, {', '.join(arguments)}); /* %{op.value_name} */")


def _check_kernel(op: MqcOp) -> None:
    kernel = select(op)
    if kernel is None:
        raise TargetError(f"cpu: no kernel takes {op.name} %{op.value_name}")
    for name, value in (("kernel", kernel.name), ("fused_into", kernel.fused_into)):
        if op.attributes.get(name) != (None if value is None else StringAttr(value)):
            raise TargetError(
                f"cpu: {op.name} %{op.value_name} must state {name} = {value!r}; run choose-kernels"
            )
    if kernel.layout is not None and op.get("layout") != kernel.layout:
        raise TargetError(
            f"cpu: {op.name} %{op.value_name} must have layout {kernel.layout}; run choose-kernels"
        )


def _factor(op: MqcOp, prefix: str) -> list[int]:
    """Multiplier, left and right shift of a scalar rescaling."""
    shift = op.get(f"{prefix}shift")
    return [op.get(f"{prefix}multiplier"), max(-shift, 0), max(shift, 0)]
