"""The QDQ form for NPUs: every tensor is quantized, every length fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from onnx import TensorProto
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.arrays import Array
from mqc.backends.onnx.emitter import LOGITS, new_name, past_name
from mqc.backends.onnx.graph import Graph
from mqc.backends.onnx.qdq import QdqForm, partners
from mqc.dialects import int_ops
from mqc.dialects.expressions import Argument
from mqc.dialects.int_ops import LOGIT_STEPS
from mqc.dialects.quant import UniformType, affine_range
from mqc.errors import TargetError
from mqc.ir.op import MqcOp, State, channels, element_type, plain
from mqc.ir.weight_store import numpy_dtype
from mqc.numerics import arithmetic as a
from mqc.numerics.layouts import pack

#: Probabilities, and what a sigmoid gives: the scale that HTP has for them.
_UNIT = UniformType.of(16, 2.0**-16, 0)
#: Rows of an embedding that are evaluated at once.
_TABLE_ROWS = 1024
#: Scores of hidden keys lie so far below all others: their probabilities are less than 2^-28.
_HIDDEN_BELOW = 20.0


#: Least range of a type: what is all zeros has none of its own.
_SMALLEST = 1e-9


@dataclass(frozen=True)
class Tensor:
    """A stored tensor and the real numbers it stands for."""

    name: str
    type: UniformType


class NpuForm(QdqForm):
    """Follows QNN's rules: operands of an elementwise op have one width, an op's result has its own
    QuantizeLinear, a change of precision is a pair DequantizeLinear, QuantizeLinear (`Convert`).

    8-bit operands of ops with a 16-bit result are widened first: `s·(q − z) = s/256·(256·q − 256·z)`.
    Ids and positions are s32, the logits u16. The methods of ops give a `Tensor`.
    """

    INDEX: ClassVar[Any] = np.int32

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self.lengths.tokens is None or self.lengths.past is None:
            raise TargetError('onnx: runtime "npu" needs fixed lengths: give tokens, e.g. (128, 1)')
        self._tables: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._query_factor: dict[SSAValue, float] = {}

    def emit(self, every_value: bool = False) -> Graph:
        for op in self.names:
            if isinstance(op, int_ops.AttentionOp):
                if not op.q.has_one_use():
                    raise TargetError(f"onnx: the queries %{self.name(op.q)} of an attention have other uses")
                made = op.q.owner
                if not isinstance(made, int_ops.RequantOp) or isinstance(made.accumulator, int_ops.MulOp):
                    raise TargetError(
                        f"onnx: the queries %{self.name(op.q)} cannot take in the factor of the scores; "
                        "let a product, a norm or a rotation give them"
                    )
                self._query_factor[op.q] = max(self.score_factor(op), _SMALLEST)
        return super().emit(every_value)

    def type(self, value: SSAValue) -> UniformType:
        """As stated; but queries contain the factor of the scores, so that no op has to apply it."""
        stated = super().type(value)
        factor = self._query_factor.get(value, 1.0)
        return UniformType.of(stated.bits, stated.real_scale * factor, stated.zero)

    # ---- quantized tensors

    def run(
        self,
        kind: str,
        inputs: Sequence[Tensor | str],
        result: UniformType,
        out: str | None = None,
        **attributes: Any,
    ) -> Tensor:
        """One op between DequantizeLinear and QuantizeLinear; strings are operands that are no numbers."""
        names = [x if isinstance(x, str) else self.dequantized(x) for x in inputs]
        y = self.graph.op(kind, *names, **attributes)
        return self.quantized(y, result, out)

    def dequantized(self, x: Tensor) -> str:
        return self.dequantize(x.name, x.type.real_scale, x.type.zero, f"uint{x.type.bits}")

    def quantized(self, x: str, kind: UniformType, out: str | None = None) -> Tensor:
        return Tensor(self.quantize(x, kind.real_scale, kind.zero, f"uint{kind.bits}", out), kind)

    def convert(self, x: Tensor, kind: UniformType, out: str | None = None) -> Tensor:
        return x if x.type == kind and out is None else self.quantized(self.dequantized(x), kind, out)

    def widen(self, x: Tensor) -> Tensor:
        """The same numbers in 16 bits."""
        return self.convert(x, wider(x.type))

    def move(self, kind: str, x: Tensor, *others: str, out: str | None = None, **attributes: Any) -> Tensor:
        """An op that moves values and keeps their type."""
        return self.run(kind, [x, *others], x.type, out, **attributes)

    def shaped(self, x: Tensor, shape: Sequence[int], out: str | None = None) -> Tensor:
        return self.move("Reshape", x, self.graph.constant(np.array(shape, np.int64)), out=out)

    def constant_tensor(self, real: Array, kind: UniformType, hint: str) -> Tensor:
        exact = np.rint(real / kind.real_scale) + kind.zero
        stored = np.clip(exact, kind.low, kind.high)
        if np.abs(exact - stored).max(initial=0) > 1:
            raise TargetError(f"onnx: the constant {hint} goes beyond the range of its type")
        return Tensor(self.graph.constant(stored, hint, f"uint{kind.bits}", kind), kind)

    def tensor(self, value: SSAValue) -> Tensor:
        return Tensor(self.values[value], self.type(value))

    def store(self, x: Any, value: SSAValue) -> None:
        """Make x, which the last op gave, the value."""
        wanted, name = self.result_type(value), LOGITS if self.is_logits(value) else self.name(value)
        if x.type == wanted:
            self.values[value] = self.graph.rename(x.name, name)
        else:
            self.values[value] = self.convert(x, wanted, name).name
        if self.is_logits(value):
            self.graph.output(LOGITS, np.uint16, self.logit_shape, first=True)

    def result_type(self, value: SSAValue) -> UniformType:
        return logit_type(self.module) if self.is_logits(value) else self.type(value)

    # ---- ops

    def embedding(self, op: int_ops.EmbeddingOp) -> None:
        rows = op.multiplier.shape[0]
        stored = np.empty((rows, channels(op.result)), numpy_dtype(element_type(op.result)))
        for start in range(0, rows, _TABLE_ROWS):  # the op computes in 64 bits
            part = slice(start, start + _TABLE_ROWS)
            stored[part] = op.evaluate(self.evaluation, np.arange(rows)[part])
        table = Tensor(self.graph.constant(stored, f"{self.name(op.result)}.table"), self.type(op.result))
        self.store(self.move("Gather", table, self.values[op.indices], axis=0), op.result)

    def rescaled_linear(self, op: int_ops.LinearOp, requant: int_ops.RequantOp) -> Tensor:
        if op.group_scale is not None:
            raise TargetError(
                f"onnx: %{self.name(requant.result)} has 4-bit weights in groups, which HTP does not take; "
                "compile with group = 0 (per channel)"
            )
        result, x = self.result_type(requant.result), self.tensor(op.x)
        if 16 in (x.type.bits, result.bits):
            x, result = self.widen(x), wider(result)
        step, scale = self.product_scales(op, requant)
        bias = self.weights[op.bias] * step
        # s32 must hold a bias in steps of the product: coarser weights where it does not.
        coarser = np.maximum(np.abs(bias / (scale * x.type.real_scale)) / (2**31 - 1), 1.0)
        scale = scale * coarser
        weight = self.npu_weight(op, scale, coarser)
        if not bias.any():
            return self.run("MatMul", [x, weight], result)
        unit = scale * x.type.real_scale
        stored = np.rint(bias / unit).astype(np.int64).astype(np.int32)
        name = self.graph.constant(stored, f"{self.name(requant.result)}.bias", meaning=self.name(op.result))
        real = self.graph.op("DequantizeLinear", name, self.constant(unit), axis=0)
        return self.run("Gemm", [x, weight, real], result)

    def npu_weight(self, op: int_ops.LinearOp, scale: Array, coarser: Array) -> str:
        """The weight `[inputs, outputs]`, its steps `coarser` times the module's, dequantized."""
        g, shape = self.graph, (channels(op.x), channels(op.result))
        kind = TensorProto.INT8 if op.get("weight_bits") == 8 else TensorProto.INT4
        meaning = self.names[op]  # QNN knows one encoding for an initializer; see also `matrix`
        if (coarser == 1).all():
            packed = g.weight(op.weight, kind, shape, meaning)
        else:
            matrix = op.matrix(self.evaluation) / coarser[:, None]
            stored = pack(np.rint(matrix).astype(np.int8), op.get("layout"))
            packed = g.packed(stored, kind, shape, f"{op.weight.key.data}.coarser", meaning)
        if kind == TensorProto.INT8:
            return self.dequantize_matrix(op, packed, scale)
        # Without an explicit zero point onnxruntime-qnn 2.7 reads other numbers from INT4 tensors.
        nothing = np.zeros(-(-shape[1] // 2), np.uint8)
        zeros = self.graph.packed(nothing, TensorProto.INT4, shape[1:], f"int4_zeros_{shape[1]}")
        return self.graph.op("DequantizeLinear", packed, self.constant(scale), zeros, axis=1)

    def rescaled_route(self, op: int_ops.RouteOp, requant: int_ops.RequantOp) -> Tensor:
        raise self._refused(op)

    def rescaled_gate(self, op: int_ops.GateOp, requant: int_ops.RequantOp) -> Tensor:
        raise self._refused(op)

    def rescaled_convolution(self, op: int_ops.CausalConvOp, requant: int_ops.RequantOp) -> Tensor:
        raise self._refused(op)

    def join(self, op: int_ops.JoinOp) -> None:
        raise self._refused(op)

    def _refused(self, op: MqcOp) -> TargetError:
        what = op.name
        if isinstance(op, int_ops.AttentionOp):
            refused = {"sinks": "sinks", "softcap": "a softcap", "key_bias": "a bias of keys"}
            what += f" with {next(text for name, text in refused.items() if name in op.properties)}"
        return TargetError(
            f'onnx: {what} %{self.name(op.results[0])} has no QDQ form (not for NPUs); use style "integer"'
        )

    def rescaled_norm(self, op: int_ops.NormOp, requant: int_ops.RequantOp) -> Tensor:
        size, groups = channels(op.x) // op.get("groups"), op.get("groups")
        kind, gain, epsilon = self.real_norm(op, requant)
        wide, hint = wider(self.result_type(requant.result)), f"{self.name(requant.result)}.gain"
        bias = self.norm_bias(op, requant)
        inner = wide if bias is None else symmetric(np.sqrt(size) * np.abs(gain).max())
        x, weight = (
            self.widen(self.tensor(op.x)),
            self.constant_tensor(gain, symmetric(abs(gain).max()), hint),
        )
        if groups == 1:
            y = self.run(kind, [x, weight], inner, axis=-1, epsilon=epsilon)
        else:
            blocks = self.shaped(x, (-1, groups, size))
            ones = self.constant_tensor(np.ones(size), symmetric(1.0), f"{hint}.ones")
            y = self.run(kind, [blocks, ones], symmetric(np.sqrt(size)), axis=-1, epsilon=epsilon)
            y = self.run("Mul", [self.shaped(y, (-1, groups * size)), weight], inner)
        if bias is None:
            return y
        added = self.constant_tensor(bias, symmetric(np.abs(bias).max()), f"{self.name(requant.result)}.bias")
        return self.run("Add", [y, added], wide)

    def rescaled_rope(self, op: int_ops.RopeOp, requant: int_ops.RequantOp) -> Tensor:
        head_dim = op.get("head_dim")
        x = self.shaped(self.widen(self.tensor(op.x)), (-1, channels(op.x) // head_dim, head_dim))
        factors = self.factor(requant) * 2.0**a.ROPE_FRACTION_BITS / self.scale(op.x)
        if np.ptp(factors) > 1e-6 * np.abs(factors).max():
            raise TargetError(
                f"onnx: %{self.name(requant.result)}: a rotation needs one scale for all channels"
            )
        factor = float(factors[0])
        cos, sin = self.rope_tensors(op, factor)
        turned = self.permuted(x, partners(op))
        kind = symmetric(reach(cos.type) * reach(x.type))
        y = self.run(
            "Add",
            [self.run("Mul", [x, cos], kind), self.run("Mul", [turned, sin], kind)],
            wider(self.type(requant.result)),
        )
        return self.shaped(y, (-1, channels(op.x)))

    def permuted(self, x: Tensor, order: Array) -> Tensor:
        """Channels of the last of three dimensions in another order, by slices of neighbours."""
        breaks = np.flatnonzero(np.diff(order) != 1) + 1
        if len(breaks) > 8:
            return self.move("Gather", x, self.graph.constant(order.astype(np.int32)), axis=2)
        parts = np.split(order, breaks)
        pieces = []
        for part in parts:
            ends = (self.graph.constant(np.array([i], np.int64)) for i in (part[0], part[-1] + 1, 2))
            pieces.append(self.move("Slice", x, *ends))
        return self.run("Concat", pieces, x.type, axis=2)

    def rope_tensors(self, op: int_ops.RopeOp, factor: float) -> tuple[Tensor, Tensor]:
        rounded = float(f"{factor:.6g}")  # multipliers of equal factors differ in the last bit
        key = (op.cos, op.sin, op.get("head_dim"), op.get("interleaved"), rounded)
        if key not in self._tables:
            rows = []
            tables = self.rope_tables(op, op.get("head_dim"))
            with self.graph.scope("rope"):
                kind = symmetric(rounded * np.abs(tables).max())  # above 1 where a model scales by position
                for name, table in zip(("cos", "sin"), tables, strict=True):
                    stored = self.constant_tensor(table * rounded, kind, f"rope.{name}")
                    picked = self.move("Gather", stored, self.positions, axis=0)
                    rows.append(self.shaped(picked, (-1, 1, op.get("head_dim"))))
            self._tables[key] = rows[0], rows[1]
        return self._tables[key]

    def rescaled_mul(self, op: int_ops.MulOp, requant: int_ops.RequantOp) -> Tensor:
        operands = [self.widen(self.tensor(x)) for x in (op.a, op.b)]
        return self.run("Mul", operands, wider(self.type(requant.result)))

    def add(self, op: int_ops.AddOp) -> None:
        operands = [self.widen(self.tensor(x)) for x in (op.a, op.b)]
        self.store(self.run("Add", operands, wider(self.type(op.result))), op.result)

    def lut(self, op: int_ops.LutOp) -> None:
        x, result = self.widen(self.tensor(op.x)), wider(self.type(op.result))
        match op.get("function"):
            case "silu":
                y = self.run("Mul", [x, self.run("Sigmoid", [x], _UNIT)], result)
            case "quick_gelu":
                factor = self.constant_tensor(np.array(1.702), affine_range(0, 1.702, 16), "quick_gelu")
                inner = self.run("Mul", [x, factor], symmetric(1.702 * reach(x.type)))
                y = self.run("Mul", [x, self.run("Sigmoid", [inner], _UNIT)], result)
            case _:
                y = self.quantized(self.function(op, self.dequantized(x)), result)
        self.store(y, op.result)

    def expression(self, expression: Argument, x: str) -> str:
        raise ValueError("not for NPUs")  # which take no float between its ops

    def attention(self, op: int_ops.AttentionOp) -> None:
        if op.sinks is not None or op.softcap is not None or op.key_bias is not None:
            raise self._refused(op)
        heads, kv_heads = op.get("heads"), op.get("kv_heads")
        tokens, width, group = self.lengths.tokens or 0, channels(op.q) // heads, heads // kv_heads
        keys, values = (self.rows(s, self.tensor(x)) for s, x in zip(op.states(), (op.k, op.v), strict=True))
        q = self.shaped(self.tensor(op.q), (-1, kv_heads, group, width))
        q = self.shaped(self.move("Transpose", q, perm=[1, 2, 0, 3]), (kv_heads, -1, width))
        keys_turned = self.move("Transpose", keys, perm=[1, 2, 0])
        most = reach(q.type) * reach(keys.type) * width
        kind = affine_range(-most - _HIDDEN_BELOW, most, 16)
        scores = self.run("MatMul", [self.widen(q), keys_turned], kind)
        scores = self.shaped(scores, (kv_heads, group, tokens, -1))
        lowest = self.constant_tensor(np.array(-most - _HIDDEN_BELOW), kind, f"{self.name(op.result)}.lowest")
        shown = self.run("Where", [self.visible(op), scores, lowest], kind)
        p = self.shaped(self.run("Softmax", [shown], _UNIT, axis=-1), (kv_heads, group * tokens, -1))
        values = self.move("Transpose", values, perm=[1, 0, 2])
        y = self.run("MatMul", [p, values], self.type(op.result))
        y = self.shaped(y, (kv_heads, group, tokens, op.value_dim))
        y = self.move("Transpose", y, perm=[2, 0, 1, 3])
        self.store(self.shaped(y, (tokens, heads * op.value_dim)), op.result)

    def rows(self, state: State, x: Any) -> Any:
        """Give the new rows out, and return all `[seen, *shape]`."""
        new = self.shaped(x, (-1, *state.shape), new_name(state))
        self.graph.output(new.name, np.uint8, [self.lengths.token_dim, *state.shape])
        return self.run("Concat", [Tensor(past_name(state), new.type), new], new.type, axis=0)


def symmetric(most: Any) -> UniformType:
    """u16 over [−most, most]: what HTP wants of a second operand."""
    return UniformType.of(16, max(float(most), _SMALLEST) / 32767, 1 << 15)


def wider(kind: UniformType) -> UniformType:
    """The 16-bit type with the range of `kind`."""
    if kind.bits == 16:
        return kind
    return UniformType.of(16, kind.real_scale / 256, kind.zero * 256)


def reach(kind: UniformType) -> float:
    """Largest magnitude that a type represents."""
    return kind.real_scale * max(kind.zero - kind.low, kind.high - kind.zero)


def logit_type(module: ModuleOp) -> UniformType:
    """u16 over the logits that calibration saw, and a quarter more."""
    return symmetric(1.25 * LOGIT_STEPS * float(plain(module.attributes["mqc.logit_scale"])))
