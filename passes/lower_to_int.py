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
from mqc.analysis.recurrent_state import fixed_point, saturated, state_form
from mqc.arrays import Array
from mqc.costs import ModelSize, Work
from mqc.dialects import int_ops, llm
from mqc.dialects.expressions import Call
from mqc.dialects.int_attention import CAP_KNOTS, CAP_SEGMENT_BITS, CAP_STEP, KEY_BIAS_LIMIT, SINK_LIMIT
from mqc.dialects.quant import UniformType, uniform
from mqc.errors import PassError, UnsupportedOpError
from mqc.ir.module import main_function, mqc_ops, set_level
from mqc.ir.op import MqcOp, WeightAttr, attr, channels, s32, tensor
from mqc.ir.weight_store import WeightStore
from mqc.numerics import arithmetic, recurrence
from mqc.numerics.products import effective_weight
from mqc.numerics.routing import BIAS_LIMIT, SHARE_FRACTION_BITS
from mqc.numerics.weight_rounding import least_scale
from mqc.pass_base import Pass

#: Largest softcap of scores: knots of its table stay below 2^24.
_MOST_CAP = 300.0
#: Of a channel whose weights are all 0.
_LEAST_SCALE = 1e-12


class LowerToInt(Pass):
    """Replace every op by `int` ops on the stored integers; the real scales become multipliers.

    1. `linear` → `int.linear`, `int.requant` per channel with s_x·s_w / s_y
    2. `rms_norm`, `layer_norm` → `int.rms_norm`, `int.layer_norm`, `int.requant` with
       gain·sqrt(channels) / s_y (of 30 fraction bits); a bias that is left becomes one of those directions
    3. `rope` → `int.rope`, `int.requant`
    4. activations → `int.lut`
    5. `mul` → `int.mul`, `int.requant`; `add` → `int.add`; `embedding` → `int.embedding`
    6. `attention` → `int.attention`, prefix rows quantized
    7. `causal_conv` → `int.causal_conv` with s16 weights, `int.requant` per channel
    8. `linear_attention` → `int.linear_attention` with an s32 state, `int.requant`

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
            llm.ElementwiseOp: self.elementwise,
            llm.ScaleOp: self.scale,
            llm.JoinOp: self.join,
            llm.RouteOp: self.route,
            llm.GateOp: self.gate,
            llm.CausalConvOp: self.convolution,
            llm.LinearAttentionOp: self.linear_attention,
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
        bound = accumulator_bound(weight, bias, x.low - x.zero, x.high - x.zero, *op.column_blocks)
        shift = acc_shift(int(bound.max()))
        gates_zero = None if op.gates is None else self.quantization(op, op.gates).zero
        acc = self.emit(
            int_ops.LinearOp, list(op.operands), tensor(s32, n), f"{op.value_name}.acc",
            weight=op.weight, weight_bits=op.get("weight_bits"), group_scale=op.group_scale,
            bias=self.weights.add(f"{op.value_name}.bias", bias), x_zero=x.zero, acc_shift=shift,
            gates_zero=gates_zero, expert_axis=op.get("expert_axis"),
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
        gain, bias, added = self.constant(op.gain), None, {}
        factor = np.sqrt(size) * (gain.astype(np.float64) if gain is not None else 1.0)
        unit = factor * 2.0**-arithmetic.NORM_FRACTION_BITS
        if isinstance(op, llm.LayerNormOp):
            kind, epsilon = int_ops.LayerNormOp, epsilon * 4.0**arithmetic.MEAN_FRACTION_BITS
            bias = self.constant(op.bias)
        if bias is not None:
            constants = arithmetic.addend_of_directions(np.broadcast_to(factor, bias.shape), bias)
            unit = constants[2]
            for key, array in zip(("bias", "bias_shift"), constants, strict=False):
                added[key] = self.weights.add(f"{op.value_name}.{key}", array)
        direction = self.emit(
            kind, [op.x], tensor(s32, channels(op.x)), f"{op.value_name}.direction",
            x_zero=x.zero, epsilon=max(round(epsilon), 1), groups=groups, **added,
        )  # fmt: skip
        return self.requant(op, direction, unit / y.real_scale, result, y.zero)

    def rope(self, op: llm.RopeOp) -> SSAValue:
        x = self.quantization(op, op.x)
        y, result = self.out(op)
        one = 2.0**arithmetic.ROPE_FRACTION_BITS
        largest = max(float(np.abs(self.weights[ref]).max()) for ref in (op.cos, op.sin))
        if round(largest * one) > np.iinfo(np.int16).max:
            raise UnsupportedOpError(
                f"%{op.value_name}", op.name, f"with factors up to {largest:.3g}; 16 bits hold less than 2"
            )
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
        q, k, v = (self.quantization(op, value) for value in (op.q, op.k, op.v))
        y, result = self.out(op)
        score = q.real_scale * k.real_scale * op.get("scale") * np.log2(np.e)
        probability = 2.0**-arithmetic.PROBABILITY_FRACTION_BITS
        prefix = {
            name: self.weights.add(f"{op.value_name}.{name}", stored(self.weights[ref], quantized))
            for name, ref, quantized in (("prefix_k", op.prefix_k, k), ("prefix_v", op.prefix_v, v))
            if ref is not None
        }
        real_sinks, sinks = self.constant(op.sinks), None
        if real_sinks is not None:
            steps = np.rint(real_sinks / (q.real_scale * k.real_scale * op.get("scale")))
            sinks = self.weights.add(
                f"{op.value_name}.sinks", np.clip(steps, -SINK_LIMIT, SINK_LIMIT).astype(np.int32)
            )
        bias = self.key_bias(op, q.real_scale * k.real_scale * op.get("scale"))
        cap, table = op.get("softcap"), None
        steps = score * 2.0**arithmetic.SCORE_FRACTION_BITS
        if cap is not None:
            if cap > _MOST_CAP:
                raise UnsupportedOpError(f"%{op.value_name}", op.name, f"with a softcap beyond {_MOST_CAP:g}")
            table = self.weights.add("softcap.knots", _softcap_knots(cap))
            steps = q.real_scale * k.real_scale * op.get("scale") / (cap * CAP_STEP)
        return self.emit(
            int_ops.AttentionOp, [op.q, op.k, op.v], result, op.value_name,
            layer=op.get("layer"), heads=op.get("heads"), kv_heads=op.get("kv_heads"),
            window=op.get("window"), chunk=op.get("chunk"), q_zero=q.zero, k_zero=k.zero, v_zero=v.zero,
            zero_point=y.zero, sinks=sinks, key_bias=bias, softcap=cap, cap_table=table, **prefix,
            **self.scalar(op, "score_", steps),
            **self.scalar(op, "", v.real_scale * probability / y.real_scale),
        )  # fmt: skip

    def key_bias(self, op: llm.AttentionOp, step: float) -> WeightAttr | None:
        """In steps of scores, the least one of each head 0."""
        real = self.constant(op.key_bias)
        if real is None:
            return None
        real = real.astype(np.float64)
        steps = np.rint((real - real.min(1, keepdims=True)) / step)
        if steps.max() > KEY_BIAS_LIMIT:
            raise UnsupportedOpError(
                f"%{op.value_name}", op.name, "with biases of keys beyond 2^30 steps of its scores"
            )
        return self.weights.add(f"{op.value_name}.key_bias", steps.astype(np.int32))

    def convolution(self, op: llm.CausalConvOp) -> SSAValue:
        x = self.quantization(op, op.x)
        y, result = self.out(op)
        weight, bias = self.weights[op.weight].astype(np.float64), self.constant(op.bias)
        bias = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
        scale = np.maximum(np.abs(weight).max(1) / np.iinfo(np.int16).max, least_scale(bias, x.real_scale))
        scale = np.maximum(scale, _LEAST_SCALE)
        stored_weight = np.rint(weight / scale[:, None]).astype(np.int16)
        stored_bias = np.rint(bias / (scale * x.real_scale)).astype(np.int32)
        bound = accumulator_bound(stored_weight, stored_bias, x.low - x.zero, x.high - x.zero)
        shift, name = acc_shift(int(bound.max())), op.value_name
        prefix = None
        if op.prefix_x is not None:
            prefix = self.weights.add(f"{name}.prefix_x", stored(self.weights[op.prefix_x], x))
        acc = self.emit(
            int_ops.CausalConvOp, [op.x], tensor(s32, len(weight)), f"{name}.acc", layer=op.get("layer"),
            weight=self.weights.add(op.weight.key.data, stored_weight), x_zero=x.zero, acc_shift=shift,
            bias=self.weights.add(f"{name}.bias", stored_bias), prefix_x=prefix,
        )  # fmt: skip
        return self.requant(op, acc, scale * x.real_scale * 2.0**shift / y.real_scale, result, y.zero)

    def linear_attention(self, op: llm.LinearAttentionOp) -> SSAValue:
        q, k, v, step = (self.quantization(op, value) for value in (op.q, op.k, op.v, op.step))
        y, result = self.out(op)
        beta = None if op.beta is None else self.quantization(op, op.beta)
        form = state_form(q, k, v, y, beta, delta=bool(op.get("delta")))
        octaves = self.weights[op.rate].astype(np.float64) * (step.real_scale * np.log2(np.e))
        multiplier, shift = self.multiplier(op, octaves * 2.0**recurrence.DECAY_FRACTION_BITS)
        name = op.value_name
        more: dict[str, int | WeightAttr] = {}
        if beta is not None:
            unit = 2.0**recurrence.BETA_FRACTION_BITS
            more = {"beta_zero": beta.zero, **self.scalar(op, "beta_", beta.real_scale * unit)}
        if op.get("delta"):
            more |= {"sum_shift": form.sum_shift, **self.scalar(op, "memory_", form.memory)}
        if op.skip is not None:
            skip, shift_of_skip = fixed_point(self.weights[op.skip] * (v.real_scale / form.unit))
            more |= {"skip": self.weights.add(f"{name}.skip", skip), "skip_shift": shift_of_skip}
        if op.initial is not None:
            state = saturated(self.weights[op.initial].astype(np.float64) / form.scale)
            more["initial"] = self.weights.add(f"{name}.initial", state)
        acc = self.emit(
            int_ops.LinearAttentionOp, list(op.operands), tensor(s32, channels(op.result)), f"{name}.acc",
            **{key: op.get(key) for key in ("layer", "heads", "key_heads")},
            q_zero=q.zero, k_zero=k.zero, v_zero=v.zero, step_zero=step.zero,
            decay_multiplier=self.weights.add(f"{name}.decay_multiplier", multiplier),
            decay_shift=self.weights.add(f"{name}.decay_shift", shift), value_shift=form.value_shift,
            update_shift=form.update_shift, acc_shift=form.acc_shift, **more,
        )  # fmt: skip
        return self.requant(op, acc, form.unit / y.real_scale, result, y.zero)

    def activation(self, op: llm.ActivationOp) -> SSAValue:
        return self.lut(op, op.function, op.name.removeprefix("llm."))

    def scale(self, op: llm.ScaleOp) -> SSAValue:
        factor = op.get("factor")
        return self.lut(op, lambda x: factor * x, str(Call("mul", ("x", factor))))

    def elementwise(self, op: llm.ElementwiseOp) -> SSAValue:
        return self.lut(op, op.function, op.get("expression"))

    def lut(self, op: llm.ActivationOp | llm.ScaleOp, function: Any, name: str) -> SSAValue:
        x = self.quantization(op, op.x)
        y, result = self.out(op)
        if x.bits == 8:
            table, segment_bits = table_of_256(function, x, y), None
        else:
            table, segment_bits = interpolation_table(function, x, y)
        ref = self.weights.add(f"{op.value_name}.table", table)
        return self.emit(
            int_ops.LutOp, [op.x], result, op.value_name, table=ref, segment_bits=segment_bits, function=name
        )

    def mul(self, op: llm.MulOp) -> SSAValue:
        return self.product(op, int_ops.MulOp, ("a_zero", "b_zero"))

    def gate(self, op: llm.GateOp) -> SSAValue:
        return self.product(op, int_ops.GateOp, ("x_zero", "gates_zero"))

    def product(self, op: llm.MulOp | llm.GateOp, kind: type[MqcOp], zeros: tuple[str, str]) -> SSAValue:
        """Of two values; zeros: the names of their zero points."""
        a, b = (self.quantization(op, value) for value in op.operands)
        y, result = self.out(op)
        shift = max(a.bits + b.bits - 30, 0)
        product = self.emit(
            kind, list(op.operands), tensor(s32, channels(op.result)), f"{op.value_name}.product",
            acc_shift=shift, **dict(zip(zeros, (a.zero, b.zero), strict=True)),
        )  # fmt: skip
        real = a.real_scale * b.real_scale / y.real_scale * 2.0**shift
        return self.requant(op, product, real, result, y.zero)

    def add(self, op: llm.AddOp) -> SSAValue:
        one = 2.0 ** (arithmetic.ADD_FRACTION_BITS - arithmetic.ADD_LEFT_SHIFT)
        return self.rescaled(op, int_ops.AddOp, one)

    def join(self, op: llm.JoinOp) -> SSAValue:
        index = self.weights.add(f"{op.value_name}.index", self.weights[op.index].astype(np.int32))
        return self.rescaled(op, int_ops.JoinOp, 1.0, index=index)

    def rescaled(self, op: llm.AddOp | llm.JoinOp, kind: type[MqcOp], one: float, **more: Any) -> SSAValue:
        """Of two values, each rescaled to the result's scale, of which `one` is a step."""
        a, b = self.quantization(op, op.a), self.quantization(op, op.b)
        y, result = self.out(op)
        return self.emit(
            kind, [op.a, op.b], result, op.value_name, a_zero=a.zero, b_zero=b.zero, zero_point=y.zero,
            **self.scalar(op, "a_", a.real_scale * (one / y.real_scale)),
            **self.scalar(op, "b_", b.real_scale * (one / y.real_scale)), **more,
        )  # fmt: skip

    def route(self, op: llm.RouteOp) -> SSAValue:
        x = self.quantization(op, op.x)
        y, result = self.out(op)
        probability = 2.0**-arithmetic.PROBABILITY_FRACTION_BITS
        unit = probability if op.get("shares") else x.real_scale
        real_bias, bias = self.constant(op.bias), None
        if real_bias is not None:
            steps = np.rint(real_bias.astype(np.float64) / unit)
            if np.abs(steps).max() > BIAS_LIMIT:
                raise PassError(
                    f"lower-to-int: %{op.value_name}: a bias is more than 2^30 steps of its scores"
                )
            bias = self.weights.add(f"{op.value_name}.bias", steps.astype(np.int32))
        names = ("top_k", "shares", "normalization", "groups", "top_groups", "group_scores")
        score = x.real_scale * np.log2(np.e) * 2.0**arithmetic.SCORE_FRACTION_BITS
        weight = self.emit(
            int_ops.RouteOp, [op.x], tensor(s32, channels(op.x)), f"{op.value_name}.weight", x_zero=x.zero,
            bias=bias, **{name: op.get(name) for name in names}, **self.scalar(op, "score_", score),
        )  # fmt: skip
        units = {"none": unit, "softmax": probability, "sum": 2.0**-SHARE_FRACTION_BITS}
        gain = self.constant(op.gain)
        real = (
            units[op.get("normalization")] / y.real_scale * (1.0 if gain is None else gain.astype(np.float64))
        )
        return self.requant(op, weight, real, result, y.zero)


def _softcap_knots(cap: float) -> Array:
    """`cap · tanh` at multiples of `cap · CAP_STEP`, in 2^-11 octaves, with 4 fraction bits."""
    places = np.arange(CAP_KNOTS) * (1 << CAP_SEGMENT_BITS) - (1 << 15)
    octaves = cap * np.tanh(places * CAP_STEP) * np.log2(np.e)
    bits = arithmetic.SCORE_FRACTION_BITS + arithmetic.LUT_FRACTION_BITS
    knots: Array = np.rint(octaves * 2.0**bits).astype(np.int32)
    return knots


def stored(real: Array, quantized: UniformType) -> Array:
    """Integers that store real values."""
    q = np.rint(real / quantized.real_scale) + quantized.zero
    result: Array = np.clip(q, quantized.low, quantized.high).astype(f"uint{quantized.bits}")
    return result
