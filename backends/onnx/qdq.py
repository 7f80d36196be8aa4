"""The QDQ form for CPU runtimes: float ops between QuantizeLinear and DequantizeLinear, which runtimes
fuse into integer kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from onnx import TensorProto
from xdsl.ir import SSAValue

from mqc.arrays import Array
from mqc.backends.onnx.emitter import LOGITS, Emitter
from mqc.backends.onnx.select import RULES
from mqc.dialects import int_ops
from mqc.dialects.expressions import Argument, parse
from mqc.dialects.int_attention import CAP_STEP
from mqc.dialects.int_core import IntOp
from mqc.dialects.quant import UniformType
from mqc.errors import TargetError
from mqc.ir.op import channels, plain
from mqc.ir.weight_store import numpy_dtype
from mqc.numerics import arithmetic as a
from mqc.numerics.rotary import rope_pairs
from mqc.numerics.routing import SHARE_FRACTION_BITS

#: Added to the scores of keys that a token does not see.
_HIDDEN = -1e9
#: Functions of expressions whose ONNX op has another name.
_ONNX = {
    "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less", "maximum": "Max",
    "minimum": "Min",
}  # fmt: skip


def real_factor(multiplier: Any, shift: Any) -> Array:
    """The real number(s) that `arithmetic.requantize` multiplies with, float64."""
    return np.asarray(multiplier, np.float64) * 2.0 ** -(31.0 + np.asarray(shift, np.float64))


class QdqForm(Emitter):
    """8-bit values are quantized, 16-bit values stay float: no CPU runtime has 16-bit integer kernels.

    A 16-bit operand of a product with weights is quantized as the sum of two 8-bit ones, so that the
    weights are multiplied as integers. Scales are those the `int` ops state (`represents`) or hold in
    their multipliers. Logits are float.
    """

    OPSET: ClassVar[int] = 23

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.floats: dict[SSAValue, str] = {}
        self._rope: dict[tuple[Any, ...], tuple[str, str]] = {}
        self._scores: dict[str, str] = {}

    def constant(self, value: Any, hint: str = "", dtype: Any = np.float32) -> str:
        return self.graph.constant(value, hint, dtype)

    # ---- quantized values

    def type(self, value: SSAValue) -> UniformType:
        """The real numbers that a value stands for. Raises `TargetError` if the module does not say."""
        owner = value.owner
        found = owner.represents if isinstance(owner, IntOp) else None
        if found is None:
            raise TargetError(
                f"onnx: %{self.name(value)} does not state what it represents; compile the model again, "
                'or use style "integer"'
            )
        return found

    def scale(self, value: SSAValue) -> float:
        """Real value of one step: of the logits, their unit."""
        if self.is_logits(value):
            return float(plain(self.module.attributes["mqc.logit_scale"]))
        return self.type(value).real_scale

    def dequantize(self, x: str, scale: Any, zero: int, dtype: Any = np.uint8, **attributes: Any) -> str:
        zeros = self.graph.constant(np.full(np.shape(scale), zero), dtype=dtype)
        return self.graph.op("DequantizeLinear", x, self.constant(scale), zeros, **attributes)

    def quantize(self, x: str, scale: float, zero: int, dtype: Any = np.uint8, out: str | None = None) -> str:
        zeros = self.graph.constant(zero, dtype=dtype)
        return self.graph.op("QuantizeLinear", x, self.constant(scale), zeros, out=out)

    def real(self, value: SSAValue) -> str:
        """A value as a float tensor."""
        if value in self.floats:
            return self.floats[value]
        stated = self.type(value)
        return self.dequantize(self.values[value], stated.real_scale, stated.zero)

    def store(self, x: Any, value: SSAValue) -> None:
        """Make what an op's method gave, here a float tensor, the value."""
        if self.is_logits(value):
            self.graph.op("Identity", x, out=LOGITS)
            self.graph.output(LOGITS, np.float32, self.logit_shape, first=True)
        elif self.type(value).bits == 8:
            stated = self.type(value)
            self.values[value] = self.quantize(x, stated.real_scale, stated.zero, out=self.name(value))
        else:
            self.floats[value] = x

    # ---- ops

    def embedding(self, op: int_ops.EmbeddingOp) -> None:
        g = self.graph
        factor = real_factor(self.weights[op.multiplier], self.weights[op.shift]) * self.scale(op.result)
        row = g.op("Cast", self.table_rows(op), to=TensorProto.FLOAT)
        factors = self.constant(factor[:, None], f"{self.name(op.result)}.scale")
        self.store(g.op("Mul", row, g.op("Gather", factors, self.values[op.indices], axis=0)), op.result)

    def linear(self, op: int_ops.AccumulatorOp) -> None:
        """Accumulators are emitted with the requant that follows (`rescaled_…`)."""

    norm = rope = mul = route = gate = convolution = linear

    def requant(self, op: int_ops.RequantOp) -> None:
        producer = op.accumulator
        if producer is None:
            raise TargetError(f"onnx: %{self.name(op.x)} before an int.requant has no QDQ form")
        rescaled: Callable[[Any, int_ops.RequantOp], Any] = getattr(self, f"rescaled_{RULES[type(producer)]}")
        self.store(rescaled(producer, op), op.result)

    def factor(self, op: int_ops.RequantOp) -> Array:
        """Real factor(s) of a requant, with the result's scale: what one accumulator step is worth."""
        stored = real_factor(self.weights[op.multiplier], self.weights[op.shift])
        result: Array = stored * self.scale(op.result)
        return result

    def rescaled_linear(self, op: int_ops.LinearOp, requant: int_ops.RequantOp) -> Any:
        # Inputs of experts that were not chosen are 0 already.
        product = self.dense_product(op, requant)
        if op.gates is None or op.get("expert_axis") == 1:
            return product
        g, experts, n = self.graph, channels(op.gates), channels(op.result)
        chosen = g.op("Cast", self.real(op.gates), to=TensorProto.BOOL)
        spread = g.op("Unsqueeze", chosen, g.constant(np.array([-1], np.int64)))
        blocks = self.reshape(product, (0, experts, n // experts))
        return self.reshape(g.op("Where", spread, blocks, self.constant(0.0)), (0, n))

    def dense_product(self, op: int_ops.LinearOp, requant: int_ops.RequantOp) -> Any:
        g = self.graph
        step, scale = self.product_scales(op, requant)
        weight = self.real_weight(op, scale)
        bias = self.weights[op.bias]
        if op.x not in self.values:
            return self.plane_product(op, self.rows_for(requant, self.real(op.x)), weight, step * bias, scale)
        stated = self.type(op.x)
        x = self.dequantize(self.rows_for(requant, self.values[op.x]), stated.real_scale, stated.zero)
        if not bias.any():
            return g.op("MatMul", x, weight)
        stored = g.constant(bias, f"{self.name(requant.result)}.bias")
        return g.op("Gemm", x, weight, g.op("DequantizeLinear", stored, self.constant(step), axis=0))

    def product_scales(self, op: int_ops.LinearOp, requant: int_ops.RequantOp) -> tuple[Array, Array]:
        """Per output channel: what a step of the accumulator is worth, and one of the weights."""
        step = np.broadcast_to(self.factor(requant) * 2.0 ** -op.get("acc_shift"), channels(op.result))
        if (step < 0).any():
            raise TargetError(
                f"onnx: %{self.name(requant.result)} has negative multipliers, which scales of weights "
                "cannot hold; turn the signs of the weights"
            )
        return step, np.maximum(step / self.scale(op.x), np.finfo(np.float32).tiny)

    def real_weight(self, op: int_ops.LinearOp, scale: Array) -> str:
        """The weight `[inputs, outputs]` in float, from integers."""
        if op.group_scale is None or not self.blocked:
            return self.dequantize_matrix(op, self.matrix(op), scale)
        inputs = channels(op.x)
        packed = self.graph.weight(op.weight, TensorProto.INT4, (inputs, channels(op.result)))
        scales = self.weights[op.group_scale].T * scale
        block = inputs // len(scales)
        return self.graph.op("DequantizeLinear", packed, self.constant(scales), axis=0, block_size=block)

    def dequantize_matrix(self, op: int_ops.LinearOp, matrix: str, scale: Array) -> str:
        """s8 weights of a product; its zero points are its own, for the reason that `matrix` gives."""
        zeros = self.graph.constant(np.zeros(len(scale)), dtype=np.int8, meaning=self.names[op])
        return self.graph.op("DequantizeLinear", matrix, self.constant(scale), zeros, axis=1)

    def rows_for(self, requant: int_ops.RequantOp, x: str) -> str:
        return self.select_rows(x) if self.is_logits(requant.result) else x

    def plane_product(self, op: int_ops.LinearOp, x: str, weight: str, bias: Array, scale: Array) -> str:
        """Product of a float x that stands for 16-bit values: `x ≈ 256·s·(high − zero) + s·(low − 128)`.

        Both planes are rows of one product, so that the weights are read once.
        """
        g, stated = self.graph, self.type(op.x)
        s, zero = stated.real_scale, stated.zero // 256
        high = self.quantize(x, 256 * s, zero)
        low = self.quantize(g.op("Sub", x, self.dequantize(high, 256 * s, zero)), s, 128)
        planes = self.dequantize(g.op("Concat", high, low, axis=0), s, 128)
        both = g.op("MatMul", planes, weight)
        first, second = g.ops("Split", [both], [None, None], axis=0, num_outputs=2)
        y = g.op("Add", g.op("Mul", first, self.constant(256)), second)
        correction = (
            256 * s * (128 - zero) * scale * op.sums(self.evaluation).reshape(len(bias), -1).sum(1) + bias
        )
        return g.op("Add", y, self.constant(correction, f"{self.name(op.result)}.correction"))

    def rescaled_norm(self, op: int_ops.NormOp, requant: int_ops.RequantOp) -> Any:
        g, groups = self.graph, op.get("groups")
        size = channels(op.x) // groups
        kind, gain, epsilon = self.real_norm(op, requant)
        x, hint = self.real(op.x), f"{self.name(requant.result)}.gain"
        if groups == 1:
            y = g.op(kind, x, self.constant(gain, hint), axis=-1, epsilon=epsilon)
        else:
            blocks = self.reshape(x, (0, groups, size))
            y = g.op(kind, blocks, self.constant(np.ones(size)), axis=-1, epsilon=epsilon)
            y = g.op("Mul", self.reshape(y, (0, groups * size)), self.constant(gain, hint))
        bias = self.norm_bias(op, requant)
        hint = f"{self.name(requant.result)}.bias"
        return y if bias is None else g.op("Add", y, self.constant(bias, hint))

    def norm_bias(self, op: int_ops.NormOp, requant: int_ops.RequantOp) -> Array | None:
        """What a norm adds per channel, in real numbers; None for nothing."""
        if not isinstance(op, int_ops.LayerNormOp) or op.bias is None:
            return None
        bias: Array = self.weights[op.bias] * self.factor(requant)
        return bias

    def real_norm(self, op: int_ops.NormOp, requant: int_ops.RequantOp) -> tuple[str, Array, float]:
        """ONNX's op, its gain per channel, and its epsilon in real numbers."""
        size = channels(op.x) // op.get("groups")
        factor = self.factor(requant) * 2.0**a.NORM_FRACTION_BITS / np.sqrt(size)
        gain: Array = np.broadcast_to(factor, channels(op.x))
        if isinstance(op, int_ops.LayerNormOp) and op.bias_shift is not None:
            gain = gain * 2.0 ** -self.weights[op.bias_shift].astype(np.float64)
        epsilon = op.get("epsilon") * self.scale(op.x) ** 2 / size
        if isinstance(op, int_ops.RmsNormOp):
            return "RMSNormalization", gain, epsilon
        return "LayerNormalization", gain, epsilon / 4.0**a.MEAN_FRACTION_BITS

    def rescaled_rope(self, op: int_ops.RopeOp, requant: int_ops.RequantOp) -> Any:
        g, head_dim = self.graph, op.get("head_dim")
        x = self.reshape(self.real(op.x), (0, -1, head_dim))
        cos, sin = self.rope_rows(op)
        order = partners(op)
        if (order == np.roll(np.arange(head_dim), head_dim // 2)).all():
            halves = g.ops("Split", [x], [None, None], axis=2, num_outputs=2)
            turned = g.op("Concat", halves[1], halves[0], axis=2)
        else:
            turned = g.op("Gather", x, g.constant(order), axis=2)
        y = g.op("Add", g.op("Mul", x, cos), g.op("Mul", turned, sin))
        return self.reshape(y, (0, channels(op.x)))

    def rope_rows(self, op: int_ops.RopeOp) -> tuple[str, str]:
        """`[tokens, 1, head_dim]` each: what a channel and its partner are multiplied with."""
        key = (op.cos, op.sin, op.get("head_dim"), op.get("interleaved"))
        if key not in self._rope:
            g, head_dim = self.graph, op.get("head_dim")
            with g.scope("rope"):
                rows = []
                for name, table in zip(("cos", "sin"), self.rope_tables(op, head_dim), strict=True):
                    picked = g.op("Gather", self.constant(table, f"rope.{name}"), self.positions, axis=0)
                    rows.append(g.op("Unsqueeze", picked, g.constant(np.array([1], np.int64))))
                self._rope[key] = rows[0], rows[1]
        return self._rope[key]

    def rope_tables(self, op: int_ops.RopeOp, head_dim: int) -> tuple[Array, Array]:
        """Real tables `[positions, head_dim]`: `y = x · cos + partner(x) · sin`."""
        cos, sin = (self.weights[ref] * 2.0**-a.ROPE_FRACTION_BITS for ref in (op.cos, op.sin))
        first, second = rope_pairs(head_dim, 2 * cos.shape[1], bool(op.get("interleaved")))
        full_cos, full_sin = np.ones((len(cos), head_dim)), np.zeros((len(cos), head_dim))
        full_cos[:, first], full_cos[:, second] = cos, cos
        full_sin[:, first], full_sin[:, second] = -sin, sin
        return full_cos, full_sin

    def rescaled_mul(self, op: int_ops.MulOp, requant: int_ops.RequantOp) -> Any:
        return self.graph.op("Mul", self.real(op.a), self.real(op.b))

    def rescaled_gate(self, op: int_ops.GateOp, requant: int_ops.RequantOp) -> Any:
        g, blocks = self.graph, channels(op.gates)
        x = self.reshape(self.real(op.x), (0, blocks, channels(op.x) // blocks))
        gates = g.op("Unsqueeze", self.real(op.gates), g.constant(np.array([-1], np.int64)))
        return self.reshape(g.op("Mul", x, gates), (0, channels(op.x)))

    def rescaled_convolution(self, op: int_ops.CausalConvOp, requant: int_ops.RequantOp) -> Any:
        g, stated = self.graph, self.type(op.x)
        dtype = numpy_dtype(stated.storage)
        x = self.values.get(op.x) or self.quantize(self.floats[op.x], stated.real_scale, stated.zero, dtype)
        step = self.factor(requant) * 2.0 ** -op.get("acc_shift")
        weight = self.weights[op.weight] * (step / stated.real_scale)[:, None]
        total = self.constant(self.weights[op.bias] * step)
        for column, rows in zip(weight.T, self.taps(op, x), strict=True):
            real = self.dequantize(rows, stated.real_scale, stated.zero, dtype)
            total = g.op("Add", total, g.op("Mul", real, self.constant(column)))
        return total

    def rescaled_route(self, op: int_ops.RouteOp, requant: int_ops.RequantOp) -> Any:
        g, scores, zero = self.graph, self.real(op.x), self.constant(0.0)
        shares, normalization = op.get("shares"), op.get("normalization")
        p = g.op("Softmax", scores, axis=-1) if shares else scores
        unit = 2.0**-a.PROBABILITY_FRACTION_BITS if shares else self.scale(op.x)
        choice = p if op.bias is None else g.op("Add", p, self.constant(self.weights[op.bias] * unit))
        last = g.constant(np.array([-1], np.int64))
        chosen = self.chosen(op, choice, self.constant(_HIDDEN))
        if normalization == "softmax":
            shown = g.op("Where", chosen, scores, self.constant(_HIDDEN))
            y = g.op("Softmax", shown, axis=-1)
        else:
            y = g.op("Where", chosen, p, zero)
        if normalization == "sum":
            y = g.op("Div", y, g.op("ReduceSum", y, last, keepdims=1))
        probability = 2.0**-a.PROBABILITY_FRACTION_BITS
        one = {"none": unit, "softmax": probability, "sum": 2.0**-SHARE_FRACTION_BITS}[normalization]
        return g.op("Mul", y, self.constant(self.factor(requant) / one))

    def join(self, op: int_ops.JoinOp) -> None:
        g = self.graph
        places = g.constant(self.weights[op.index].astype(np.int64))
        parts = g.op("Concat", self.real(op.a), self.real(op.b), axis=1)
        self.store(g.op("Gather", parts, places, axis=1), op.result)

    def add(self, op: int_ops.AddOp) -> None:
        self.store(self.graph.op("Add", self.real(op.a), self.real(op.b)), op.result)

    def lut(self, op: int_ops.LutOp) -> None:
        self.store(self.function(op, self.real(op.x)), op.result)

    def function(self, op: int_ops.LutOp, x: str) -> str:
        g, name = self.graph, op.get("function")
        match name:
            case "silu":
                return g.op("Mul", x, g.op("Sigmoid", x))
            case "quick_gelu":
                return g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, self.constant(1.702))))
            case "gelu" | "gelu_tanh":
                return g.op("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")
            case "relu_squared":
                positive = g.op("Relu", x)
                return g.op("Mul", positive, positive)
            case "relu" | "sigmoid" | "tanh":
                return g.op(name.capitalize(), x)
        try:
            return self.expression(parse(name or ""), x)
        except ValueError as error:
            raise TargetError(
                f"onnx: %{self.name(op.result)} is a table of {name or 'no stated function'}, which has no "
                f'QDQ form ({error}); use style "integer"'
            ) from error

    def expression(self, expression: Argument, x: str) -> str:
        """An elementwise function of a float tensor as float ops."""
        match expression:
            case str():
                return x
            case float():
                return self.constant(expression)
        g, name = self.graph, expression.name
        arguments = [self.expression(a, x) for a in expression.arguments]
        match name:
            case "expm1":
                return g.op("Sub", g.op("Exp", *arguments), self.constant(1.0))
            case "log1p":
                return g.op("Log", g.op("Add", *arguments, self.constant(1.0)))
            case "silu":
                return g.op("Mul", *arguments, g.op("Sigmoid", *arguments))
        return g.op(_ONNX.get(name, name.capitalize()), *arguments)

    def attention(self, op: int_ops.AttentionOp) -> None:
        g, q = self.graph, self.type(op.q)
        keys, rows = (self.rows(s, self.values[x]) for s, x in zip(op.states(), (op.k, op.v), strict=True))
        # The scores' factor is put into the scale of the queries.
        scaled = self.dequantize(
            self.queries(op, self.values[op.q]), q.real_scale * self.score_factor(op), q.zero
        )
        k, v = self.type(op.k), self.type(op.v)
        turned = self.dequantize(g.op("Transpose", keys, perm=[1, 2, 0]), k.real_scale, k.zero)
        scores = self.by_head(op, g.op("MatMul", scaled, turned))
        if (cap := op.get("softcap")) is not None:
            shares = g.op("Tanh", g.op("Mul", scores, self.constant(1 / cap)))
            scores = g.op("Mul", shares, self.constant(cap))
        if op.key_bias is not None:
            real = self.weights[op.key_bias] * (self.score_factor(op) * self.scale(op.q) * self.scale(op.k))
            scores = g.op("Add", scores, self.of_keys(op, real.astype(np.float32), op.key_bias.key.data))
        p = self.shares(op, g.op("Add", scores, self.mask(op)))
        p = self.flat_heads(op, p)
        values = self.dequantize(g.op("Transpose", rows, perm=[1, 0, 2]), v.real_scale, v.zero)
        self.store(self.merge(op, g.op("MatMul", p, values)), op.result)

    def shares(self, op: int_ops.AttentionOp, scores: str) -> str:
        """Softmax of scores, to which a sink adds one that has no value."""
        g = self.graph
        if op.sinks is None:
            return g.op("Softmax", scores, axis=-1)
        real = self.weights[op.sinks] * self.score_factor(op) * self.scale(op.q) * self.scale(op.k)
        sinks = self.constant(real.reshape(op.get("kv_heads"), -1, 1, 1))
        last = g.constant(np.array([-1], np.int64))
        largest = g.op("Max", g.op("ReduceMax", scores, last, keepdims=1), sinks)
        exps = g.op("Exp", g.op("Sub", scores, largest))
        total = g.op("ReduceSum", exps, last, keepdims=1)
        return g.op("Div", exps, g.op("Add", total, g.op("Exp", g.op("Sub", sinks, largest))))

    def score_factor(self, op: int_ops.AttentionOp) -> float:
        """What scores of real queries and keys are multiplied with before the softmax."""
        factor = real_factor(op.get("score_multiplier"), op.get("score_shift"))
        cap = op.get("softcap")
        octave = np.log2(np.e) * 2.0**a.SCORE_FRACTION_BITS if cap is None else 1 / (cap * CAP_STEP)
        return float(factor / octave / self.scale(op.q) / self.scale(op.k))

    def mask(self, op: int_ops.AttentionOp) -> str:
        """Float `[tokens, seen]` to add to scores."""
        visible = self.visible(op)
        if visible not in self._scores:
            with self.graph.scope("mask"):
                self._scores[visible] = self.graph.op(
                    "Where", visible, self.constant(0), self.constant(_HIDDEN)
                )
        return self._scores[visible]


def partners(op: int_ops.RopeOp) -> Array:
    """For each channel of a head the one that it is rotated with; itself if it passes through."""
    head_dim = op.get("head_dim")
    pairs = rope_pairs(head_dim, 2 * op.cos.shape[1], bool(op.get("interleaved")))
    order = np.arange(head_dim)
    order[pairs[0]], order[pairs[1]] = np.arange(head_dim)[pairs[1]], np.arange(head_dim)[pairs[0]]
    return order
