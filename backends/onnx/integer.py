"""The strict form: integer ops of the standard only, equal to the oracle bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto
from xdsl.dialects import func
from xdsl.ir import SSAValue

from mqc.arrays import Array
from mqc.backends.onnx.emitter import LOGITS, Emitter
from mqc.dialects import int_ops
from mqc.dialects.constraints import limits
from mqc.dialects.int_attention import CAP_SEGMENT_BITS
from mqc.ir.op import MqcOp, WeightAttr, channels, element_type, u8
from mqc.ir.weight_store import numpy_dtype
from mqc.numerics import arithmetic as a
from mqc.numerics.rotary import rope_pairs
from mqc.numerics.routing import SHARE_FRACTION_BITS

#: Added before a logical shift to the right, so that it acts as an arithmetic one.
_BIAS = 1 << 62
_UNSIGNED_SHIFT = {"direction": "RIGHT"}


class IntegerForm(Emitter):
    """Products by MatMulInteger; the rest in int64, whose operations are exact on every runtime.

    ONNX shifts unsigned integers only: `x >> s` of a signed x is `((x + 2^62) >> s) − 2^(62−s)`.
    A u16 operand of a product is cut into two u8 planes. Logits are s32, as the oracle's.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._tables: dict[WeightAttr, str] = {}

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        return self.graph.constant(value, dtype=dtype)

    def cast(self, x: str, kind: int, out: str | None = None) -> str:
        return self.graph.op("Cast", x, to=kind, out=out)

    def wide(self, x: str) -> str:
        return self.cast(x, TensorProto.INT64)

    def shift(self, x: str, amount: str) -> str:
        """Logical shift to the right of int64 values that are not negative."""
        unsigned = self.cast(x, TensorProto.UINT64)
        return self.wide(self.graph.op("BitShift", unsigned, amount, **_UNSIGNED_SHIFT))

    def shift_right_round(self, x: str, shift: int) -> str:
        """`floor(x / 2^shift + 1/2)` of int64 |x| < 2^61."""
        if shift == 0:
            return x
        g = self.graph
        biased = g.op("Add", x, self.constant(_BIAS + (1 << (shift - 1))))
        return g.op("Sub", self.shift(biased, self.constant(shift, np.uint64)), self.constant(_BIAS >> shift))

    def requantize(
        self,
        acc: str,
        multiplier: Any,
        shift: Any,
        zero: int = 0,
        within: tuple[int, int] | None = None,
        rows: str | None = None,
    ) -> str:
        """`arithmetic.requantize` of int64 `acc`, plus the zero point; int64, clamped to `within` if given.

        Multipliers and shifts are one, one per channel, or with `rows` one for each row index.
        """
        g = self.graph
        multiplier, shift = np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
        left, right = np.maximum(-shift, 0), np.maximum(shift, 0)

        def constant(values: Array, dtype: Any = np.int64) -> str:
            if rows is None:
                return self.constant(values, dtype)
            return g.op("Gather", self.constant(values[:, None], dtype), rows, axis=0)

        if left.any():
            widened = g.op("Mul", acc, constant(np.left_shift(1, left)))
            acc = self.clamp(widened, (a.INT32_MIN, a.INT32_MAX), small=False)
        biased = g.op("Add", g.op("Mul", acc, constant(multiplier)), self.constant(_BIAS + (1 << 30)))
        t, offset = self.shift(biased, self.constant(31, np.uint64)), np.full_like(shift, _BIAS >> 31)
        if right.any():
            half = np.where(right > 0, np.left_shift(1, np.maximum(right - 1, 0)), 0)
            t = self.shift(g.op("Add", t, constant(_BIAS - offset + half)), constant(right, np.uint64))
            offset = np.right_shift(_BIAS, right)
        y = g.op("Add", t, constant(zero - offset))
        return y if within is None else self.clamp(y, within, small=bool(right.min() > 0))

    def narrow(self, x: str, value: SSAValue) -> None:
        """Clamp int64 |x| < 2^31 to the type of `value`, and make it that value."""
        self.finish(self.clamp(x, limits(value)), value)

    def clamp(self, x: str, within: tuple[int, int], small: bool = True) -> str:
        """Clip of int64 `x`, where `small` says that |x| < 2^31.

        From there on ONNX Runtime's Clip, Min and Max are wrong on x86, its comparisons right
        (microsoft/onnxruntime#25280).
        """
        g, (lowest, highest) = self.graph, map(self.constant, within)
        if small:
            return g.op("Clip", x, lowest, highest)
        above = g.op("Where", g.op("Less", x, lowest), lowest, x)
        return g.op("Where", g.op("Greater", above, highest), highest, above)

    def finish(self, x: str, value: SSAValue) -> None:
        """Make `x`, which is in range, the value."""
        kind = {np.uint8: TensorProto.UINT8, np.uint16: TensorProto.UINT16, np.int32: TensorProto.INT32}
        name = LOGITS if self.is_logits(value) else self.name(value)
        self.values[value] = self.cast(x, kind[numpy_dtype(element_type(value)).type], out=name)
        if self.is_logits(value):
            self.graph.output(LOGITS, np.int32, self.logit_shape, first=True)

    def deviation(self, value: SSAValue, zero: int) -> str:
        return self.graph.op("Sub", self.wide(self.values[value]), self.constant(zero))

    # ---- ops

    def embedding(self, op: int_ops.EmbeddingOp) -> None:
        row = self.wide(self.table_rows(op))
        m, s = self.weights[op.multiplier], self.weights[op.shift]
        rows = self.values[op.indices]
        y = self.requantize(row, m, s, op.get("zero_point"), limits(op.result), rows)
        self.finish(y, op.result)

    def linear(self, op: int_ops.LinearOp) -> None:
        g, n = self.graph, channels(op.result)
        matrix, bias = self.matrix(op), self.weights[op.bias].astype(np.int64)
        x = self.values[op.x]
        if self.feeds_logits(op):
            x = self.select_rows(x)
        by_outputs = op.get("expert_axis") == 0
        if op.get("expert_axis") == 1:
            x = self.of_chosen(op, x, op.get("x_zero"), channels(op.x))
        if element_type(op.x) == u8:
            x = self.cast(x, TensorProto.UINT8) if op.gates is not None and not by_outputs else x
            whole = not bias.any() and not op.get("acc_shift") and not by_outputs
            zero, name = self.constant(op.get("x_zero"), np.uint8), self.name(op.result)
            acc = g.op("MatMulInteger", x, matrix, zero, out=name if whole else None)
            if whole:
                self.values[op.result] = acc
                return
            acc = self.wide(acc)
        else:
            # Σ (x − z)·w = 256·Σ high·w + Σ low·w − z·Σ w
            acc = self.plane_product(self.cast(x, TensorProto.UINT64), matrix)
            bias = op.whole_correction(self.evaluation)
        total = self.shift_right_round(g.op("Add", acc, self.constant(bias.reshape(n))), op.get("acc_shift"))
        if by_outputs:
            total = self.of_chosen(op, total, 0, n)
        self.finish(total, op.result)

    def of_chosen(self, op: int_ops.LinearOp, x: str, other: int, count: int) -> str:
        """int64 `[tokens, count]`: x in the blocks of experts that a token chose, `other` elsewhere."""
        g, gates = self.graph, op.gates
        assert gates is not None
        experts = channels(gates)
        deviation = self.deviation(gates, op.get("gates_zero"))
        chosen = g.op("Unsqueeze", self.cast(deviation, TensorProto.BOOL), self.constant(np.array([-1])))
        blocks = self.reshape(self.wide(x), (0, experts, count // experts))
        return self.reshape(g.op("Where", chosen, blocks, self.constant(other)), (0, count))

    def feeds_logits(self, op: MqcOp) -> bool:
        """Whether the op's result goes to nothing but the logits."""
        return all(
            self.is_logits(use.operation.results[0])
            for use in op.results[0].uses
            if not isinstance(use.operation, func.ReturnOp)
        )

    def plane_product(self, x: str, y: str, y_zero: int = 0) -> str:
        """int64 `x @ (y − y_zero)` of 16-bit values x, held as uint64: one product of its two planes."""
        g = self.graph
        low = g.op("BitwiseAnd", x, self.constant(255, np.uint64))
        high = g.op("BitShift", x, self.constant(8, np.uint64), **_UNSIGNED_SHIFT)
        # Stacked along the rows of x, so that y is read once.
        planes = self.cast(g.op("Concat", high, low, axis=-2), TensorProto.UINT8)
        zeros = (self.constant(0, np.uint8), self.constant(y_zero, np.uint8)) if y_zero else ()
        both = self.wide(g.op("MatMulInteger", planes, y, *zeros))
        first, second = g.ops("Split", [both], [None, None], axis=-2, num_outputs=2)
        return g.op("Add", g.op("Mul", first, self.constant(256)), second)

    def requant(self, op: int_ops.RequantOp) -> None:
        m, s = self.weights[op.multiplier], self.weights[op.shift]
        acc = self.wide(self.values[op.x])
        self.finish(self.requantize(acc, m, s, op.get("zero_point"), limits(op.result)), op.result)

    def norm(self, op: int_ops.NormOp) -> None:
        g, groups = self.graph, op.get("groups")
        size = channels(op.x) // groups
        x = self.reshape(self.wide(self.values[op.x]), (0, groups, size))
        if isinstance(op, int_ops.RmsNormOp):
            d = g.op("Sub", x, self.constant(op.get("x_zero")))
        else:
            one = 1 << a.MEAN_FRACTION_BITS
            doubled = g.op("Mul", self.sum(x), self.constant(2 * one))
            mean = g.op("Div", g.op("Add", doubled, self.constant(size)), self.constant(2 * size))
            d = g.op("Sub", g.op("Mul", x, self.constant(one)), mean)
        square_sum = g.op("Add", self.sum(g.op("Mul", d, d)), self.constant(op.get("epsilon")))
        r, shift = self.inverse_norm(square_sum)
        half = g.op("Gather", self.constant(_powers(63)), g.op("Sub", shift, self.constant(1)), axis=0)
        biased = g.op("Add", g.op("Add", g.op("Mul", d, r), half), self.constant(_BIAS))
        offset = g.op("Gather", self.constant(_BIAS >> np.arange(63)), shift, axis=0)
        y = g.op("Sub", self.shift(biased, self.cast(shift, TensorProto.UINT64)), offset)
        y = self.reshape(y, (0, groups * size))
        if isinstance(op, int_ops.LayerNormOp) and op.bias is not None and op.bias_shift is not None:
            y = self.shifted_sum(y, self.weights[op.bias], self.weights[op.bias_shift].astype(np.int64))
        self.finish(y, op.result)

    def shifted_sum(self, x: str, added: Array, shift: Array) -> str:
        """`shift_right_round(x, shift) + added` of each channel."""
        g, half = self.graph, np.where(shift > 0, np.left_shift(1, np.maximum(shift - 1, 0)), 0)
        biased = g.op("Add", x, self.constant(_BIAS + half))
        shifted = self.shift(biased, self.constant(shift, np.uint64))
        return g.op("Add", shifted, self.constant(added - np.right_shift(_BIAS, shift)))

    def sum(self, x: str) -> str:
        return self.graph.op("ReduceSum", x, self.constant(np.array([-1])), keepdims=1)

    def inverse_norm(self, square_sum: str) -> tuple[str, str]:
        """`arithmetic.inverse_norm` and the shift `32 − h` that brings a product with r to 30 fraction bits.

        With v = square_sum << e in [2^62, 2^64) and v = 4u + rest, floor(sqrt(v)) is 2·floor(sqrt(u)) or one
        more. sqrt(u) is found by Newton's method from a table of its upper bounds by u's top ten bits.
        """
        g = self.graph
        one, two, four = (self.constant(i) for i in (1, 2, 4))
        e = g.op(
            "Gather", self.constant((64 - np.arange(65)) & ~1), self.bit_length(square_sum, 0, 63), axis=0
        )
        full = g.op("Equal", e, self.constant(0))
        scale = g.op(
            "Gather", self.constant(_powers(63)), g.op("Max", g.op("Sub", e, two), self.constant(0)), axis=0
        )
        quarter = g.op("Div", square_sum, four)
        u = g.op("Where", full, quarter, g.op("Mul", square_sum, scale))
        rest = g.op("Where", full, g.op("Sub", square_sum, g.op("Mul", quarter, four)), self.constant(0))
        top = np.arange(1 << 10)
        bounds = np.ceil(np.sqrt((top + 1.0) * 2.0**52)).astype(np.int64)
        s = g.op("Gather", self.constant(bounds), g.op("Div", u, self.constant(1 << 52)), axis=0)
        for _ in range(3):
            s = g.op("Div", g.op("Add", s, g.op("Div", u, s)), two)
        s = g.op("Sub", s, self.wide(g.op("Greater", g.op("Mul", s, s), u)))
        # (2s + 1)² ≤ 4u + rest  ⟺  4(u − s² − s) + rest ≥ 1
        left = g.op("Sub", u, g.op("Mul", s, g.op("Add", s, one)))
        odd = self.wide(g.op("GreaterOrEqual", g.op("Add", g.op("Mul", left, four), rest), one))
        q = g.op("Add", g.op("Mul", s, two), odd)
        r = g.op("Div", self.constant(1 << 62), q)
        return r, g.op("Sub", self.constant(32), g.op("Div", e, two))

    def bit_length(self, x: str, low: int, high: int) -> str:
        """How many of the powers 2^low … 2^(high − 1) are at most x: the bit length of x, less `low`."""
        powers = np.left_shift(np.int64(1), np.arange(low, high))
        g = self.graph
        reached = g.op(
            "GreaterOrEqual", g.op("Unsqueeze", x, self.constant(np.array([-1]))), self.constant(powers)
        )
        return g.op("ReduceSum", self.wide(reached), self.constant(np.array([-1])), keepdims=0)

    def rope(self, op: int_ops.RopeOp) -> None:
        g, head_dim, half = self.graph, op.get("head_dim"), op.cos.shape[1]
        # s32 has room, as mqc.analysis.proofs shows.
        x = self.reshape(self.cast(self.values[op.x], TensorProto.INT32), (0, -1, head_dim))
        d = g.op("Sub", x, self.constant(op.get("x_zero"), np.int32))
        cos, sin = (self.rope_rows(ref) for ref in (op.cos, op.sin))
        pairs = rope_pairs(head_dim, 2 * half, bool(op.get("interleaved")))
        order = [np.arange(head_dim)[part] for part in pairs]
        rest = np.setdiff1d(np.arange(head_dim), np.concatenate(order))
        d1, d2 = (g.op("Gather", d, self.constant(part), axis=2) for part in order)
        y1 = g.op("Sub", g.op("Mul", d1, cos), g.op("Mul", d2, sin))
        y2 = g.op("Add", g.op("Mul", d2, cos), g.op("Mul", d1, sin))
        parts = [y1, y2]
        if rest.size:
            passed = g.op("Gather", d, self.constant(rest), axis=2)
            parts.append(g.op("Mul", passed, self.constant(1 << a.ROPE_FRACTION_BITS, np.int32)))
        y = g.op("Concat", *parts, axis=2)
        places = np.argsort(np.concatenate([*order, rest]))
        if (places != np.arange(head_dim)).any():
            y = g.op("Gather", y, self.constant(places), axis=2)
        self.values[op.result] = self.reshape(y, (0, channels(op.x)), out=self.name(op.result))

    def rope_rows(self, ref: WeightAttr) -> str:
        """s32 `[tokens, 1, width]`: rows of a table at the positions of the tokens; one for all layers."""
        if ref not in self._tables:
            g = self.graph
            with g.scope("rope"):
                rows = self.cast(g.op("Gather", g.weight(ref), self.positions, axis=0), TensorProto.INT32)
                self._tables[ref] = g.op("Unsqueeze", rows, self.constant(np.array([1])))
        return self._tables[ref]

    def attention(self, op: int_ops.AttentionOp) -> None:
        g = self.graph
        k, v = (self.rows(s, self.values[x]) for s, x in zip(op.states(), (op.k, op.v), strict=True))
        zeros = (self.constant(op.get(name), np.uint8) for name in ("q_zero", "k_zero"))
        q = self.queries(op, self.values[op.q])
        scores = g.op("MatMulInteger", q, g.op("Transpose", k, perm=[1, 2, 0]), *zeros)
        visible, scores = self.visible(op), self.by_head(op, scores)
        if op.key_bias is not None:
            scores = g.op("Add", scores, self.of_keys(op, self.weights[op.key_bias], op.key_bias.key.data))
        score, apart = (op.get("score_multiplier"), op.get("score_shift")), None
        if op.cap_table is not None:
            steps = g.op("Add", self.requantize(self.wide(scores), *score), self.constant(1 << 15))
            line = self.interpolate(
                op.cap_table, self.clamp(steps, (0, 65535), small=False), CAP_SEGMENT_BITS
            )
            scores = self.cast(line, TensorProto.INT32)
        lowest = self.constant(a.INT32_MIN, np.int32)
        shown = g.op("Where", visible, scores, lowest)
        largest = g.op("ReduceMax", shown, self.constant(np.array([-1])), keepdims=1)
        if op.sinks is not None:
            sinks = self.constant(self.weights[op.sinks].reshape(op.get("kv_heads"), -1, 1, 1), np.int32)
            largest = g.op("Where", g.op("Greater", largest, sinks), largest, sinks)
            apart = self.requantize(self.wide(g.op("Sub", largest, sinks)), *score, within=(0, 65535))
        below = self.wide(g.op("Where", visible, g.op("Sub", largest, scores), self.constant(0, np.int32)))
        if op.cap_table is None:
            differences = self.requantize(below, *score, within=(0, 65535))
        else:
            differences = g.op("Min", below, self.constant(65535))
        p = self.softmax(differences, visible, apart)
        values = g.op("Transpose", v, perm=[1, 0, 2])
        acc = self.merge(op, self.plane_product(self.flat_heads(op, p), values, op.get("v_zero")))
        scale = op.get("multiplier"), op.get("shift")
        self.finish(self.requantize(acc, *scale, op.get("zero_point"), limits(op.result)), op.result)

    def softmax(self, differences: str, visible: str, apart: str | None = None) -> str:
        """`arithmetic.softmax`: uint64 probabilities with 15 fraction bits. apart: the difference of one more
        entry of each row, whose probability nobody wants."""
        g = self.graph
        steps = np.arange(1 << 16)
        bits = a.SCORE_FRACTION_BITS
        table = a.EXP2_TABLE[steps & ((1 << bits) - 1)] >> (steps >> bits)
        exps = g.op("Gather", self.constant(table), differences, axis=0)
        exps = g.op("Where", visible, exps, self.constant(0))
        total = self.sum(exps)
        if apart is not None:
            total = g.op("Add", total, g.op("Gather", self.constant(table), apart, axis=0))
        k = self.bit_length(total, 31, 48)
        unsigned = self.cast(k, TensorProto.UINT64)
        reciprocal = g.op("Div", self.constant(1 << 61), self.shift(total, unsigned))
        half = g.op("Gather", self.constant(_powers(63)), g.op("Add", k, self.constant(45)), axis=0)
        product = g.op("Add", g.op("Mul", exps, reciprocal), half)
        amount = self.cast(g.op("Add", k, self.constant(46)), TensorProto.UINT64)
        return g.op("BitShift", self.cast(product, TensorProto.UINT64), amount, **_UNSIGNED_SHIFT)

    def lut(self, op: int_ops.LutOp) -> None:
        g, x = self.graph, self.wide(self.values[op.x])
        table = self.weights[op.table]
        if element_type(op.x) == u8:
            self.values[op.result] = g.op("Gather", g.constant(table), x, axis=0, out=self.name(op.result))
            return
        self.narrow(self.interpolate(op.table, x, op.get("segment_bits")), op.result)

    def interpolate(self, table: WeightAttr, x: str, b: int) -> str:
        """`arithmetic.interpolate`: int64, x of [0, 2^16)."""
        g = self.graph
        knots, step = self.constant(self.weights[table].astype(np.int64)), self.constant(1 << b)
        index = g.op("Div", x, step)
        rest = g.op("Sub", x, g.op("Mul", index, step))
        first = g.op("Mul", g.op("Gather", knots, index, axis=0), g.op("Sub", step, rest))
        after = g.op("Gather", knots, g.op("Add", index, self.constant(1)), axis=0)
        return self.shift_right_round(g.op("Add", first, g.op("Mul", after, rest)), b + a.LUT_FRACTION_BITS)

    def mul(self, op: int_ops.MulOp) -> None:
        left, right = self.deviation(op.a, op.get("a_zero")), self.deviation(op.b, op.get("b_zero"))
        product = self.graph.op("Mul", left, right)
        self.finish(self.shift_right_round(product, op.get("acc_shift")), op.result)

    def convolution(self, op: int_ops.CausalConvOp) -> None:
        g, zero = self.graph, self.constant(op.get("x_zero"))
        weight, bias = (self.weights[ref].astype(np.int64) for ref in (op.weight, op.bias))
        total = self.constant(bias)
        for column, rows in zip(weight.T, self.taps(op, self.values[op.x]), strict=True):
            d = g.op("Sub", self.wide(rows), zero)
            total = g.op("Add", total, g.op("Mul", d, self.constant(column)))
        self.finish(self.shift_right_round(total, op.get("acc_shift")), op.result)

    def join(self, op: int_ops.JoinOp) -> None:
        g, parts = self.graph, []
        for name, value in (("a", op.a), ("b", op.b)):
            factor = op.get(f"{name}_multiplier"), op.get(f"{name}_shift")
            parts.append(self.requantize(self.deviation(value, op.get(f"{name}_zero")), *factor))
        places = self.constant(self.weights[op.index])
        joined = g.op("Gather", g.op("Concat", *parts, axis=1), places, axis=1)
        y = g.op("Add", joined, self.constant(op.get("zero_point")))
        self.finish(self.clamp(y, limits(op.result), small=False), op.result)

    def gate(self, op: int_ops.GateOp) -> None:
        g, blocks = self.graph, channels(op.gates)
        x = self.reshape(self.deviation(op.x, op.get("x_zero")), (0, blocks, channels(op.x) // blocks))
        gates = g.op(
            "Unsqueeze", self.deviation(op.gates, op.get("gates_zero")), self.constant(np.array([-1]))
        )
        product = self.reshape(g.op("Mul", x, gates), (0, channels(op.x)))
        self.finish(self.shift_right_round(product, op.get("acc_shift")), op.result)

    def route(self, op: int_ops.RouteOp) -> None:
        g, zero = self.graph, self.constant(0)
        d = self.deviation(op.x, op.get("x_zero"))
        everything = g.op("Equal", d, d)
        p = self.wide(self.softmax_of(op, d, everything)) if op.get("shares") else d
        choice = p if op.bias is None else g.op("Add", p, self.constant(self.weights[op.bias]))
        chosen = self.chosen(op, choice, self.constant(-(1 << 40)))
        match op.get("normalization"):
            case "softmax":
                y = self.wide(self.softmax_of(op, d, chosen))
            case "sum":
                positive = g.op("Where", g.op("And", chosen, g.op("Greater", p, zero)), p, zero)
                total = self.sum(positive)
                total = g.op("Where", g.op("Greater", total, zero), total, self.constant(1))
                y = g.op("Div", g.op("Mul", positive, self.constant(1 << SHARE_FRACTION_BITS)), total)
            case _:
                y = g.op("Where", chosen, p, zero)
        self.finish(y, op.result)

    def softmax_of(self, op: int_ops.RouteOp, d: str, visible: str) -> str:
        """uint64 probabilities of visible scores."""
        g = self.graph
        top = g.op(
            "ReduceMax", g.op("Where", visible, d, self.constant(a.INT32_MIN)), self.constant(np.array([-1])),
            keepdims=1,
        )  # fmt: skip
        below = g.op("Where", visible, g.op("Sub", top, d), self.constant(0))
        scale = op.get("score_multiplier"), op.get("score_shift")
        return self.softmax(self.requantize(below, *scale, within=(0, 65535)), visible)

    def add(self, op: int_ops.AddOp) -> None:
        g, terms = self.graph, []
        for name, value in (("a", op.a), ("b", op.b)):
            d = g.op(
                "Mul", self.deviation(value, op.get(f"{name}_zero")), self.constant(1 << a.ADD_LEFT_SHIFT)
            )
            terms.append(self.requantize(d, op.get(f"{name}_multiplier"), op.get(f"{name}_shift")))
        total = self.shift_right_round(g.op("Add", *terms), a.ADD_FRACTION_BITS)
        self.narrow(g.op("Add", total, self.constant(op.get("zero_point"))), op.result)


def _powers(count: int) -> Array:
    return np.left_shift(np.int64(1), np.arange(count))
