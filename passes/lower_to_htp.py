"""`lower-to-htp`: the program of the NPU from the `int` program, as ops that its hardware has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp, TensorType, i64
from xdsl.ir import SSAValue

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import Evaluation
from mqc.analysis.htp_schedule import lower_bound
from mqc.analysis.liveness import live_ranges
from mqc.costs import ModelSize, Work
from mqc.dialects import htp_attention, htp_compute, htp_memory, int_ops
from mqc.dialects.constraints import bits
from mqc.dialects.htp import carrier, without_form
from mqc.dialects.htp_core import HtpOp, pack_scale, static
from mqc.errors import TargetError, UnsupportedOpError
from mqc.ir.module import context_length, main_function, mqc_ops, prefix_tokens, returned_value, set_level
from mqc.ir.op import MqcOp, WeightAttr, attr, channels, element_type, s32, u8, u16
from mqc.numerics import arithmetic
from mqc.numerics.htp_tiles import LANES, split_correction
from mqc.numerics.layouts import records
from mqc.pass_base import Pass

#: What tiles may take beside the values: two of weights, and scores and probabilities.
_TILE_BYTES = 3 << 20
#: Most bytes of one tile of attention scores.
_SCORE_BYTES = 1 << 20
#: Interpolation stays in s32 up to knots of this magnitude.
_KNOT_LIMIT = 1 << 22


@dataclass(frozen=True)
class LowerToHtp(Pass):
    """Add a function of `htp` ops for each number of tokens, and one that puts the prefix into the cache.

    @main stays: it says what the functions compute. All share weights and cache; matrices become
    records, which @main reads too, so that no weight is stored twice.

    Options:
        tokens: rows of each function: `prefill_N`, or `decode` for 1. A number whose values would not fit
            VTCM beside tiles of weights and scores is halved until they do.
        vtcm_bytes: bytes of VTCM that `allocate-vtcm` will be given.

    Raises `TargetError` naming the `int` op and the constraint of the `htp` op that does not hold.
    """

    name = "lower-to-htp"
    requires: ClassVar[str] = "int"
    ensures: ClassVar[str] = "htp"
    tokens: tuple[int, ...] = (128, 1)
    vtcm_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        self.expect(min(self.tokens, default=1) >= 1, f"tokens must be 1 or more, got {self.tokens}")
        self.expect(self.vtcm_bytes >= 1, f"vtcm_bytes must be 1 or more, got {self.vtcm_bytes}")

    def check(self, module: ModuleOp, before: Sequence[Pass]) -> None:
        for op in mqc_ops(module):
            if what := without_form(op):
                raise UnsupportedOpError(
                    f"%{op.value_name}", what,
                    "has no form for NPUs yet; target cpu-int8 has one",
                )  # fmt: skip

    def work(self, size: ModelSize, length: int) -> Work:
        return Work()

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        room = context_length(module) - len(prefix_tokens(module))
        most = max(1, (self.vtcm_bytes - _TILE_BYTES) // _bytes_per_token(module))
        counts = sorted({_halved(min(count, room), most) for count in (*self.tokens, 1)}, reverse=True)
        matrices = _Matrices(ctx, module)
        names = {count: "decode" if count == 1 else f"prefill_{count}" for count in counts}
        functions = [_Lowering(ctx, module, n, matrices.packed).run(name) for n, name in names.items()]
        if prefix_tokens(module):
            functions.insert(0, _Lowering(ctx, module, len(prefix_tokens(module)), {}).initialize())
        for op, (layout, ref) in matrices.packed.items():
            op.properties["weight"], op.properties["layout"] = ref, attr(layout)
        module.body.block.add_ops(functions)
        set_level(module, "htp")
        return True


def _halved(count: int, most: int) -> int:
    while count > most:
        count //= 2
    return count


def _bytes_per_token(module: ModuleOp) -> int:
    """The most bytes of values that are in use at once, for one token."""
    return max(lower_bound(list(live_ranges(module))), 1)


class _Matrices:
    """The matrices of a module as records: by `int.linear`, layout and tensor."""

    def __init__(self, ctx: CompilerContext, module: ModuleOp) -> None:
        self.packed: dict[int_ops.LinearOp, tuple[str, WeightAttr]] = {}
        self.weights, self.evaluation = ctx.weights, Evaluation(module, ctx.weights)
        linears = [op for op in mqc_ops(module) if isinstance(op, int_ops.LinearOp)]
        for i, op in enumerate(linears):
            self.packed[op] = self.pack(op)
            ctx.progress(LowerToHtp.name, (i + 1) / len(linears))

    def pack(self, op: int_ops.LinearOp) -> tuple[str, WeightAttr]:
        requant = epilogue(op)
        n, k = channels(op.result), channels(op.x)
        weight, factor = self.weights[op.weight], None
        layout = "records" if op.get("weight_bits") == 8 else "records.s4"
        if op.group_scale is not None:
            factor = self.weights[op.group_scale]
            layout += f".g{k // factor.shape[1]}"
        try:
            sizes = records(layout, n, k)
        except ValueError as error:
            raise TargetError(f"npu: int.linear %{op.value_name}: {error}") from error
        correction = op.correction(self.evaluation)
        parts = split_correction(correction, bits(op.x))
        room = arithmetic.INT32_MAX
        if bits(op.x) == 16:
            # low bytes are summed with the low part of the correction, exactly
            magnitudes = np.abs(op.matrix(self.evaluation).astype(np.int64)).sum(1)
            room = arithmetic.INT32_MAX - 255 - 255 * int(magnitudes.max())
        if room < 0 or int(np.abs(parts).max()) > arithmetic.INT32_MAX:
            raise TargetError(
                f"npu: int.linear %{op.value_name}: its sums leave s32: too many inputs for an HVX lane"
            )
        scale = [np.broadcast_to(self.weights[ref], n) for ref in (requant.multiplier, requant.shift)]
        packed = sizes.pack(weight, parts, scale[0], scale[1], factor)
        return layout, self.weights.add(op.weight.key.data, packed)


def epilogue(op: int_ops.AccumulatorOp) -> int_ops.RequantOp:
    """The one requantization of accumulators. Raises `TargetError` if they are used otherwise."""
    found = op.requant()
    if found is None:
        raise TargetError(f"npu: {op.name} %{op.value_name} must be followed by one int.requant alone")
    return found


class _Lowering:
    """One function. Constants and rows of rotary tables are shared by the ops that read them."""

    def __init__(
        self,
        ctx: CompilerContext,
        module: ModuleOp,
        tokens: int,
        matrices: dict[int_ops.LinearOp, tuple[str, WeightAttr]],
    ) -> None:
        self.ctx, self.module, self.tokens, self.matrices = ctx, module, tokens, matrices
        self.capacity = -(-context_length(module) // LANES) * LANES
        index = TensorType(i64, [tokens])
        self.function = func.FuncOp("unnamed", ([index, index], []))
        self.block = self.function.body.block
        self.values: dict[SSAValue, SSAValue] = {}
        self.shared: dict[Any, SSAValue] = {}
        self.source: MqcOp | None = None
        self.rules: dict[type[MqcOp], Callable[[Any, str], SSAValue]] = {
            int_ops.EmbeddingOp: self.embedding,
            int_ops.RequantOp: self.requant,
            int_ops.AttentionOp: self.attention,
            int_ops.LutOp: self.lut,
            int_ops.AddOp: self.add,
        }

    def run(self, name: str) -> func.FuncOp:
        self.values.update(zip(main_function(self.module).body.block.args, self.block.args, strict=True))
        for op in mqc_ops(self.module):
            if isinstance(op, int_ops.AccumulatorOp):
                epilogue(op)
                continue
            if type(op) not in self.rules:
                known = ", ".join(sorted(kind.name for kind in self.rules))
                raise TargetError(
                    f"npu: {op.name} %{op.value_name} has no htp form; there is one for {known}"
                )
            self.source = op
            self.values[op.results[0]] = self.rules[type(op)](op, op.value_name)
        return self.finish(name, [self.values[returned_value(self.module)]])

    def initialize(self) -> func.FuncOp:
        """Write the prefix's keys and values into the cache."""
        for op in mqc_ops(self.module):
            if isinstance(op, int_ops.AttentionOp):
                self.source = op
                for part in ("key", "value"):
                    ref = op.properties[f"prefix_{part[0]}"]
                    assert isinstance(ref, WeightAttr)
                    self.write(op, part, self.constant(ref))
        return self.finish("initialize", [])

    def finish(self, name: str, results: list[SSAValue]) -> func.FuncOp:
        self.block.add_op(func.ReturnOp(*results))
        self.function.properties["sym_name"] = attr(name)
        inputs = [arg.type for arg in self.block.args]
        self.function.function_type = type(self.function.function_type).from_lists(
            inputs, [value.type for value in results]
        )
        return self.function

    # ---- pieces

    def emit(self, kind: type[HtpOp], operands: list[SSAValue], result: Any, name: str, **p: Any) -> SSAValue:
        """Append an op, if its constraints hold."""
        op = kind.build_op([self.values.get(v, v) for v in operands], result, name, **p)
        assert self.source is not None
        for text in op.violations():
            raise TargetError(
                f"npu: {self.source.name} %{self.source.value_name} becomes {op.name}, "
                f"whose constraint does not hold: {text}"
            )
        if "loc" in self.source.attributes:
            op.attributes["loc"] = self.source.attributes["loc"]
        self.block.add_op(op)
        result_value: SSAValue = op.results[0]
        return result_value

    def carrier(self, op: MqcOp) -> type[HtpOp]:
        found = carrier(op)
        assert found is not None, "there is a rule for the op"
        return found

    def constant(self, ref: Any) -> SSAValue:
        assert isinstance(ref, WeightAttr)
        if ref not in self.shared:
            kind = static(ref.type.get_element_type(), *ref.shape)
            self.shared[ref] = self.emit(htp_memory.ConstantOp, [], kind, ref.key.data, value=ref)
        return self.shared[ref]

    def scale(self, op: int_ops.RequantOp) -> SSAValue:
        packed = pack_scale(self.ctx.weights[op.multiplier], self.ctx.weights[op.shift])
        return self.constant(self.ctx.weights.add(f"{op.value_name}.scale", packed))

    def rows(self, positions: SSAValue, ref: WeightAttr) -> SSAValue:
        """The rows of a rotary table at the positions, gathered once."""
        if (positions, ref) not in self.shared:
            kind = static(ref.type.get_element_type(), self.tokens, ref.shape[1])
            operands = [positions, self.constant(ref)]
            name = ref.key.data
            self.shared[positions, ref] = self.emit(htp_compute.GatherPositionsOp, operands, kind, name)
        return self.shared[positions, ref]

    def out(self, value: SSAValue) -> TensorType:
        return static(element_type(value), self.tokens, channels(value))

    # ---- rules

    def embedding(self, op: int_ops.EmbeddingOp, name: str) -> SSAValue:
        tables = [self.constant(ref) for ref in (op.table, op.multiplier, op.shift)]
        return self.emit(
            self.carrier(op), [op.indices, *tables], self.out(op.result), name,
            zero_point=op.get("zero_point"),
        )  # fmt: skip

    def requant(self, op: int_ops.RequantOp, name: str) -> SSAValue:
        result, zero = self.out(op.result), op.get("zero_point")
        match op.accumulator:
            case int_ops.LinearOp() as linear:
                layout, ref = self.matrices[linear]
                sizes = records(layout, channels(linear.result), channels(linear.x))
                return self.emit(
                    self.carrier(linear), [linear.x, self.constant(ref)], result, name,
                    outputs=sizes.outputs, first=0, weight_bits=sizes.bits, group=sizes.group,
                    acc_shift=linear.get("acc_shift"), zero_point=zero,
                )  # fmt: skip
            case int_ops.NormOp() as norm:
                return self.emit(
                    self.carrier(norm), [norm.x, self.scale(op)], result, name, zero_point=zero,
                    **{key: norm.get(key) for key in ("x_zero", "epsilon", "groups")},
                )  # fmt: skip
            case int_ops.RopeOp() as rope:
                tables = [self.rows(self.values[rope.positions], ref) for ref in (rope.cos, rope.sin)]
                return self.emit(
                    self.carrier(rope), [rope.x, *tables, self.scale(op)], result, name,
                    zero_point=zero, **{k: rope.get(k) for k in ("head_dim", "interleaved", "x_zero")},
                )  # fmt: skip
            case int_ops.MulOp() as mul:
                return self.emit(
                    self.carrier(mul), [mul.a, mul.b, self.scale(op)], result, name,
                    zero_point=zero, **{k: mul.get(k) for k in ("a_zero", "b_zero", "acc_shift")},
                )  # fmt: skip
        raise TargetError(f"npu: int.requant %{name} of %{op.x.name_hint} has no htp form")

    def lut(self, op: int_ops.LutOp, name: str) -> SSAValue:
        table = self.ctx.weights[op.table]
        if bits(op.x) == 16 and int(np.abs(table.astype(np.int64)).max()) >= _KNOT_LIMIT:
            raise TargetError(f"npu: int.lut %{name} has knots of 2^22 or more, which leave s32")
        return self.emit(
            self.carrier(op), [op.x, self.constant(op.table)], self.out(op.result), name,
            segment_bits=op.get("segment_bits"), function=op.get("function"),
        )  # fmt: skip

    def add(self, op: int_ops.AddOp, name: str) -> SSAValue:
        return self.emit(
            self.carrier(op), [op.a, op.b], self.out(op.result), name,
            **{key: op.get(key) for key in op.properties},
        )  # fmt: skip

    def write(self, op: int_ops.AttentionOp, part: str, rows: SSAValue) -> SSAValue:
        """Write rows into the layer's cache."""
        kv_heads = op.get("kv_heads")
        dim = channels(op.k) // kv_heads
        keys = part == "key"
        size = (htp_attention.key_bytes if keys else htp_attention.value_bytes)(self.capacity, dim)
        kind = static(u8, kv_heads, size)
        name = f"{op.value_name}.{part}s"
        cache = self.emit(htp_memory.CacheOp, [], kind, name, layer=op.get("layer"), part=part)
        return self.emit(
            htp_attention.CacheWriteKeysOp if keys else htp_attention.CacheWriteValuesOp,
            [rows, cache], kind, name, head_dim=dim, capacity=self.capacity,
            q_zero=op.get("q_zero") if keys else None,
        )  # fmt: skip

    def attention(self, op: int_ops.AttentionOp, name: str) -> SSAValue:
        heads, kv_heads = op.get("heads"), op.get("kv_heads")
        group, dim = heads // kv_heads, channels(op.q) // heads
        keys, values = self.write(op, "key", op.k), self.write(op, "value", op.v)
        table = self.ctx.weights.add("exponentials", arithmetic.EXP2_TABLE.astype(np.int32))
        exponentials = self.constant(table)
        result = self.out(op.result)
        y = self.emit(htp_memory.EmptyOp, [], result, name)
        together = max(1, min(group, _SCORE_BYTES // (4 * self.tokens * self.capacity)))
        common = {"capacity": self.capacity, "window": op.get("window")}
        for kv_head in range(kv_heads):
            key, value = (self.slice(cache, kv_head, name) for cache in (keys, values))
            for begin in range(kv_head * group, (kv_head + 1) * group, together):
                count = min(together, (kv_head + 1) * group - begin)
                rows = self.tokens * count
                scores = self.emit(
                    htp_attention.MatMulKeysOp, [op.q, key], static(s32, rows, self.capacity),
                    f"{name}.scores", head=begin, heads=count, head_dim=dim, **common,
                )  # fmt: skip
                probabilities = self.emit(
                    htp_attention.MaskedSoftmaxOp, [scores, exponentials],
                    static(u16, rows, self.capacity), f"{name}.probabilities", heads=count,
                    multiplier=op.get("score_multiplier"), shift=op.get("score_shift"), **common,
                )  # fmt: skip
                y = self.emit(
                    htp_attention.MatMulValuesOp, [probabilities, value, y], result, name, head=begin,
                    heads=count, head_dim=dim, v_zero=op.get("v_zero"), multiplier=op.get("multiplier"),
                    shift=op.get("shift"), zero_point=op.get("zero_point"), **common,
                )  # fmt: skip
        return y

    def slice(self, cache: SSAValue, head: int, name: str) -> SSAValue:
        size = channels(cache)
        return self.emit(htp_memory.StridedSliceOp, [cache], static(u8, 1, size), name, first=head)
