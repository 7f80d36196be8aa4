"""Products, norms and elementwise ops of the `htp` dialect."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from xdsl.dialects.builtin import IntegerAttr, StringAttr, TensorType
from xdsl.ir import SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, opt_prop_def, prop_def, result_def

from mqc.arrays import Array
from mqc.dialects import int_ops
from mqc.dialects.constraints import NORM_GROUPS, Limit, addends, bits, scales, within, zero_of
from mqc.dialects.htp_core import (
    ACTIVATIONS,
    DDR,
    INDEX,
    SCALE,
    SCALE_SHAPE,
    HtpOp,
    Tile,
    factors,
    same_shape,
    shape,
)
from mqc.ir.op import EvaluationContext, channels, element_type, s8, s16, s32, u8, u16
from mqc.numerics import arithmetic as a
from mqc.numerics.htp_tiles import LANES, Records
from mqc.numerics.products import effective_weight

_ROWS = Limit("a row for each index", lambda op: op.tokens == shape(op.indices)[0])


@irdl_op_definition
class GatherTokensOp(HtpOp):
    """Rows of an embedding table, one for each token by its id or position, rescaled as they are read.

    `y[t] = clamp(requantize(table[i], multiplier[i], shift[i]) + zero_point), i = index[t]`
    """

    name = "htp.gather_tokens"
    QNN: ClassVar = "Gather"
    CARRIES: ClassVar = int_ops.EmbeddingOp
    indices = operand_def(TensorType)
    table = operand_def(TensorType)
    multiplier = operand_def(TensorType)
    shift = operand_def(TensorType)
    zero_point = prop_def(IntegerAttr)
    result = result_def(TensorType)
    PORTS: ClassVar = {
        "indices": INDEX, "table": Tile((s8,), 2, DDR), "multiplier": Tile((s32,), 1, DDR),
        "shift": Tile((s8,), 1, DDR), "result": ACTIVATIONS,
    }  # fmt: skip
    LIMITS: ClassVar = (
        zero_of("zero_point"),
        _ROWS,
        Limit("table as wide as the result", lambda op: channels(op.table) == channels(op.result)),
        Limit(
            "a multiplier and a shift for each row of table",
            lambda op: shape(op.multiplier) == shape(op.shift) == shape(op.table)[:1],
        ),
    )

    def evaluate(self, ctx: EvaluationContext, i: Array, table: Array, m: Array, s: Array) -> Array:
        return self.narrow(a.requantize(table[i], m[i, None], s[i, None]) + self.get("zero_point"))


@irdl_op_definition
class GatherPositionsOp(HtpOp):
    """Rows of a rotary table, one for each token by its position.

    `y[t] = table[index[t]]`
    """

    name = "htp.gather_positions"
    QNN: ClassVar = "Gather"
    indices = operand_def(TensorType)
    table = operand_def(TensorType)
    result = result_def(TensorType)
    PORTS: ClassVar = {"indices": INDEX, "table": Tile((s16,), 2, DDR), "result": Tile((s16,))}
    LIMITS: ClassVar = (
        _ROWS,
        Limit("table as wide as the result", lambda op: channels(op.table) == channels(op.result)),
    )

    def evaluate(self, ctx: EvaluationContext, indices: Array, table: Array) -> Array:
        return table[indices]


@irdl_op_definition
class FullyConnectedOp(HtpOp):
    """Matrix product with s8 or 4-bit weights per channel, or 4-bit ones with an integer factor per
    block (LPBQ), and its requantization. `weight` holds the records of `outputs` channels; with `dest`
    they are columns from `first` on of a value made in tiles.

    `y[:, first + n] = clamp(requantize(shift_right_round(Σ (x − x_zero)·w + bias, acc_shift)) + zero_point)`
    """

    name = "htp.fully_connected"
    QNN: ClassVar = "FullyConnected"
    CARRIES: ClassVar = int_ops.LinearOp
    x = operand_def(TensorType)
    weight = operand_def(TensorType)
    dest = opt_operand_def(TensorType)
    outputs = prop_def(IntegerAttr)
    first = prop_def(IntegerAttr)
    weight_bits = prop_def(IntegerAttr)
    group = prop_def(IntegerAttr)
    acc_shift = prop_def(IntegerAttr)
    zero_point = prop_def(IntegerAttr)
    result = result_def(TensorType)
    PORTS: ClassVar = {
        "x": ACTIVATIONS, "weight": Tile((u8,)), "dest": Tile((u8, u16)), "result": Tile((u8, u16, s32)),
    }  # fmt: skip
    LIMITS: ClassVar = (
        zero_of("zero_point"),
        Limit("weight_bits 4 or 8", lambda op: op.get("weight_bits") in (4, 8)),
        Limit("at most 65536 inputs", lambda op: channels(op.x) <= 1 << 16),
        Limit(
            "group 0, or with 4-bit weights a multiple of 8 that divides the inputs",
            lambda op: (
                op.get("group") == 0
                or (
                    op.get("weight_bits") == 4
                    and op.get("group") > 0
                    and op.get("group") % 8 == 0
                    and channels(op.x) % op.get("group") == 0
                )
            ),
        ),
        Limit("weight is the records of outputs", lambda op: shape(op.weight) == op.records().shape),
        Limit(
            "acc_shift 0 for 8-bit x, in [0, 8] for 16-bit x",
            lambda op: 0 <= op.get("acc_shift") <= (0 if bits(op.x) == 8 else 8),
        ),
        Limit("as many rows as x", lambda op: shape(op.x)[0] == op.tokens),
        Limit(
            "dest shaped like the result, or all of its channels are outputs",
            lambda op: (
                op.dest.type == op.result.type
                if op.dest is not None
                else op.get("first") == 0 and op.get("outputs") == channels(op.result)
            ),
        ),
        Limit(
            "first a multiple of 32 (a tile begins with a record)",
            lambda op: op.get("first") % LANES == 0,
        ),
        Limit(
            "outputs within the result's channels",
            lambda op: 0 <= op.get("first") <= channels(op.result) - op.get("outputs"),
        ),
    )

    def records(self) -> Records:
        return Records(
            self.get("outputs"), channels(self.x), self.get("weight_bits"), max(self.get("group"), 0)
        )

    def tied(self) -> SSAValue | None:
        return self.dest

    def evaluate(self, ctx: EvaluationContext, x: Array, records: Array, dest: Array | None = None) -> Array:
        layout = self.records()
        weight = effective_weight(layout.weights(records), layout.factors(records)).astype(np.float64)
        low, high, multiplier, shift = layout.parameters(records).astype(np.int64)
        # Sums of integers below 2^53 are exact in float64.
        acc = (x.astype(np.float64) @ weight.T).astype(np.int64) + (high << 8) + low
        acc = a.shift_right_round(acc, self.get("acc_shift"))
        y = self.narrow(a.requantize(acc, multiplier, shift) + self.get("zero_point"))
        if dest is None:
            return y
        dest[:, self.get("first") : self.get("first") + y.shape[1]] = y
        return dest

    def macs(self) -> int:
        """Of all rows."""
        return self.tokens * channels(self.x) * int(self.get("outputs"))


class NormOp(HtpOp):
    """What the norms share: the direction of each group of channels, rescaled with its gain."""

    x = operand_def(TensorType)
    scale = operand_def(TensorType)
    x_zero = prop_def(IntegerAttr)
    epsilon = prop_def(IntegerAttr)
    groups = prop_def(IntegerAttr)
    zero_point = prop_def(IntegerAttr)
    result = result_def(TensorType)
    PORTS: ClassVar = {"x": ACTIVATIONS, "scale": SCALE, "result": ACTIVATIONS}
    LIMITS: ClassVar = (
        Limit("x shaped like the result", lambda op: shape(op.x) == shape(op.result)),
        zero_of("x_zero", "x"),
        zero_of("zero_point"),
        SCALE_SHAPE,
        within("epsilon", 1, 2**62 - 1),
        NORM_GROUPS,
    )

    def deviations(self, blocks: Array) -> Array:
        raise NotImplementedError

    def evaluate(self, ctx: EvaluationContext, x: Array, scale: Array) -> Array:
        blocks = x.astype(np.int64).reshape(len(x), self.get("groups"), -1)
        y = a.directions(self.deviations(blocks), self.get("epsilon")).reshape(x.shape)
        return self.narrow(a.requantize(y, *factors(scale, x.shape[1])) + self.get("zero_point"))


@irdl_op_definition
class RmsNormOp(NormOp):
    """Root-mean-square norm of each group of channels.

    `y = clamp(requantize(2^30 · d / sqrt(Σ d² + epsilon)) + zero_point), d = x − x_zero`
    """

    name = "htp.rms_norm"
    QNN: ClassVar = "RmsNorm"
    CARRIES: ClassVar = int_ops.RmsNormOp

    def deviations(self, blocks: Array) -> Array:
        return blocks - self.get("x_zero")


@irdl_op_definition
class LayerNormOp(NormOp):
    """As `htp.rms_norm` of the deviations from the mean.

    `y = clamp(requantize(2^30 · d / sqrt(Σ d² + epsilon)) + zero_point), d = 64·x − round(64·mean(x))`
    """

    name = "htp.layer_norm"
    QNN: ClassVar = "LayerNorm"
    CARRIES: ClassVar = int_ops.LayerNormOp

    def deviations(self, blocks: Array) -> Array:
        return a.deviations_from_mean(blocks)


@irdl_op_definition
class RotaryEmbeddingOp(HtpOp):
    """Rotary position embedding by rows of tables with 14 fraction bits.

    `y = clamp(requantize(rotate(x − x_zero, cos, sin)) + zero_point)`
    """

    name = "htp.rotary_embedding"
    QNN: ClassVar = "RotaryEmbedding"
    CARRIES: ClassVar = int_ops.RopeOp
    x = operand_def(TensorType)
    cos = operand_def(TensorType)
    sin = operand_def(TensorType)
    scale = operand_def(TensorType)
    head_dim = prop_def(IntegerAttr)
    interleaved = prop_def(IntegerAttr)
    x_zero = prop_def(IntegerAttr)
    zero_point = prop_def(IntegerAttr)
    result = result_def(TensorType)
    PORTS: ClassVar = {
        "x": ACTIVATIONS, "cos": Tile((s16,)), "sin": Tile((s16,)), "scale": SCALE,
        "result": ACTIVATIONS,
    }  # fmt: skip
    LIMITS: ClassVar = (
        Limit("x shaped like the result", lambda op: shape(op.x) == shape(op.result)),
        zero_of("x_zero", "x"),
        zero_of("zero_point"),
        SCALE_SHAPE,
        within("head_dim", 1, 8192),
        within("interleaved", 0, 1),
        Limit("head_dim divides the channels", lambda op: channels(op.x) % op.get("head_dim") == 0),
        Limit(
            "cos and sin have a row for each of x, of at most head_dim / 2",
            lambda op: (
                shape(op.cos) == shape(op.sin)
                and shape(op.cos)[0] == shape(op.x)[0]
                and 2 * channels(op.cos) <= op.get("head_dim")
            ),
        ),
    )

    def evaluate(self, ctx: EvaluationContext, x: Array, cos: Array, sin: Array, scale: Array) -> Array:
        d = x.astype(np.int64).reshape(len(x), -1, self.get("head_dim")) - self.get("x_zero")
        cos, sin = (t.astype(np.int64)[:, None] for t in (cos, sin))
        y = a.rotate(d, cos, sin, bool(self.get("interleaved"))).reshape(x.shape)
        return self.narrow(a.requantize(y, *factors(scale, x.shape[1])) + self.get("zero_point"))


@irdl_op_definition
class MultiplyOp(HtpOp):
    """Elementwise product, rescaled.

    `y = clamp(requantize(shift_right_round((a − a_zero)·(b − b_zero), acc_shift)) + zero_point)`
    """

    name = "htp.element_wise_multiply"
    QNN: ClassVar = "ElementWiseBinary (multiply)"
    CARRIES: ClassVar = int_ops.MulOp
    a = operand_def(TensorType)
    b = operand_def(TensorType)
    scale = operand_def(TensorType)
    a_zero = prop_def(IntegerAttr)
    b_zero = prop_def(IntegerAttr)
    acc_shift = prop_def(IntegerAttr)
    zero_point = prop_def(IntegerAttr)
    result = result_def(TensorType)
    PORTS: ClassVar = {"a": ACTIVATIONS, "b": ACTIVATIONS, "scale": SCALE, "result": ACTIVATIONS}
    LIMITS: ClassVar = (
        same_shape("a", "b"),
        zero_of("a_zero", "a"),
        zero_of("b_zero", "b"),
        zero_of("zero_point"),
        SCALE_SHAPE,
        within("acc_shift", 0, 8),
        Limit(
            "acc_shift brings the product into 31 bits",
            lambda op: bits(op.a) + bits(op.b) - op.get("acc_shift") <= 30,
        ),
    )

    def evaluate(self, ctx: EvaluationContext, x: Array, y: Array, scale: Array) -> Array:
        product = (x.astype(np.int64) - self.get("a_zero")) * (y.astype(np.int64) - self.get("b_zero"))
        product = a.shift_right_round(product, self.get("acc_shift"))
        return self.narrow(a.requantize(product, *factors(scale, x.shape[1])) + self.get("zero_point"))


@irdl_op_definition
class AddOp(HtpOp):
    """Sum of two values of different scales, as `int.add`.

    `y = clamp(shift_right_round(t_a + t_b, 8) + zero_point), t_x = requantize((x − x_zero) << 14)`
    """

    name = "htp.element_wise_add"
    QNN: ClassVar = "ElementWiseBinary (add)"
    CARRIES: ClassVar = int_ops.AddOp
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
        same_shape("a", "b"),
        zero_of("a_zero", "a"),
        zero_of("b_zero", "b"),
        zero_of("zero_point"),
        *scales("a_"),
        *scales("b_"),
        addends("a", "b"),
    )

    def evaluate(self, ctx: EvaluationContext, x: Array, y: Array) -> Array:
        terms = (
            (v.astype(np.int64) - self.get(f"{n}_zero"), self.get(f"{n}_multiplier"), self.get(f"{n}_shift"))
            for n, v in (("a", x), ("b", y))
        )
        return self.narrow(a.rescaled_sum(*terms) + self.get("zero_point"))


@irdl_op_definition
class NeuronOp(HtpOp):
    """Function of one value by table, as `int.lut`. `function` names the real function.

    `y = table[x]`, or of a u16 interpolated between knots
    """

    name = "htp.element_wise_neuron"
    QNN: ClassVar = "ElementWiseNeuron"
    CARRIES: ClassVar = int_ops.LutOp
    x = operand_def(TensorType)
    table = operand_def(TensorType)
    segment_bits = opt_prop_def(IntegerAttr)
    function = opt_prop_def(StringAttr)
    result = result_def(TensorType)
    PORTS: ClassVar = {"x": ACTIVATIONS, "table": Tile((u8, u16, s32), 1), "result": ACTIVATIONS}
    LIMITS: ClassVar = (
        Limit("x shaped like the result", lambda op: shape(op.x) == shape(op.result)),
        Limit(
            "table of 256 results for 8-bit x, of 2^(16 - segment_bits) + 1 INT_32 knots for 16-bit x",
            lambda op: (
                element_type(op.table) == element_type(op.result) and shape(op.table) == (256,)
                if bits(op.x) == 8
                else op.segment_bits is not None
                and 0 <= op.get("segment_bits") <= 8
                and element_type(op.table) == s32
                and shape(op.table) == ((1 << (16 - op.get("segment_bits"))) + 1,)
            ),
        ),
    )

    def evaluate(self, ctx: EvaluationContext, x: Array, table: Array) -> Array:
        if bits(self.x) == 8:
            return table[x]
        knots = table.astype(np.int64)
        return self.narrow(a.interpolate(x.astype(np.int64), knots, self.get("segment_bits")))
