"""Attention in the `int` dialect, and its cache."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from xdsl.dialects.builtin import FloatAttr, IntegerAttr, TensorType
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def

from mqc.arrays import Array
from mqc.dialects.constraints import Limit, Values, scales, zero_of
from mqc.dialects.int_core import ACTIVATIONS, BYTES, IntOp, constant
from mqc.ir.op import EvaluationContext, State, WeightAttr, channels, grown, rows_by_position, s32, u8
from mqc.numerics import arithmetic as a

#: Largest magnitude of a sink, in steps of scores.
SINK_LIMIT = 2**30
#: Largest bias of a key, in steps of scores. With scores of 8192 products, differences stay in s32.
KEY_BIAS_LIMIT = 2**30
#: Scores of attention with a softcap are u16 around 2^15; 2^5 of them are between two knots of its table.
CAP_SEGMENT_BITS = 5
CAP_KNOTS = (1 << (16 - CAP_SEGMENT_BITS)) + 1
#: A step of such a score, as a share of the cap: the tanh of 4 is 0.9993.
CAP_STEP = 2.0**-13
#: Largest magnitude of a knot.
_CAP_LIMIT = 2**24


@irdl_op_definition
class AttentionOp(IntOp):
    """Causal attention with a u8 KV cache, whose first rows are `prefix_k` and `prefix_v`.

    With a `window` of w a token sees itself and the w − 1 before it; with a `chunk` of c those of its own c
    positions, of which the first is a multiple of c.

    For each query: s = Σ (q − q_zero)(k − k_zero) over visible keys,
    u = min(requantize(max s − s, score_multiplier, score_shift), 65535), p = softmax(u). Each head's `sinks`
    is one more score, which has no value. `key_bias` is added to s, by the position of the key.

    With a `softcap`, t = table(clamp(requantize(s, score_multiplier, score_shift) + 2^15)) comes first, where
    `cap_table` are s32 knots with 4 fraction bits that are joined by lines, as those of `int.lut`; and
    u = min(max t − t, 65535). `softcap` is the real c of c · tanh(s / c), for targets that have that as ops.
    `y = clamp(requantize(Σ p·(v − v_zero), multiplier, shift) + zero_point)`
    """

    name = "int.attention"
    q = operand_def(TensorType)
    k = operand_def(TensorType)
    v = operand_def(TensorType)
    layer = prop_def(IntegerAttr)
    heads = prop_def(IntegerAttr)
    kv_heads = prop_def(IntegerAttr)
    window = opt_prop_def(IntegerAttr)
    chunk = opt_prop_def(IntegerAttr)
    prefix_k = opt_prop_def(WeightAttr)
    prefix_v = opt_prop_def(WeightAttr)
    sinks = opt_prop_def(WeightAttr)
    key_bias = opt_prop_def(WeightAttr)
    softcap = opt_prop_def(FloatAttr)
    cap_table = opt_prop_def(WeightAttr)
    q_zero = prop_def(IntegerAttr)
    k_zero = prop_def(IntegerAttr)
    v_zero = prop_def(IntegerAttr)
    score_multiplier = prop_def(IntegerAttr)
    score_shift = prop_def(IntegerAttr)
    multiplier = prop_def(IntegerAttr)
    shift = prop_def(IntegerAttr)
    zero_point = prop_def(IntegerAttr)
    result = result_def(TensorType)

    PORTS: ClassVar = {"q": BYTES, "k": BYTES, "v": BYTES, "result": ACTIVATIONS}
    LIMITS: ClassVar = (
        zero_of("q_zero", "q"),
        zero_of("k_zero", "k"),
        zero_of("v_zero", "v"),
        zero_of("zero_point"),
        *scales("score_"),
        *scales(),
        Limit("score_multiplier not negative", lambda op: op.get("score_multiplier") >= 0),
        Limit(
            "kv_heads divides heads",
            lambda op: (
                0 < op.get("kv_heads") <= op.get("heads") and op.get("heads") % op.get("kv_heads") == 0
            ),
        ),
        Limit("head_dim and value_dim in [1, 8192]", lambda op: 0 < max(op.head_dim, op.value_dim) <= 8192),
        Limit(
            "q of heads and k of kv_heads times head_dim, the result and v likewise of value_dim",
            lambda op: (
                channels(op.q) == op.head_dim * op.get("heads")
                and channels(op.k) == op.head_dim * op.get("kv_heads")
                and channels(op.result) == op.value_dim * op.get("heads")
                and channels(op.v) == op.value_dim * op.get("kv_heads")
                and min(op.head_dim, op.value_dim) > 0
            ),
        ),
        Limit("window positive", lambda op: op.window is None or 0 < op.get("window") < 2**31),
        Limit("chunk positive", lambda op: op.chunk is None or 0 < op.get("chunk") < 2**31),
        Limit("a prefix of keys and values", lambda op: (op.prefix_k is None) == (op.prefix_v is None)),
        constant("prefix_k", u8, "[prefix tokens, channels]", lambda op: (op.prefix_rows, channels(op.k))),
        constant("prefix_v", u8, "[prefix tokens, channels]", lambda op: (op.prefix_rows, channels(op.v))),
        constant("sinks", s32, "[heads]", lambda op: (op.get("heads"),)),
        constant("cap_table", s32, "[knots]", lambda op: (CAP_KNOTS,)),
        Limit("softcap and cap_table together", lambda op: (op.softcap is None) == (op.cap_table is None)),
        Limit("softcap above 0", lambda op: op.softcap is None or 0 < op.get("softcap") < 2**31),
        constant("key_bias", s32, "[heads, positions]", lambda op: (op.get("heads"), op.position_limit())),
        Limit(
            "sinks, a softcap or a key_bias",
            lambda op: sum(op.properties.get(n) is not None for n in ("sinks", "softcap", "key_bias")) <= 1,
        ),
    )
    VALUES: ClassVar = (
        Values("sinks", "in [-2^30, 2^30]", lambda op, s: np.abs(s.astype(np.int64)) <= SINK_LIMIT),
        Values("key_bias", "in [0, 2^30]", lambda op, b: (b >= 0) & (b <= KEY_BIAS_LIMIT)),
        Values("cap_table", "in [-2^24, 2^24]", lambda op, t: np.abs(t.astype(np.int64)) <= _CAP_LIMIT),
    )

    @property
    def head_dim(self) -> int:
        return channels(self.q) // int(self.get("heads"))

    @property
    def value_dim(self) -> int:
        return channels(self.result) // int(self.get("heads"))

    @property
    def prefix_rows(self) -> int:
        return 0 if self.prefix_k is None else int((*self.prefix_k.shape, 0)[0])

    def position_limit(self) -> int | None:
        return None if self.key_bias is None else int((*self.key_bias.shape, 0, 0)[1])

    def states(self) -> tuple[State, ...]:
        layer, kv_heads = self.get("layer"), self.get("kv_heads")
        return (
            rows_by_position(f"key.{layer}", (kv_heads, self.head_dim), u8, self.prefix_k),
            rows_by_position(f"value.{layer}", (kv_heads, self.value_dim), u8, self.prefix_v),
        )

    def evaluate(self, ctx: EvaluationContext, q: Array, k: Array, v: Array) -> Array:
        heads, kv_heads = self.get("heads"), self.get("kv_heads")
        keys_state, values_state = self.states()
        k = grown(ctx, keys_state, k, ctx.array, np.concatenate)
        v = grown(ctx, values_state, v, ctx.array, np.concatenate)
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
        if self.chunk is not None:
            chunks = np.arange(seen) // self.get("chunk")
            visible &= chunks == chunks[seen - new :, None]
        if self.key_bias is not None:
            scores = scores + ctx.array(self.key_bias)[:, :seen].reshape(kv_heads, -1, 1, seen)
        if self.sinks is not None:
            sinks = ctx.array(self.sinks).reshape(kv_heads, -1, 1, 1)
            column = np.broadcast_to(sinks, (*scores.shape[:-1], 1))
            scores = np.concatenate([scores, column], -1)
            visible = np.concatenate([visible, np.ones((new, 1), np.bool_)], -1)
        scale = self.get("score_multiplier"), self.get("score_shift")
        if self.cap_table is not None:
            steps = np.clip(a.requantize(scores, *scale) + (1 << 15), 0, 65535)
            knots = ctx.array(self.cap_table).astype(np.int64)
            scores = a.interpolate(steps, knots, CAP_SEGMENT_BITS)
        largest = np.where(visible, scores, a.INT32_MIN).max(-1, keepdims=True)
        below = np.where(visible, largest - scores, 0)
        differences = below if self.cap_table is not None else a.requantize(below, *scale)
        p = a.softmax(np.minimum(differences, 65535), visible)[..., :seen]
        acc = (p.astype(np.float64) @ values.transpose(1, 2, 0, 3)).astype(np.int64)
        scaled = a.requantize(acc, self.get("multiplier"), self.get("shift")) + self.get("zero_point")
        return self.narrow(scaled.transpose(2, 0, 1, 3).reshape(new, -1))
