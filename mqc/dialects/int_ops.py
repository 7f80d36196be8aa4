"""The `int` dialect: integers only. `evaluate` of these ops is the oracle that every backend matches.

Values are `tensor<?xC x ui8|ui16|si32>`. Activations are unsigned with a zero point that stands
on the op that reads them; s32 values are accumulators, brought back by `int.requant`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from xdsl.dialects.builtin import IntegerAttr, IntegerType, Signedness, StringAttr, TensorType
from xdsl.ir import Attribute, Dialect, SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def

from mqc.arrays import Array
from mqc.dialects.quant import UniformType
from mqc.ir.op import (
    INDICES,
    EvaluationContext,
    MqcOp,
    WeightAttr,
    channels,
    element_type,
    s8,
    s16,
    s32,
    u8,
    u16,
)  # fmt: skip
from mqc.ir.weight_store import numpy_dtype
from mqc.numerics import arithmetic as a
from mqc.numerics.layouts import LAYOUTS, S8_LAYOUTS, packed_shape, unpack

ACTIVATION_TYPES = (u8, u16)
#: Steps between 0 and the largest logit that calibration saw; s32 leaves room for 2^11 times more.
LOGIT_STEPS = 2**20


def bits(value: SSAValue) -> int:
    element = element_type(value)
    assert isinstance(element, IntegerType)
    return int(element.width.data)


def limits(value: SSAValue) -> tuple[int, int]:
    """Smallest and largest integer of the value's element type."""
    element = element_type(value)
    assert isinstance(element, IntegerType)
    width = int(element.width.data)
    low = -(1 << (width - 1)) if element.signedness.data == Signedness.SIGNED else 0
    return low, low + (1 << width) - 1


class IntOp(MqcOp):
    """An op of the `int` level: every operand and result has integer elements.

    A verified op addresses its weights within their bounds, whatever it is given; backends rely
    on it. What depends on the module (`mqc.context`, the vocabulary) is `mqc.analysis.verification`'s.
    """

    LEVELS: ClassVar[tuple[str, ...]] = ("int",)
    #: Element types that the operands may have, token ids and positions apart.
    OPERAND_TYPES: ClassVar[tuple[IntegerType, ...]] = ACTIVATION_TYPES

    def verify_(self) -> None:
        for value in (*self.operands, *self.results):
            element = element_type(value)
            self.expect(isinstance(element, IntegerType), f"{value.type} is not a tensor of integers")
        real = self.represents
        self.expect(
            real is None or real.storage == element_type(self.results[0]),
            f"represents {real} is not stored as {self.results[0].type}",
        )
        super().verify_()

    @property
    def represents(self) -> UniformType | None:
        """The quantized type whose stored integers the result holds, where the op states it."""
        stated = self.attributes.get("represents")
        return stated if isinstance(stated, UniformType) else None

    def expect_operands(self, *values: SSAValue) -> None:
        allowed = " or ".join(map(str, self.OPERAND_TYPES))
        for value in values:
            known = element_type(value) in self.OPERAND_TYPES
            self.expect(known, f"{value.type} must have {allowed} elements")

    def expect_activation(self, *values: SSAValue) -> None:
        for value in values:
            self.expect(
                element_type(value) in ACTIVATION_TYPES,
                f"{value.type} must have ui8 or ui16 elements",
            )

    def expect_zero_point(self, name: str, value: SSAValue) -> None:
        low, high = limits(value)
        self.expect(low <= self.get(name) <= high, f"{name} must be in [{low}, {high}]")

    def expect_scale(self, multiplier: str, shift: str) -> None:
        m, s = abs(self.get(multiplier)), self.get(shift)
        self.expect(m == 0 or 2**30 <= m < 2**31, f"|{multiplier}| must be 0 or in [2^30, 2^31)")
        self.expect(-31 <= s <= 31, f"{shift} must be in [-31, 31]")

    def expect_weight(self, name: str, element: Attribute, *shapes: tuple[int, ...]) -> None:
        ref = self.properties[name]
        assert isinstance(ref, WeightAttr)
        self.expect(ref.shape in shapes, f"{name} must be {' or '.join(str(list(s)) for s in shapes)}")
        self.expect(ref.type.get_element_type() == element, f"{name} must have {element} elements")

    def expect_matrix(self, name: str, n: int, k: int, weight_bits: int = 8) -> None:
        """A property holds an `[n, k]` matrix, as it is or in the layout that the op states."""
        layout = self.get("layout")
        if layout is None:
            self.expect_weight(name, s8, (n, k))
            return
        self.expect(layout in LAYOUTS, f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
        self.expect(LAYOUTS[layout] == weight_bits, f"{layout} does not hold {weight_bits} bits")
        self.expect_weight(name, s8 if layout in S8_LAYOUTS else u8, packed_shape(layout, n, k))

    def expect_channels(self, count: int, *values: SSAValue) -> None:
        for value in values:
            self.expect(channels(value) == count, f"{value.type} must have {count} channels")

    def narrow(self, x: Any) -> Array:
        """Clamp to the result's type."""
        low, high = limits(self.results[0])
        return np.clip(x, low, high).astype(numpy_dtype(element_type(self.results[0])))


@irdl_op_definition
class EmbeddingOp(IntOp):
    """Row of an s8 table, rescaled by the row's multiplier and shift.

    `y[t] = clamp(requantize(table[i], multiplier[i], shift[i]) + zero_point), i = index[t]`
    """

    name = "int.embedding"
    indices = operand_def(TensorType)
    table = prop_def(WeightAttr)
    multiplier = prop_def(WeightAttr)
    shift = prop_def(WeightAttr)
    zero_point = prop_def(IntegerAttr)
    layout = opt_prop_def(StringAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        self.expect_activation(self.result)
        self.expect_zero_point("zero_point", self.result)
        rows = self.multiplier.shape[0] if self.multiplier.shape else 0
        self.expect_weight("multiplier", s32, (rows,))
        self.expect_weight("shift", s8, (rows,))
        self.expect_matrix("table", rows, channels(self.result))
        self.expect(self.indices.type == INDICES, f"{self.indices.type} must be {INDICES}")

    def lookups(self) -> list[tuple[SSAValue, int]]:
        return [(self.indices, self.multiplier.shape[0])]

    def rows(self, ctx: EvaluationContext, indices: Array) -> Array:
        table, count = ctx.array(self.table), channels(self.result)
        if self.layout is None:
            return table[indices]
        # n16k4: row i is lane i % 16 of block i // 16.
        return table[indices // 16, :, indices % 16].reshape(len(indices), -1)[:, :count]

    def evaluate(self, ctx: EvaluationContext, indices: Array) -> Array:
        m, s = ctx.array(self.multiplier)[indices, None], ctx.array(self.shift)[indices, None]
        return self.narrow(a.requantize(self.rows(ctx, indices), m, s) + self.get("zero_point"))


@irdl_op_definition
class LinearOp(IntOp):
    """Matrix product with s8 (or s4) weights. With `group_scale` (u8, 1…16) the weight of input
    channel k is `weight[n, k] · group_scale[n, k // group]`. `acc_shift` brings a wide sum into s32.

    `y = shift_right_round(Σ (x − x_zero)·w + bias, acc_shift)`
    """

    name = "int.linear"
    x = operand_def(TensorType)
    weight = prop_def(WeightAttr)
    weight_bits = prop_def(IntegerAttr)
    group_scale = opt_prop_def(WeightAttr)
    bias = prop_def(WeightAttr)
    x_zero = prop_def(IntegerAttr)
    acc_shift = prop_def(IntegerAttr)
    layout = opt_prop_def(StringAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        n, k = channels(self.result), channels(self.x)
        self.expect_operands(self.x)
        self.expect(element_type(self.result) == s32, "the result must be si32")
        self.expect_zero_point("x_zero", self.x)
        self.expect(self.get("weight_bits") in (4, 8), "weight_bits must be 4 or 8")
        self.expect(0 <= self.get("acc_shift") <= 31, "acc_shift must be in [0, 31]")
        self.expect_weight("bias", s32, (n,))
        self.expect_matrix("weight", n, k, self.get("weight_bits"))
        if self.group_scale is not None:
            groups = (*self.group_scale.shape, 0)[1]
            self.expect(groups > 0 and k % groups == 0, "groups must divide inputs")
            self.expect_weight("group_scale", u8, (n, groups))

    def matrix(self, ctx: EvaluationContext) -> Array:
        """The effective weight `[outputs, inputs]`, s8."""
        weight = ctx.array(self.weight)
        n, k = channels(self.result), channels(self.x)
        if self.layout is not None:
            weight = unpack(weight, self.layout.data, n, k)
        if self.group_scale is not None:
            factor = ctx.array(self.group_scale).astype(np.int8)
            weight = weight * np.repeat(factor, k // factor.shape[1], 1)
        return weight

    def evaluate(self, ctx: EvaluationContext, x: Array) -> Array:
        # Sums of integers below 2^53 are exact in float64, and BLAS is 50 times faster on it.
        shifted = x.astype(np.float64) - self.get("x_zero")
        acc = (shifted @ self.matrix(ctx).astype(np.float64).T).astype(np.int64)
        acc += ctx.array(self.bias)
        result: Array = a.shift_right_round(acc, self.get("acc_shift")).astype(np.int32)
        return result

    def macs(self) -> int:
        return channels(self.x) * channels(self.result)


@irdl_op_definition
class RequantOp(IntOp):
    """Rescale accumulators to a narrower type, per tensor or per channel.

    "Integer semantics" in docs/architecture.md defines `requantize`.

    `y = clamp(requantize(x, multiplier, shift) + zero_point)`
    """

    name = "int.requant"
    OPERAND_TYPES: ClassVar[tuple[IntegerType, ...]] = (s32,)
    x = operand_def(TensorType)
    multiplier = prop_def(WeightAttr)
    shift = prop_def(WeightAttr)
    zero_point = prop_def(IntegerAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        self.expect_operands(self.x)
        self.expect_zero_point("zero_point", self.result)
        self.expect_channels(channels(self.x), self.result)
        for name, element in (("multiplier", s32), ("shift", s8)):
            self.expect_weight(name, element, (1,), (channels(self.result),))

    def evaluate(self, ctx: EvaluationContext, x: Array) -> Array:
        scaled = a.requantize(x, ctx.array(self.multiplier), ctx.array(self.shift))
        return self.narrow(scaled + self.get("zero_point"))


class NormOp(IntOp):
    """What the norms share: the direction of each group of channels with 30 fraction bits."""

    x = operand_def(TensorType)
    x_zero = prop_def(IntegerAttr)
    epsilon = prop_def(IntegerAttr)
    groups = prop_def(IntegerAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        self.expect_operands(self.x)
        self.expect(element_type(self.result) == s32, "the result must be si32")
        self.expect_zero_point("x_zero", self.x)
        self.expect(1 <= self.get("epsilon") < 2**62, "epsilon must be in [1, 2^62)")
        self.expect_channels(channels(self.x), self.result)
        groups = self.get("groups")
        self.expect(groups > 0 and channels(self.x) % groups == 0, "groups must divide the channels")
        size = channels(self.x) // groups
        self.expect(size <= 1 << 14, "a group may have at most 16384 channels")

    def deviations(self, blocks: Array) -> Array:
        raise NotImplementedError

    def evaluate(self, ctx: EvaluationContext, x: Array) -> Array:
        blocks = x.astype(np.int64).reshape(len(x), self.get("groups"), -1)
        y = a.directions(self.deviations(blocks), self.get("epsilon"))
        return y.reshape(x.shape).astype(np.int32)


@irdl_op_definition
class RmsNormOp(NormOp):
    """Direction of each group of channels; the gain and sqrt(channels) are in the next requant.

    `y = 2^30 · d / sqrt(Σ d² + epsilon), d = x − x_zero`
    """

    name = "int.rms_norm"

    def deviations(self, blocks: Array) -> Array:
        return blocks - self.get("x_zero")


@irdl_op_definition
class LayerNormOp(NormOp):
    """As `int.rms_norm` of the deviations from the mean, which keep 6 fraction bits.

    `y = 2^30 · d / sqrt(Σ d² + epsilon), d = 64·x − round(64·mean(x))`
    """

    name = "int.layer_norm"

    def deviations(self, blocks: Array) -> Array:
        return a.deviations_from_mean(blocks)


@irdl_op_definition
class RopeOp(IntOp):
    """Rotary position embedding by s16 tables with 14 fraction bits; the result keeps them.

    Of a rotation |y| ≤ √2·65535·2^14 < 2^31: s32 holds it. `mqc.analysis.proofs` proves it of the tables.
    `(y₁, y₂) = (d₁·cos p − d₂·sin p, d₂·cos p + d₁·sin p), d = x − x_zero; else y = d·2^14`
    """

    name = "int.rope"
    x = operand_def(TensorType)
    positions = operand_def(TensorType)
    cos = prop_def(WeightAttr)
    sin = prop_def(WeightAttr)
    head_dim = prop_def(IntegerAttr)
    interleaved = prop_def(IntegerAttr)
    x_zero = prop_def(IntegerAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        self.expect_operands(self.x)
        self.expect(element_type(self.result) == s32, "the result must be si32")
        self.expect_zero_point("x_zero", self.x)
        self.expect_channels(channels(self.x), self.result)
        head_dim = self.get("head_dim")
        self.expect(0 < head_dim <= 1 << 13, "head_dim must be in [1, 8192]")
        self.expect(channels(self.x) % head_dim == 0, "head_dim must divide the channels")
        self.expect(self.get("interleaved") in (0, 1), "interleaved must be 0 or 1")
        rows, half = (*self.cos.shape, 0, 0)[:2]
        self.expect(0 < 2 * half <= head_dim, "tables must be at most head_dim / 2 wide")
        for name in ("cos", "sin"):
            self.expect_weight(name, s16, (rows, half))
        self.expect(self.positions.type == INDICES, f"{self.positions.type} must be {INDICES}")

    def lookups(self) -> list[tuple[SSAValue, int]]:
        return [(self.positions, self.cos.shape[0])]

    def evaluate(self, ctx: EvaluationContext, x: Array, positions: Array) -> Array:
        d = x.astype(np.int64).reshape(len(x), -1, self.get("head_dim")) - self.get("x_zero")
        cos, sin = (ctx.array(t)[positions][:, None].astype(np.int64) for t in (self.cos, self.sin))
        y = a.rotate(d, cos, sin, bool(self.get("interleaved")))
        return y.reshape(x.shape).astype(np.int32)


@irdl_op_definition
class AttentionOp(IntOp):
    """Causal attention with a u8 KV cache, whose first rows are `prefix_k` and `prefix_v`.

    For each query: s = Σ (q − q_zero)(k − k_zero) over visible keys,
    u = min(requantize(max s − s, score_multiplier, score_shift), 65535), p = softmax(u),
    `y = clamp(requantize(Σ p·(v − v_zero), multiplier, shift) + zero_point)`
    """

    name = "int.attention"
    OPERAND_TYPES: ClassVar[tuple[IntegerType, ...]] = (u8,)
    q = operand_def(TensorType)
    k = operand_def(TensorType)
    v = operand_def(TensorType)
    layer = prop_def(IntegerAttr)
    heads = prop_def(IntegerAttr)
    kv_heads = prop_def(IntegerAttr)
    window = opt_prop_def(IntegerAttr)
    prefix_k = opt_prop_def(WeightAttr)
    prefix_v = opt_prop_def(WeightAttr)
    q_zero = prop_def(IntegerAttr)
    k_zero = prop_def(IntegerAttr)
    v_zero = prop_def(IntegerAttr)
    score_multiplier = prop_def(IntegerAttr)
    score_shift = prop_def(IntegerAttr)
    multiplier = prop_def(IntegerAttr)
    shift = prop_def(IntegerAttr)
    zero_point = prop_def(IntegerAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        self.expect_operands(self.q, self.k, self.v)
        self.expect_activation(self.result)
        for name, value in zip(("q_zero", "k_zero", "v_zero"), self.operands, strict=True):
            self.expect_zero_point(name, value)
        self.expect_zero_point("zero_point", self.result)
        self.expect_scale("score_multiplier", "score_shift")
        self.expect_scale("multiplier", "shift")
        self.expect(self.get("score_multiplier") >= 0, "score_multiplier must not be negative")
        heads, kv_heads = self.get("heads"), self.get("kv_heads")
        self.expect(
            0 < kv_heads <= heads and heads % kv_heads == 0, f"{kv_heads} kv_heads must divide {heads} heads"
        )
        width = channels(self.q) // heads
        self.expect(0 < width <= 1 << 13, "head_dim must be in [1, 8192]")
        self.expect_channels(width * heads, self.q, self.result)
        self.expect_channels(width * kv_heads, self.k, self.v)
        self.expect(self.window is None or 0 < self.get("window") < 2**31, "window must be positive")
        self.expect((self.prefix_k is None) == (self.prefix_v is None), "a prefix has keys and values")
        if self.prefix_k is not None:
            rows = (*self.prefix_k.shape, 0)[0]
            for name in ("prefix_k", "prefix_v"):
                self.expect_weight(name, u8, (rows, width * kv_heads))

    def cache(self) -> tuple[int, int]:
        return self.get("layer"), 0 if self.prefix_k is None else self.prefix_k.shape[0]

    def evaluate(self, ctx: EvaluationContext, q: Array, k: Array, v: Array) -> Array:
        layer, heads, kv_heads = self.get("layer"), self.get("heads"), self.get("kv_heads")
        past = ctx.cache.get(layer)
        if past is None and self.prefix_k is not None and self.prefix_v is not None:
            past = ctx.array(self.prefix_k), ctx.array(self.prefix_v)
        if past is not None:
            k, v = np.concatenate([past[0], k]), np.concatenate([past[1], v])
        ctx.cache[layer] = k, v
        new, seen = len(q), len(k)
        # float64 products of integers below 2^53 are exact.
        shape = (new, kv_heads, heads // kv_heads, -1)
        queries = (q.astype(np.float64) - self.get("q_zero")).reshape(shape).transpose(1, 2, 0, 3)
        keys = (k.astype(np.float64) - self.get("k_zero")).reshape(seen, kv_heads, 1, -1)
        values = (v.astype(np.float64) - self.get("v_zero")).reshape(seen, kv_heads, 1, -1)
        scores = (queries @ keys.transpose(1, 2, 3, 0)).astype(np.int64)
        age = np.arange(seen - new, seen)[:, None] - np.arange(seen)
        visible = age >= 0
        if self.window is not None:
            visible &= age < self.get("window")
        largest = np.where(visible, scores, a.INT32_MIN).max(-1, keepdims=True)
        below = np.where(visible, largest - scores, 0)
        differences = a.requantize(below, self.get("score_multiplier"), self.get("score_shift"))
        p = a.softmax(np.minimum(differences, 65535), visible)
        acc = (p.astype(np.float64) @ values.transpose(1, 2, 0, 3)).astype(np.int64)
        scaled = a.requantize(acc, self.get("multiplier"), self.get("shift")) + self.get("zero_point")
        return self.narrow(scaled.transpose(2, 0, 1, 3).reshape(new, -1))


@irdl_op_definition
class LutOp(IntOp):
    """Function of one value by table. Of a u8: 256 entries of the result's type. Of a u16:
    2^(16−segment_bits) + 1 s32 knots with 4 fraction bits, interpolated linearly. `function` names
    the real function, for targets that have it as an op.

    `y = table[x]`, or with i = x >> b, r = x & (2^b − 1):
    `y = clamp(shift_right_round(table[i]·(2^b − r) + table[i+1]·r, b + 4))`
    """

    name = "int.lut"
    x = operand_def(TensorType)
    table = prop_def(WeightAttr)
    segment_bits = opt_prop_def(IntegerAttr)
    function = opt_prop_def(StringAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        self.expect_operands(self.x)
        self.expect_activation(self.result)
        self.expect_channels(channels(self.x), self.result)
        if bits(self.x) == 8:
            self.expect_weight("table", element_type(self.result), (256,))
        else:
            self.expect(self.segment_bits is not None, "a ui16 operand needs segment_bits")
            self.expect(0 <= self.get("segment_bits") <= 8, "segment_bits must be in [0, 8]")
            self.expect_weight("table", s32, ((1 << (16 - self.get("segment_bits"))) + 1,))

    def evaluate(self, ctx: EvaluationContext, x: Array) -> Array:
        table = ctx.array(self.table)
        if bits(self.x) == 8:
            return table[x]
        return self.narrow(
            a.interpolate(x.astype(np.int64), table.astype(np.int64), self.get("segment_bits"))
        )


@irdl_op_definition
class MulOp(IntOp):
    """Elementwise product; `acc_shift` brings the product of two u16 into s32.

    `y = shift_right_round((a − a_zero)·(b − b_zero), acc_shift)`
    """

    name = "int.mul"
    a = operand_def(TensorType)
    b = operand_def(TensorType)
    a_zero = prop_def(IntegerAttr)
    b_zero = prop_def(IntegerAttr)
    acc_shift = prop_def(IntegerAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        self.expect_operands(self.a, self.b)
        self.expect(element_type(self.result) == s32, "the result must be si32")
        self.expect_zero_point("a_zero", self.a)
        self.expect_zero_point("b_zero", self.b)
        self.expect_channels(channels(self.a), self.b, self.result)
        self.expect(0 <= self.get("acc_shift") <= 31, "acc_shift must be in [0, 31]")
        wide = bits(self.a) + bits(self.b) - self.get("acc_shift")
        self.expect(wide <= 30, "acc_shift must bring the product into 31 bits")

    def evaluate(self, ctx: EvaluationContext, x: Array, y: Array) -> Array:
        product = (x.astype(np.int64) - self.get("a_zero")) * (y.astype(np.int64) - self.get("b_zero"))
        result: Array = a.shift_right_round(product, self.get("acc_shift")).astype(np.int32)
        return result


@irdl_op_definition
class AddOp(IntOp):
    """Sum of two values of different scales, each rescaled to 2^-8 of the result's scale.

    t_x = requantize((x − x_zero) << 14, x_multiplier, x_shift) for x in a, b;
    `y = clamp(shift_right_round(t_a + t_b, 8) + zero_point)`
    """

    name = "int.add"
    a = operand_def(TensorType)
    b = operand_def(TensorType)
    a_zero = prop_def(IntegerAttr)
    a_multiplier = prop_def(IntegerAttr)
    a_shift = prop_def(IntegerAttr)
    b_zero = prop_def(IntegerAttr)
    b_multiplier = prop_def(IntegerAttr)
    b_shift = prop_def(IntegerAttr)
    zero_point = prop_def(IntegerAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        self.expect_operands(self.a, self.b)
        self.expect_activation(self.result)
        self.expect_channels(channels(self.a), self.b, self.result)
        self.expect_zero_point("zero_point", self.result)
        for name, value in (("a", self.a), ("b", self.b)):
            self.expect_zero_point(f"{name}_zero", value)
            self.expect_scale(f"{name}_multiplier", f"{name}_shift")
            factor = abs(self.get(f"{name}_multiplier")) * 2.0 ** -(31 + self.get(f"{name}_shift"))
            bound = (1 << (bits(value) + a.ADD_LEFT_SHIFT)) * factor
            self.expect(bound < 2**30, f"operand {name} is more than 64 times the result's range")

    def evaluate(self, ctx: EvaluationContext, x: Array, y: Array) -> Array:
        terms = (
            (v.astype(np.int64) - self.get(f"{n}_zero"), self.get(f"{n}_multiplier"), self.get(f"{n}_shift"))
            for n, v in (("a", x), ("b", y))
        )
        return self.narrow(a.rescaled_sum(*terms) + self.get("zero_point"))


Int = Dialect(
    "int",
    [
        EmbeddingOp, LinearOp, RequantOp, RmsNormOp, LayerNormOp, RopeOp, AttentionOp, LutOp, MulOp,
        AddOp,
    ],
)  # fmt: skip
