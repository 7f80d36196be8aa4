"""The `int` dialect: integers only. `evaluate` of these ops is the oracle that every backend matches.

Values are `tensor<?xC x ui8|ui16|si32>`. Activations are unsigned with a zero point that stands
on the op that reads them; s32 values are accumulators, brought back by `int.requant`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from xdsl.dialects.builtin import IntegerAttr, StringAttr, TensorType
from xdsl.ir import Dialect, SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, opt_prop_def, prop_def, result_def

from mqc.arrays import Array
from mqc.dialects.constraints import (
    MULTIPLIERS,
    NORM_GROUPS,
    SHIFTS,
    Limit,
    Values,
    addends,
    bits,
    scales,
    within,
    zero_of,
)
from mqc.dialects.int_attention import AttentionOp
from mqc.dialects.int_conv import CausalConvOp
from mqc.dialects.int_core import (
    ACCUMULATOR,
    ACTIVATIONS,
    INDEX,
    IntOp,
    constant,
    matrix,
    same_channels,
)
from mqc.dialects.int_linear_attention import LinearAttentionOp
from mqc.dialects.int_requant import AccumulatorOp, RequantOp
from mqc.dialects.int_routing import GATES, GateOp, RouteOp, most_chosen
from mqc.ir.op import (
    EvaluationContext,
    WeightAttr,
    channels,
    element_type,
    s8,
    s16,
    s32,
    u8,
)
from mqc.numerics import arithmetic as a
from mqc.numerics.layouts import unpack
from mqc.numerics.products import correction, effective_weight, row_sums
from mqc.numerics.routing import routed_product

#: Steps between 0 and the largest logit that calibration saw; s32 leaves room for 2^11 times more.
LOGIT_STEPS = 2**20


def padded_weight(op: LinearOp, stored: Array) -> bool:
    """Whether 4-bit weights fit, and what `n16k4` pads is 0: it meets what lies behind a row."""
    layout, inputs = op.layout, channels(op.x)
    if layout is None:
        return op.get("weight_bits") == 8 or bool((stored >= -8).all() and (stored <= 7).all())
    if not layout.data.startswith("n16k4") or inputs % 4 == 0:
        return True
    last = stored[:, -1:]
    whole = unpack(last, layout.data, 16 * len(last), 4)
    return not whole[:, inputs % 4 :].any()


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

    MATRIX: ClassVar = "table"
    PORTS: ClassVar = {"indices": INDEX, "result": ACTIVATIONS}
    LIMITS: ClassVar = (
        zero_of("zero_point"),
        constant("multiplier", s32, "[rows]", lambda op: (op.row_count,)),
        constant("shift", s8, "[rows]", lambda op: (op.row_count,)),
        *matrix("table", lambda op: 8, ("n16k4", "kn")),
    )
    VALUES: ClassVar = (MULTIPLIERS, SHIFTS)

    @property
    def row_count(self) -> int:
        return self.multiplier.shape[0] if self.multiplier.shape else 0

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.row_count, channels(self.result)

    def lookups(self) -> list[tuple[SSAValue, int]]:
        return [(self.indices, self.row_count)]

    def rows(self, ctx: EvaluationContext, indices: Array) -> Array:
        table, count = ctx.array(self.table), channels(self.result)
        if self.layout is None:
            return table[indices]
        if self.get("layout") == "kn":
            return table[:, indices].T
        # n16k4: row i is lane i % 16 of block i // 16.
        return table[indices // 16, :, indices % 16].reshape(len(indices), -1)[:, :count]

    def evaluate(self, ctx: EvaluationContext, indices: Array) -> Array:
        m, s = ctx.array(self.multiplier)[indices, None], ctx.array(self.shift)[indices, None]
        return self.narrow(a.requantize(self.rows(ctx, indices), m, s) + self.get("zero_point"))


@irdl_op_definition
class LinearOp(AccumulatorOp):
    """Matrix product with s8 or 4-bit weights. With `group_scale` (u8, 1…16) the 4-bit weight of input
    channel k is `weight[n, k] · group_scale[n, k // group]`. `acc_shift` brings a wide sum into s32.
    `row_sums` states Σw of each output, so that a packed matrix need not be read for it.

    With `gates` the weight has a block for each along `expert_axis`, and a token takes those whose gate is
    not `gates_zero`: blocks of outputs (0), which are 0 elsewhere; or blocks of inputs (1), where x − x_zero
    counts as 0 elsewhere. In the second case `row_sums` are `[outputs, experts]`.

    `y = shift_right_round(Σ x·w + bias − x_zero·Σw, acc_shift)`
    """

    name = "int.linear"
    x = operand_def(TensorType)
    gates = opt_operand_def(TensorType)
    weight = prop_def(WeightAttr)
    weight_bits = prop_def(IntegerAttr)
    group_scale = opt_prop_def(WeightAttr)
    row_sums = opt_prop_def(WeightAttr)
    bias = prop_def(WeightAttr)
    x_zero = prop_def(IntegerAttr)
    acc_shift = prop_def(IntegerAttr)
    layout = opt_prop_def(StringAttr)
    gates_zero = opt_prop_def(IntegerAttr)
    expert_axis = opt_prop_def(IntegerAttr)
    result = result_def(TensorType)

    MATRIX: ClassVar = "weight"
    PORTS: ClassVar = {"x": ACTIVATIONS, "gates": ACTIVATIONS, "result": ACCUMULATOR}
    LIMITS: ClassVar = (
        zero_of("x_zero", "x"),
        Limit("weight_bits 4 or 8", lambda op: op.get("weight_bits") in (4, 8)),
        within("acc_shift", 0, 31),
        constant("bias", s32, "[outputs]", lambda op: (channels(op.result),)),
        *GATES,
        constant("row_sums", s32, "[outputs] or [outputs, experts]", lambda op: op.sums_shape),
        *matrix("weight", lambda op: op.get("weight_bits")),
        constant("group_scale", u8, "[outputs, groups]", lambda op: (channels(op.result), op.groups)),
        Limit(
            "group_scale with 4-bit weights: with its factor a weight stays s8",
            lambda op: op.group_scale is None or op.get("weight_bits") == 4,
        ),
        Limit(
            "groups divide the inputs, those of each expert",
            lambda op: (
                op.group_scale is None
                or (
                    op.groups > 0 and channels(op.x) % op.groups == 0 and op.groups % op.column_blocks[0] == 0
                )
            ),
        ),
    )
    VALUES: ClassVar = (
        Values("group_scale", "in [1, 16]", lambda op, f: (f >= 1) & (f <= 16)),
        Values("weight", "of 4 bits, as weight_bits says, and 0 where its layout pads inputs", padded_weight),
    )

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return channels(self.result), channels(self.x)

    @property
    def groups(self) -> int:
        """Groups of input channels that share a factor; 0 without factors."""
        return 0 if self.group_scale is None else (*self.group_scale.shape, 0, 0)[1]

    @property
    def experts(self) -> tuple[int, int]:
        """How many experts there are, and how many of them a token takes at most; 1 and 1 without gates."""
        if self.gates is None:
            return 1, 1
        return channels(self.gates), most_chosen(self.gates, self.get("gates_zero"))

    @property
    def column_blocks(self) -> tuple[int, int]:
        """In how many blocks the columns are, and how many of them a token takes at most."""
        return self.experts if self.get("expert_axis") == 1 else (1, 1)

    @property
    def sums_shape(self) -> tuple[int, ...]:
        """Of `row_sums`: apart for each block of columns."""
        outputs, blocks = channels(self.result), self.column_blocks[0]
        return (outputs, blocks) if self.get("expert_axis") == 1 else (outputs,)

    def matrix(self, ctx: EvaluationContext) -> Array:
        """The effective weight `[outputs, inputs]`, s8."""
        weight = ctx.array(self.weight)
        if self.layout is not None:
            weight = unpack(weight, self.layout.data, *self.matrix_shape)
        return effective_weight(weight, None if self.group_scale is None else ctx.array(self.group_scale))

    def sums(self, ctx: EvaluationContext) -> Array:
        """s32 `sums_shape`: Σw. Reads no weight where `row_sums` are stated."""
        if self.row_sums is not None:
            return ctx.array(self.row_sums)
        return row_sums(self.matrix(ctx), *self.sums_shape[1:])

    def correction(self, ctx: EvaluationContext) -> Array:
        """s64 `sums_shape`: bias − x_zero · Σw, what a sum of x·w lacks; without the bias, if it is for each
        block of columns."""
        if len(self.sums_shape) == 2:
            return -self.get("x_zero") * self.sums(ctx).astype(np.int64)
        return correction(ctx.array(self.bias), self.get("x_zero"), self.sums(ctx))

    def whole_correction(self, ctx: EvaluationContext) -> Array:
        """s64 `[outputs]`: bias − x_zero · Σw over all columns, in blocks or not."""
        found = self.correction(ctx)
        return found if found.ndim == 1 else found.sum(1) + ctx.array(self.bias)

    def evaluate(self, ctx: EvaluationContext, x: Array, gates: Array | None = None) -> Array:
        matrix = self.matrix(ctx)
        if gates is None:
            acc = _product(x, matrix) + self.correction(ctx)
        else:
            acc = self._of_experts(ctx, x, gates != self.get("gates_zero"), matrix)
        result: Array = a.shift_right_round(acc, self.get("acc_shift")).astype(np.int32)
        return result

    def _of_experts(self, ctx: EvaluationContext, x: Array, chosen: Array, matrix: Array) -> Array:
        added, axis = self.correction(ctx), self.get("expert_axis")

        def of_expert(x: Array, rows: slice, columns: slice) -> Array:
            if axis == 0:
                return _product(x, matrix[rows]) + added[rows]
            expert = columns.start // (columns.stop - columns.start)
            return _product(x, matrix[:, columns]) + added[:, expert]

        acc = routed_product(x, chosen, axis, len(matrix), of_expert)
        return acc if axis == 0 else acc + ctx.array(self.bias)

    def macs(self) -> int:
        experts, chosen = self.experts
        return channels(self.x) * channels(self.result) * chosen // experts


def _product(x: Array, matrix: Array) -> Array:
    """Sums s64 of integers. Below 2^53 they are exact in float64, and BLAS is 50 times faster on it."""
    return (x.astype(np.float64) @ matrix.astype(np.float64).T).astype(np.int64)


class NormOp(AccumulatorOp):
    """What the norms share: the direction of each group of channels with 30 fraction bits."""

    x = operand_def(TensorType)
    x_zero = prop_def(IntegerAttr)
    epsilon = prop_def(IntegerAttr)
    groups = prop_def(IntegerAttr)
    result = result_def(TensorType)

    PORTS: ClassVar = {"x": ACTIVATIONS, "result": ACCUMULATOR}
    LIMITS: ClassVar[tuple[Limit, ...]] = (
        zero_of("x_zero", "x"),
        within("epsilon", 1, 2**62 - 1),
        same_channels("x"),
        NORM_GROUPS,
    )

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
    """As `int.rms_norm` of the deviations from the mean, which keep 6 fraction bits. A `bias` is added to y,
    of which each channel gives up as many bits as `bias_shift` says.

    `y = 2^30 · d / sqrt(Σ d² + epsilon), d = 64·x − round(64·mean(x))`;
    with a bias `shift_right_round(y, bias_shift) + bias`
    """

    name = "int.layer_norm"
    bias = opt_prop_def(WeightAttr)
    bias_shift = opt_prop_def(WeightAttr)

    LIMITS: ClassVar = (
        *NormOp.LIMITS,
        Limit("bias and bias_shift together", lambda op: (op.bias is None) == (op.bias_shift is None)),
        constant("bias", s32, "[channels]", lambda op: (channels(op.x),)),
        constant("bias_shift", s8, "[channels]", lambda op: (channels(op.x),)),
    )
    VALUES: ClassVar = (
        Values("bias", "below 2^30", lambda op, b: np.abs(b.astype(np.int64)) < a.NORM_BIAS_LIMIT),
        Values("bias_shift", "in [0, 31]", lambda op, s: (s >= 0) & (s <= 31)),
    )

    def deviations(self, blocks: Array) -> Array:
        return a.deviations_from_mean(blocks)

    def evaluate(self, ctx: EvaluationContext, x: Array) -> Array:
        y = super().evaluate(ctx, x)
        if self.bias is None or self.bias_shift is None:
            return y
        y = a.shift_right_round(y.astype(np.int64), ctx.array(self.bias_shift)) + ctx.array(self.bias)
        return y.astype(np.int32)


@irdl_op_definition
class RopeOp(AccumulatorOp):
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

    PORTS: ClassVar = {"x": ACTIVATIONS, "positions": INDEX, "result": ACCUMULATOR}
    LIMITS: ClassVar = (
        zero_of("x_zero", "x"),
        same_channels("x"),
        within("head_dim", 1, 8192),
        within("interleaved", 0, 1),
        Limit("head_dim divides the channels", lambda op: channels(op.x) % op.get("head_dim") == 0),
        Limit("cos of at most head_dim / 2", lambda op: 0 < 2 * op.table_shape[1] <= op.get("head_dim")),
        constant("cos", s16, "[positions, pairs]", lambda op: op.table_shape),
        constant("sin", s16, "[positions, pairs]", lambda op: op.table_shape),
    )

    @property
    def table_shape(self) -> tuple[int, int]:
        rows, half = (*self.cos.shape, 0, 0)[:2]
        return rows, half

    def lookups(self) -> list[tuple[SSAValue, int]]:
        return [(self.positions, self.cos.shape[0])]

    def evaluate(self, ctx: EvaluationContext, x: Array, positions: Array) -> Array:
        d = x.astype(np.int64).reshape(len(x), -1, self.get("head_dim")) - self.get("x_zero")
        cos, sin = (ctx.array(t)[positions][:, None].astype(np.int64) for t in (self.cos, self.sin))
        y = a.rotate(d, cos, sin, bool(self.get("interleaved")))
        return y.reshape(x.shape).astype(np.int32)


@irdl_op_definition
class LutOp(IntOp):
    """Function of one value by table. Of a u8: 256 entries of the result's type. Of a u16:
    2^(16−segment_bits) + 1 s32 knots with 4 fraction bits, interpolated linearly. `function` names
    the real function, or is an expression of it, for targets that have it as ops.

    `y = table[x]`, or with i = x >> b, r = x & (2^b − 1):
    `y = clamp(shift_right_round(table[i]·(2^b − r) + table[i+1]·r, b + 4))`
    """

    name = "int.lut"
    x = operand_def(TensorType)
    table = prop_def(WeightAttr)
    segment_bits = opt_prop_def(IntegerAttr)
    function = opt_prop_def(StringAttr)
    result = result_def(TensorType)

    PORTS: ClassVar = {"x": ACTIVATIONS, "result": ACTIVATIONS}
    LIMITS: ClassVar = (
        same_channels("x"),
        Limit(
            "table of 256 results for ui8, of 2^(16 - segment_bits) + 1 si32 knots for ui16",
            lambda op: (
                op.table.type.get_element_type() == element_type(op.result) and op.table.shape == (256,)
                if bits(op.x) == 8
                else op.segment_bits is not None
                and 0 <= op.get("segment_bits") <= 8
                and op.table.type.get_element_type() == s32
                and op.table.shape == ((1 << (16 - op.get("segment_bits"))) + 1,)
            ),
        ),
    )
    VALUES: ClassVar = (
        Values(
            "table",
            "in [-2^21, 2^21] where it holds knots",
            lambda op, t: (
                bits(op.x) == 8 or np.abs(t.astype(np.int64)) <= a.KNOT_LIMIT << a.LUT_FRACTION_BITS
            ),
        ),
    )

    def evaluate(self, ctx: EvaluationContext, x: Array) -> Array:
        table = ctx.array(self.table)
        if bits(self.x) == 8:
            return table[x]
        return self.narrow(
            a.interpolate(x.astype(np.int64), table.astype(np.int64), self.get("segment_bits"))
        )


@irdl_op_definition
class MulOp(AccumulatorOp):
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

    PORTS: ClassVar = {"a": ACTIVATIONS, "b": ACTIVATIONS, "result": ACCUMULATOR}
    LIMITS: ClassVar = (
        zero_of("a_zero", "a"),
        zero_of("b_zero", "b"),
        same_channels("a", "b"),
        within("acc_shift", 0, 31),
        Limit(
            "acc_shift brings the product into 31 bits",
            lambda op: bits(op.a) + bits(op.b) - op.get("acc_shift") <= 30,
        ),
    )

    def evaluate(self, ctx: EvaluationContext, x: Array, y: Array) -> Array:
        product = (x.astype(np.int64) - self.get("a_zero")) * (y.astype(np.int64) - self.get("b_zero"))
        result: Array = a.shift_right_round(product, self.get("acc_shift")).astype(np.int32)
        return result


class RescaledOp(IntOp):
    """What ops of two values of different scales share: a zero point and a factor for each of them."""

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

    PORTS: ClassVar = {"a": ACTIVATIONS, "b": ACTIVATIONS, "result": ACTIVATIONS}
    LIMITS: ClassVar = (
        zero_of("zero_point"),
        zero_of("a_zero", "a"),
        zero_of("b_zero", "b"),
        *scales("a_"),
        *scales("b_"),
    )

    def terms(self, *operands: Array) -> list[tuple[Array, int, int]]:
        """Of each operand: its deviations from its zero point, s64, and its multiplier and shift."""
        return [
            (v.astype(np.int64) - self.get(f"{n}_zero"), self.get(f"{n}_multiplier"), self.get(f"{n}_shift"))
            for n, v in zip("ab", operands, strict=True)
        ]


@irdl_op_definition
class AddOp(RescaledOp):
    """Sum of two values of different scales, each rescaled to 2^-8 of the result's scale.

    t_x = requantize((x − x_zero) << 14, x_multiplier, x_shift) for x in a, b;
    `y = clamp(shift_right_round(t_a + t_b, 8) + zero_point)`
    """

    name = "int.add"

    LIMITS: ClassVar = (same_channels("a", "b"), *RescaledOp.LIMITS, addends("a", "b"))

    def evaluate(self, ctx: EvaluationContext, x: Array, y: Array) -> Array:
        return self.narrow(a.rescaled_sum(*self.terms(x, y)) + self.get("zero_point"))


@irdl_op_definition
class JoinOp(RescaledOp):
    """Channels of two values as one, each rescaled to the result's scale: the result's channel i is channel
    `index[i]` of a and b side by side.

    `y[i] = clamp(requantize(v − v_zero, v_multiplier, v_shift) + zero_point), v = a or b`
    """

    name = "int.join"
    index = prop_def(WeightAttr)

    LIMITS: ClassVar = (
        *RescaledOp.LIMITS,
        constant("index", s32, "[channels]", lambda op: (channels(op.result),)),
    )
    VALUES: ClassVar = (
        Values(
            "index",
            "of a channel of a or b",
            lambda op, i: (i >= 0) & (i < channels(op.a) + channels(op.b)),
        ),
    )

    def evaluate(self, ctx: EvaluationContext, x: Array, y: Array) -> Array:
        parts = [a.requantize(*term) for term in self.terms(x, y)]
        return self.narrow(np.concatenate(parts, 1)[:, ctx.array(self.index)] + self.get("zero_point"))


Int = Dialect(
    "int",
    [
        EmbeddingOp, LinearOp, RequantOp, RmsNormOp, LayerNormOp, RopeOp, AttentionOp, LutOp, MulOp,
        AddOp, JoinOp, RouteOp, GateOp, CausalConvOp, LinearAttentionOp,
    ],
)  # fmt: skip

__all__ = [
    "LOGIT_STEPS", "AccumulatorOp", "AddOp", "AttentionOp", "CausalConvOp", "EmbeddingOp", "GateOp", "Int",
    "JoinOp", "LayerNormOp", "LinearAttentionOp", "LinearOp", "LutOp", "MulOp", "NormOp",
    "RequantOp", "RescaledOp", "RmsNormOp", "RopeOp", "RouteOp",
]  # fmt: skip
