"""`lower-to-int`: from quantized floats to integers, op by op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from xdsl.dialects import func
from xdsl.dialects.builtin import DenseArrayBase, ModuleOp
from xdsl.ir import Attribute, Block, SSAValue

from mqc.analysis.context import CompilerContext
from mqc.analysis.lut import interpolation_table, table_of_256
from mqc.analysis.proofs import acc_shift, accumulator_bound, check_accumulators
from mqc.arrays import Array
from mqc.costs import ModelSize, Work
from mqc.dialects import int_ops, llm
from mqc.dialects.quant import UniformType, uniform
from mqc.errors import PassError, UnsupportedOpError
from mqc.ir.module import main_function, mqc_ops, set_level
from mqc.ir.op import MqcOp, WeightAttr, attr, channels, s32, tensor
from mqc.ir.weight_store import WeightStore
from mqc.numerics import arithmetic
from mqc.numerics.products import effective_weight
from mqc.pass_base import Pass


class LowerToInt(Pass):
    """Replace every op by `int` ops on the stored integers; the real scales become multipliers.

    1. `linear` → `int.linear`, `int.requant` per channel with s_x·s_w / s_y
    2. `rms_norm`, `layer_norm` → `int.rms_norm`, `int.layer_norm`, `int.requant` with
       gain·sqrt(channels) / s_y (of 30 fraction bits)
    3. `rope` → `int.rope`, `int.requant`
    4. activations → `int.lut`
    5. `mul` → `int.mul`, `int.requant`; `add` → `int.add`; `embedding` → `int.embedding`
    6. `attention` → `int.attention`, prefix rows quantized

    Each result states the real numbers it stands for (`represents`, a quantized type), for people,
    tools, and targets that want real scales (QDQ). The returned logits become s32 with one scale,
    the module's `mqc.logit_scale`. Accumulators are proved not to overflow. An op that reads or gives an
    unquantized value is an error.
    """

    name = "lower-to-int"
    requires: ClassVar[str] = "quant"
    ensures: ClassVar[str] = "int"

    def work(self, size: ModelSize, length: int) -> Work:
        return Work(written=size.weights + size.logits)

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        Lowering(ctx, module).run()
        set_level(module, "int")
        check_accumulators(module, ctx.weights)
        return True


class Lowering:
    """One run of the pass. Ops of one's own (`LlmOp.lower`) are lowered with its methods."""

    def __init__(self, ctx: CompilerContext, module: ModuleOp) -> None:
        self.weights: WeightStore = ctx.weights
        self.ctx, self.module = ctx, module
        self.values: dict[SSAValue, SSAValue] = {}
        self.location: Attribute | None = None
        self.rules: dict[type[MqcOp], Callable[[Any], SSAValue]] = {
            llm.EmbeddingOp: self.embedding,
            llm.LinearOp: self.linear,
            llm.RmsNormOp: self.norm,
            llm.LayerNormOp: self.norm,
            llm.RopeOp: self.rope,
            llm.AttentionOp: self.attention,
            llm.MulOp: self.mul,
            llm.AddOp: self.add,
            llm.ActivationOp: self.activation,
        }

    def run(self) -> None:
        function = main_function(self.module)
        block: Block = function.body.block
        old = list(block.ops)
        self.values.update({arg: arg for arg in block.args})
        self.block = block
        terminator = old[-1]
        terminator.detach()
        ops = list(mqc_ops(self.module))
        for i, op in enumerate(ops):
            assert isinstance(op, llm.LlmOp)
            rule = next((self.rules[kind] for kind in type(op).__mro__ if kind in self.rules), None)
            self.location = op.attributes.get("loc")
            self.values[op.results[0]] = value = rule(op) if rule is not None else op.lower(self)
            quantized = uniform(op.results[0])
            if quantized is not None and isinstance(value.owner, MqcOp):
                value.owner.attributes["represents"] = quantized
            self.ctx.progress(LowerToInt.name, (i + 1) / len(ops))
        returned = self.values[terminator.operands[0]]
        for stale in reversed(old[:-1]):
            stale.detach()
        terminator.drop_all_references()
        for stale in reversed(old[:-1]):
            stale.erase(safe_erase=False)
        block.add_op(func.ReturnOp(returned))
        inputs = [arg.type for arg in block.args]
        function.function_type = type(function.function_type).from_lists(inputs, [returned.type])

    # ---- shared

    def known(self) -> list[str]:
        """Names of the ops that there are rules for."""
        return sorted(kind.name for kind in llm.Llm.operations if set(kind.__mro__) & set(self.rules))

    def emit(self, kind: type[MqcOp], operands: list[SSAValue], result: Any, name: str, **p: Any) -> Any:
        """Append an `int` op on the integer values of `operands` (float ones are looked up)."""
        op = kind.build_op([self.values.get(v, v) for v in operands], result, name, **p)
        if self.location is not None:
            op.attributes["loc"] = self.location
        self.block.add_op(op)
        return op.results[0]

    def requant(self, op: MqcOp, acc: SSAValue, real: Any, result: Any, zero: int) -> SSAValue:
        """Rescale by the real factor(s), one or one per channel."""
        multiplier, shift = self.multiplier(op, real)
        name = op.value_name
        return self.emit(
            int_ops.RequantOp, [acc], result, name, zero_point=zero,
            multiplier=self.weights.add(f"{name}.multiplier", multiplier),
            shift=self.weights.add(f"{name}.shift", shift),
        )  # fmt: skip

    def multiplier(self, op: MqcOp, real: Any) -> tuple[Array, Array]:
        try:
            return arithmetic.quantize_multiplier(real)
        except ValueError as error:
            raise PassError(f"lower-to-int: {op.name} %{op.value_name}: {error}") from error

    def scalar(self, op: MqcOp, prefix: str, real: float) -> dict[str, int]:
        """Attributes `<prefix>multiplier` and `<prefix>shift` of one factor."""
        multiplier, shift = self.multiplier(op, real)
        return {f"{prefix}multiplier": int(multiplier[0]), f"{prefix}shift": int(shift[0])}

    def quantization(self, op: MqcOp, value: SSAValue) -> UniformType:
        """Quantized type of an operand or result. Raises `PassError` if it is float."""
        found = uniform(value)
        if found is None:
            raise PassError(
                f"lower-to-int: {op.name} %{op.value_name} touches %{value.name_hint}, which has no "
                "quantized type; run assign-precision first"
            )
        return found

    def out(self, op: MqcOp) -> tuple[UniformType, Any]:
        """Quantized type of the result, and the type of its integers."""
        quantized = self.quantization(op, op.results[0])
        return quantized, tensor(quantized.storage, channels(op.results[0]))

    def constant(self, ref: WeightAttr | None) -> Array | None:
        return None if ref is None else self.weights[ref]

    # ---- rules

    def embedding(self, op: llm.EmbeddingOp) -> SSAValue:
        y, result = self.out(op)
        if op.table_scale is None:
            raise PassError(f"lower-to-int: %{op.value_name}: run quantize-weights first")
        factor = 1.0 if op.factor is None else op.get("factor")
        real = self.weights[op.table_scale].astype(np.float64) * factor / y.real_scale
        multiplier, shift = self.multiplier(op, real)
        name = op.value_name
        return self.emit(
            int_ops.EmbeddingOp, [op.indices], result, name, table=op.table,
            multiplier=self.weights.add(f"{name}.multiplier", multiplier),
            shift=self.weights.add(f"{name}.shift", shift), zero_point=y.zero,
        )  # fmt: skip

    def linear(self, op: llm.LinearOp) -> SSAValue:
        x = self.quantization(op, op.x)
        if op.weight_scale is None:
            raise PassError(f"lower-to-int: %{op.value_name}: run quantize-weights first")
        scale = self.weights[op.weight_scale].astype(np.float64) * x.real_scale
        weight = effective_weight(self.weights[op.weight], self.constant(op.group_scale))
        n = len(weight)
        real_bias = self.constant(op.bias)
        bias = np.zeros(n, np.int32)
        if real_bias is not None:
            exact = np.rint(real_bias / scale)
            if np.abs(exact).max() > np.iinfo(np.int32).max:
                raise PassError(
                    f"lower-to-int: %{op.value_name}: a bias is more than 2^31 of its row's scale; let "
                    "quantize-weights choose the scale"
                )
            bias = exact.astype(np.int32)
        bound = accumulator_bound(weight, bias, x.low - x.zero, x.high - x.zero)
        shift = acc_shift(int(bound.max()))
        acc = self.emit(
            int_ops.LinearOp, [op.x], tensor(s32, n), f"{op.value_name}.acc",
            weight=op.weight, weight_bits=op.get("weight_bits"), group_scale=op.group_scale,
            bias=self.weights.add(f"{op.value_name}.bias", bias), x_zero=x.zero, acc_shift=shift,
        )  # fmt: skip
        real = scale * 2.0**shift
        if uniform(op.result) is not None:
            y, result = self.out(op)
            return self.requant(op, acc, real / y.real_scale, result, y.zero)
        unit = self.logit_scale(op)
        return self.requant(op, acc, real / unit, tensor(s32, n), 0)

    def logit_scale(self, op: MqcOp) -> float:
        """Scale of the s32 logits. Only the returned value may be unquantized."""
        seen = op.attributes.get("range")
        if not isinstance(seen, DenseArrayBase) or not op.results[0].has_one_use():
            raise PassError(f"lower-to-int: %{op.value_name} has no quantized type")
        unit = max(abs(float(v)) for v in seen.get_values()) / int_ops.LOGIT_STEPS
        self.module.attributes["mqc.logit_scale"] = attr(unit)
        return unit

    def norm(self, op: llm.NormOp) -> SSAValue:
        x = self.quantization(op, op.x)
        y, result = self.out(op)
        groups = op.get("groups")
        size = channels(op.x) // groups
        epsilon = size * op.get("eps") / x.real_scale**2
        kind: type[MqcOp] = int_ops.RmsNormOp
        if isinstance(op, llm.LayerNormOp):
            if op.bias is not None:
                raise UnsupportedOpError(
                    f"%{op.value_name}", op.name, "with a bias that fold-norm could not move"
                )
            kind, epsilon = int_ops.LayerNormOp, epsilon * 4.0**arithmetic.MEAN_FRACTION_BITS
        direction = self.emit(
            kind, [op.x], tensor(s32, channels(op.x)), f"{op.value_name}.direction",
            x_zero=x.zero, epsilon=max(round(epsilon), 1), groups=groups,
        )  # fmt: skip
        gain = self.constant(op.gain)
        factor = np.sqrt(size) / y.real_scale * 2.0**-arithmetic.NORM_FRACTION_BITS
        real = factor * (gain.astype(np.float64) if gain is not None else 1.0)
        return self.requant(op, direction, real, result, y.zero)

    def rope(self, op: llm.RopeOp) -> SSAValue:
        x = self.quantization(op, op.x)
        y, result = self.out(op)
        one = 2.0**arithmetic.ROPE_FRACTION_BITS
        tables = {
            name: self.weights.add(f"rope.{name}", np.rint(self.weights[ref] * one).astype(np.int16))
            for name, ref in (("cos", op.cos), ("sin", op.sin))
        }
        rotated = self.emit(
            int_ops.RopeOp, [op.x, op.positions], tensor(s32, channels(op.x)),
            f"{op.value_name}.rotated", **tables, head_dim=op.get("head_dim"),
            interleaved=op.get("interleaved"), x_zero=x.zero,
        )  # fmt: skip
        return self.requant(op, rotated, x.real_scale / y.real_scale / one, result, y.zero)

    def attention(self, op: llm.AttentionOp) -> SSAValue:
        if op.softcap is not None:
            raise UnsupportedOpError(f"%{op.value_name}", "softcapped attention", "has no integer form")
        q, k, v = (self.quantization(op, value) for value in (op.q, op.k, op.v))
        y, result = self.out(op)
        score = q.real_scale * k.real_scale * op.get("scale") * np.log2(np.e)
        probability = 2.0**-arithmetic.PROBABILITY_FRACTION_BITS
        prefix = {
            name: self.weights.add(f"{op.value_name}.{name}", stored(self.weights[ref], quantized))
            for name, ref, quantized in (("prefix_k", op.prefix_k, k), ("prefix_v", op.prefix_v, v))
            if ref is not None
        }
        return self.emit(
            int_ops.AttentionOp, [op.q, op.k, op.v], result, op.value_name,
            layer=op.get("layer"), heads=op.get("heads"), kv_heads=op.get("kv_heads"),
            window=op.get("window"), q_zero=q.zero, k_zero=k.zero, v_zero=v.zero, zero_point=y.zero,
            **prefix,
            **self.scalar(op, "score_", score * 2.0**arithmetic.SCORE_FRACTION_BITS),
            **self.scalar(op, "", v.real_scale * probability / y.real_scale),
        )  # fmt: skip

    def activation(self, op: llm.ActivationOp) -> SSAValue:
        x = self.quantization(op, op.x)
        y, result = self.out(op)
        if x.bits == 8:
            table, segment_bits = table_of_256(op.function, x, y), None
        else:
            table, segment_bits = interpolation_table(op.function, x, y)
        ref = self.weights.add(f"{op.value_name}.table", table)
        return self.emit(
            int_ops.LutOp, [op.x], result, op.value_name, table=ref, segment_bits=segment_bits,
            function=op.name.removeprefix("llm."),
        )  # fmt: skip

    def mul(self, op: llm.MulOp) -> SSAValue:
        a, b = self.quantization(op, op.a), self.quantization(op, op.b)
        y, result = self.out(op)
        shift = max(a.bits + b.bits - 30, 0)
        product = self.emit(
            int_ops.MulOp, [op.a, op.b], tensor(s32, channels(op.a)), f"{op.value_name}.product",
            a_zero=a.zero, b_zero=b.zero, acc_shift=shift,
        )  # fmt: skip
        real = a.real_scale * b.real_scale / y.real_scale * 2.0**shift
        return self.requant(op, product, real, result, y.zero)

    def add(self, op: llm.AddOp) -> SSAValue:
        a, b = self.quantization(op, op.a), self.quantization(op, op.b)
        y, result = self.out(op)
        unit = 2.0 ** (arithmetic.ADD_FRACTION_BITS - arithmetic.ADD_LEFT_SHIFT) / y.real_scale
        return self.emit(
            int_ops.AddOp, [op.a, op.b], result, op.value_name, a_zero=a.zero, b_zero=b.zero,
            zero_point=y.zero, **self.scalar(op, "a_", a.real_scale * unit),
            **self.scalar(op, "b_", b.real_scale * unit),
        )  # fmt: skip


def stored(real: Array, quantized: UniformType) -> Array:
    """Integers that store real values."""
    q = np.rint(real / quantized.real_scale) + quantized.zero
    result: Array = np.clip(q, quantized.low, quantized.high).astype(f"uint{quantized.bits}")
    return result
