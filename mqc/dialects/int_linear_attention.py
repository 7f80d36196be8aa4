"""Linear attention in the `int` dialect, and its state."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from xdsl.dialects.builtin import IntegerAttr, TensorType
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, opt_prop_def, prop_def, result_def

from mqc.arrays import Array
from mqc.dialects.constraints import Limit, Values, limits, scales, within, zero_of
from mqc.dialects.int_core import ACCUMULATOR, ACTIVATIONS, constant
from mqc.dialects.int_requant import AccumulatorOp
from mqc.ir.op import EvaluationContext, State, WeightAttr, channels, s8, s32
from mqc.numerics import arithmetic as a
from mqc.numerics import recurrence

#: Properties that an op has all of, or none: with `beta`, by the delta rule, and with `skip`.
_OF_BETA = ("beta", "beta_zero", "beta_multiplier", "beta_shift")
_OF_DELTA = ("memory_multiplier", "memory_shift", "sum_shift")
_OF_SKIP = ("skip", "skip_shift")


def _together(names: tuple[str, ...]) -> Limit:
    return Limit(
        f"{', '.join(names)} together", lambda op: len({getattr(op, name) is None for name in names}) == 1
    )


def _if(name: str, *found: Limit) -> tuple[Limit, ...]:
    """Limits of an op that has something."""

    def asked(limit: Limit) -> Limit:
        return Limit(limit.text, lambda op: getattr(op, name) is None or limit.holds(op))

    return tuple(map(asked, found))


@irdl_op_definition
class LinearAttentionOp(AccumulatorOp):
    """Linear attention: each head has a state S, s32 `[key_dim, value_dim]`, whose scale is fixed. Token by
    token, with d_x = x − x_zero, and round for shift_right_round, ties towards +infinity:

    1. u = clamp(requantize(d_step, decay_multiplier, decay_shift), 0, 2^29), in octaves of 24 fraction bits;
       e = 2^-u with 30 fraction bits (`mqc.numerics.recurrence.decay_factors`); S = round(S·e, 30). Key
       channels with multipliers of their own may share the step of their head;
    2. w = d_v << value_shift; by the delta rule, which has a `memory_multiplier`, w = saturate32(w − m) with
       m = requantize(saturate32(round(Σ d_k·S, sum_shift)), memory_multiplier, memory_shift);
    3. with `beta`, w = saturate32(round(w·b, 24)), b = requantize(d_beta, beta_multiplier, beta_shift), of 24
       fraction bits;
    4. S = saturate32(S + round(d_k·w, update_shift));
    5. y = saturate32(round(Σ d_q·S, acc_shift) + round(d_v·skip, skip_shift)), `skip` s32 of each head.

    Sums go over key_dim, and fit in 64 bits. Tokens one by one or together give the same bits. `initial` is
    the state behind the prefix.

    `y = saturate32(shift_right_round(Σ d_q·S, acc_shift) + shift_right_round(d_v·skip, skip_shift))`
    """

    name = "int.linear_attention"
    q = operand_def(TensorType)
    k = operand_def(TensorType)
    v = operand_def(TensorType)
    step = operand_def(TensorType)
    beta = opt_operand_def(TensorType)
    layer = prop_def(IntegerAttr)
    heads = prop_def(IntegerAttr)
    key_heads = prop_def(IntegerAttr)
    initial = opt_prop_def(WeightAttr)
    q_zero = prop_def(IntegerAttr)
    k_zero = prop_def(IntegerAttr)
    v_zero = prop_def(IntegerAttr)
    step_zero = prop_def(IntegerAttr)
    decay_multiplier = prop_def(WeightAttr)
    decay_shift = prop_def(WeightAttr)
    beta_zero = opt_prop_def(IntegerAttr)
    beta_multiplier = opt_prop_def(IntegerAttr)
    beta_shift = opt_prop_def(IntegerAttr)
    sum_shift = opt_prop_def(IntegerAttr)
    memory_multiplier = opt_prop_def(IntegerAttr)
    memory_shift = opt_prop_def(IntegerAttr)
    value_shift = prop_def(IntegerAttr)
    update_shift = prop_def(IntegerAttr)
    acc_shift = prop_def(IntegerAttr)
    skip = opt_prop_def(WeightAttr)
    skip_shift = opt_prop_def(IntegerAttr)
    result = result_def(TensorType)

    PORTS: ClassVar = {
        "q": ACTIVATIONS, "k": ACTIVATIONS, "v": ACTIVATIONS, "step": ACTIVATIONS, "beta": ACTIVATIONS,
        "result": ACCUMULATOR,
    }  # fmt: skip
    LIMITS: ClassVar = (
        zero_of("q_zero", "q"),
        zero_of("k_zero", "k"),
        zero_of("v_zero", "v"),
        zero_of("step_zero", "step"),
        within("layer", 0, 2**31 - 1),
        Limit(
            "key_heads divides heads",
            lambda op: (
                0 < op.get("key_heads") <= op.get("heads") and op.get("heads") % op.get("key_heads") == 0
            ),
        ),
        Limit("key_dim and value_dim in [1, 8192]", lambda op: 0 < max(op.key_dim, op.value_dim) <= 8192),
        Limit(
            "q and k of key_heads times key_dim, v and the result of heads times value_dim",
            lambda op: (
                channels(op.q) == channels(op.k) == op.get("key_heads") * op.key_dim
                and channels(op.v) == channels(op.result) == op.get("heads") * op.value_dim
                and min(op.key_dim, op.value_dim) > 0
            ),
        ),
        Limit(
            "step of heads, or of heads times key_dim",
            lambda op: channels(op.step) in (op.get("heads"), op.get("heads") * op.key_dim),
        ),
        Limit(
            "decay_multiplier of the channels of step, or of heads times key_dim",
            lambda op: op.decay_multiplier.shape in ((channels(op.step),), (op.get("heads") * op.key_dim,)),
        ),
        constant("decay_multiplier", s32, "[decays]", lambda op: op.decay_multiplier.shape),
        constant("decay_shift", s8, "[decays]", lambda op: op.decay_multiplier.shape),
        constant(
            "initial", s32, "[heads, key_dim, value_dim]",
            lambda op: (op.get("heads"), op.key_dim, op.value_dim),
        ),
        within("value_shift", 0, 15),
        within("update_shift", 0, 47),
        within("acc_shift", 0, 31),
        *map(_together, (_OF_BETA, _OF_DELTA, _OF_SKIP)),
        Limit("beta of heads", lambda op: op.beta is None or channels(op.beta) == op.get("heads")),
        Limit(
            "beta_zero in the range of beta",
            lambda op: op.beta is None or 0 <= op.get("beta_zero") <= limits(op.beta)[1],
        ),
        *_if("beta", *scales("beta_")),
        *_if("memory_multiplier", *scales("memory_"), within("sum_shift", 0, 62)),
        *_if("skip", within("skip_shift", 0, 31)),
        constant("skip", s32, "[heads]", lambda op: (op.get("heads"),)),
    )  # fmt: skip
    VALUES: ClassVar = (
        Values(
            "decay_multiplier",
            "0 or in [2^30, 2^31)",
            lambda op, m: (m == 0) | ((m.astype(np.int64) >= 2**30) & (m.astype(np.int64) < 2**31)),
        ),
        Values("decay_shift", "in [-31, 31]", lambda op, s: (s >= -31) & (s <= 31)),
    )

    @property
    def key_dim(self) -> int:
        return channels(self.k) // int(self.get("key_heads"))

    @property
    def value_dim(self) -> int:
        return channels(self.v) // int(self.get("heads"))

    def states(self) -> tuple[State, ...]:
        shape = self.get("heads"), self.key_dim, self.value_dim
        name = f"recurrent.{self.get('layer')}"
        return (State(name, shape, s32, grows=False, initial=self.initial, cleared=True, padding=False),)

    def macs(self) -> int:
        reads = 2 if self.memory_multiplier is None else 3
        return reads * channels(self.v) * self.key_dim

    def evaluate(
        self, ctx: EvaluationContext, q: Array, k: Array, v: Array, step: Array, beta: Array | None = None
    ) -> Array:
        heads, key_heads = self.get("heads"), self.get("key_heads")
        (kept,) = self.states()
        state = ctx.state.get(kept.name)
        if state is None:
            state = np.zeros(kept.shape, np.int32) if self.initial is None else ctx.array(self.initial)
        queries, keys = (
            recurrence.per_head(x.astype(np.int64) - self.get(f"{name}_zero"), key_heads, heads // key_heads)
            for name, x in (("q", q), ("k", k))
        )
        values = (v.astype(np.int64) - self.get("v_zero")).reshape(len(v), heads, -1)
        written = values << self.get("value_shift")
        multiplier, shift = (
            ctx.array(ref).reshape(heads, -1) for ref in (self.decay_multiplier, self.decay_shift)
        )
        steps = step.astype(np.int64).reshape(len(v), heads, -1) - self.get("step_zero")
        octaves = a.requantize(steps, multiplier, shift)
        factors = recurrence.decay_factors(np.clip(octaves, 0, recurrence.LONGEST_DECAY))[..., None]
        betas = None if beta is None else self._betas(beta)
        s, result = state.astype(np.int64), np.empty((len(v), heads, self.value_dim), np.int64)
        for t in range(len(v)):
            s = a.shift_right_round(s * factors[t], recurrence.FACTOR_FRACTION_BITS)
            w = written[t]
            if self.memory_multiplier is not None:
                w = a.saturate32(w - self._memory(np.einsum("hk,hkv->hv", keys[t], s)))
            if betas is not None:
                w = a.saturate32(a.shift_right_round(w * betas[t], recurrence.BETA_FRACTION_BITS))
            update = a.shift_right_round(keys[t][:, :, None] * w[:, None], self.get("update_shift"))
            s = a.saturate32(s + update)
            result[t] = np.einsum("hk,hkv->hv", queries[t], s)
        ctx.state[kept.name] = s.astype(np.int32)
        y: Array = a.shift_right_round(result, self.get("acc_shift"))
        if self.skip is not None:
            skipping = values * ctx.array(self.skip).astype(np.int64)[:, None]
            y = y + a.shift_right_round(skipping, self.get("skip_shift"))
        y = a.saturate32(y)
        return y.reshape(len(v), -1).astype(np.int32)

    def _betas(self, beta: Array) -> Array:
        """`[tokens, heads, 1]`, with 24 fraction bits."""
        d = beta.astype(np.int64) - self.get("beta_zero")
        return a.requantize(d, self.get("beta_multiplier"), self.get("beta_shift"))[..., None]

    def _memory(self, sums: Array) -> Array:
        """What the state holds for the key, in the unit of values."""
        sums = a.saturate32(a.shift_right_round(sums, self.get("sum_shift")))
        return a.requantize(sums, self.get("memory_multiplier"), self.get("memory_shift"))
