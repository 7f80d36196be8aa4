"""The KV cache and attention, of the `htp` dialect.

Keys `[kv_heads, (capacity / 32) · (128 + 32·K4)]` bytes, K4 = head_dim rounded up to a
multiple of 4: for 32 positions an s32 `-q_zero · Σ k'` each, then s8 `[K4 / 4][32][4]`, k' = k - 128;
values `[kv_heads, ceil(head_dim / 32) · 32 · capacity]` bytes: for 32 channels s8
`[capacity / 4][32][4]`, v' = v - 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from xdsl.dialects.builtin import IntegerAttr, TensorType
from xdsl.ir import SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def

from mqc.arrays import Array
from mqc.dialects import int_ops
from mqc.dialects.constraints import Limit, scales, within, zero_of
from mqc.dialects.htp_core import ACTIVATIONS, DDR, HtpOp, Tile, same_shape, shape
from mqc.ir.op import EvaluationContext, channels, s32, u8, u16
from mqc.numerics import arithmetic as a
from mqc.numerics.htp_tiles import LANES, VECTOR_BYTES


def key_bytes(capacity: int, head_dim: int) -> int:
    """Bytes of one head's keys in the cache."""
    return capacity // LANES * (VECTOR_BYTES + LANES * (-(-head_dim // 4) * 4))


def value_bytes(capacity: int, head_dim: int) -> int:
    """Bytes of one head's values in the cache."""
    return -(-head_dim // LANES) * LANES * capacity


class CacheWriteOp(HtpOp):
    """What writing keys and values shares: u8 rows of new tokens go into a layer's cache."""

    QNN: ClassVar = "ScatterNd"
    x = operand_def(TensorType)
    cache_in = operand_def(TensorType)
    head_dim = prop_def(IntegerAttr)
    capacity = prop_def(IntegerAttr)
    result = result_def(TensorType)
    PORTS: ClassVar = {
        "x": Tile((u8,)), "cache_in": Tile((u8,), 2, DDR), "result": Tile((u8,), 2, DDR),
    }  # fmt: skip
    SHAPE: ClassVar[Sequence[Limit]] = (
        Limit("capacity a multiple of 32", lambda op: op.get("capacity") % LANES == 0),
        within("head_dim", 1, 8192),
        same_shape("cache_in"),
        Limit(
            "x has head_dim channels for each head of the cache",
            lambda op: channels(op.x) == shape(op.result)[0] * op.get("head_dim"),
        ),
    )

    def tied(self) -> SSAValue:
        return self.cache_in

    def evaluate(self, ctx: EvaluationContext, x: Array, cache: Array) -> Array:
        rows = (x ^ 128).view(np.int8).reshape(len(x), -1, self.get("head_dim"))
        self.write(cache, rows, np.arange(ctx.position, ctx.position + len(x)))
        return cache

    def write(self, cache: Array, rows: Array, positions: Array) -> None:
        raise NotImplementedError


@irdl_op_definition
class CacheWriteKeysOp(CacheWriteOp):
    """Write keys of new tokens, and `-q_zero · Σ (k - 128)` of each, from the run's position on.

    `y = cache with key[position + t] = x[t]`
    """

    name = "htp.cache_write_keys"
    q_zero = prop_def(IntegerAttr)
    LIMITS: ClassVar = (
        *CacheWriteOp.SHAPE,
        within("q_zero", 0, 255),
        Limit(
            "the cache has room for capacity keys of each head",
            lambda op: shape(op.result)[1] == key_bytes(op.get("capacity"), op.get("head_dim")),
        ),
    )

    def write(self, cache: Array, rows: Array, positions: Array) -> None:
        blocks = cache.reshape(len(cache), self.get("capacity") // LANES, -1)
        sums = (-self.get("q_zero") * rows.sum(-1, dtype=np.int64)).astype(np.int32)
        padded = np.zeros((*rows.shape[:2], -(-rows.shape[2] // 4) * 4), np.int8)
        padded[..., : rows.shape[2]] = rows
        for row, total, p in zip(padded, sums, positions, strict=True):
            block, lane = blocks[:, p // LANES], p % LANES
            block[:, 4 * lane : 4 * lane + 4] = total[:, None].view(np.uint8)
            quads = block[:, VECTOR_BYTES:].reshape(len(cache), -1, LANES, 4)
            quads[:, :, lane] = row.view(np.uint8).reshape(len(cache), -1, 4)


@irdl_op_definition
class CacheWriteValuesOp(CacheWriteOp):
    """Write values of new tokens, from the run's position on.

    `y = cache with value[position + t] = x[t]`
    """

    name = "htp.cache_write_values"
    LIMITS: ClassVar = (
        *CacheWriteOp.SHAPE,
        Limit(
            "the cache has room for capacity values of each head",
            lambda op: shape(op.result)[1] == value_bytes(op.get("capacity"), op.get("head_dim")),
        ),
    )

    def write(self, cache: Array, rows: Array, positions: Array) -> None:
        dim = rows.shape[2]
        padded = np.zeros((*rows.shape[:2], -(-dim // LANES) * LANES), np.int8)
        padded[..., :dim] = rows
        blocks = cache.reshape(len(cache), -1, self.get("capacity") // 4, LANES, 4)
        for row, p in zip(padded, positions, strict=True):
            blocks[:, :, p // 4, :, p % 4] = row.view(np.uint8).reshape(len(cache), -1, LANES)


def unpack_keys(keys: Array, capacity: int, head_dim: int) -> tuple[Array, Array]:
    """s8 keys `[capacity, head_dim]` and s32 `-q_zero · Σ k'` `[capacity]` of one head's bytes."""
    blocks = keys.reshape(capacity // LANES, -1)
    sums = np.ascontiguousarray(blocks[:, :VECTOR_BYTES]).view(np.int32).reshape(-1)
    quads = blocks[:, VECTOR_BYTES:].reshape(len(blocks), -1, LANES, 4).transpose(0, 2, 1, 3)
    return quads.reshape(capacity, -1)[:, :head_dim].view(np.int8), sums


def unpack_values(values: Array, capacity: int, head_dim: int) -> Array:
    """s8 values `[capacity, head_dim]` of one head's bytes."""
    blocks = values.reshape(-1, capacity // 4, LANES, 4).transpose(1, 3, 0, 2)
    return blocks.reshape(capacity, -1)[:, :head_dim].view(np.int8)


class CausalOp(HtpOp):
    """What the steps of attention share. Row `t * heads + i` belongs to token t and the i-th of `heads`
    query heads that share a key head; it sees positions up to its own, `window` of them at most."""

    heads = prop_def(IntegerAttr)
    capacity = prop_def(IntegerAttr)
    window = opt_prop_def(IntegerAttr)
    result = result_def(TensorType)
    SHAPE: ClassVar[Sequence[Limit]] = (
        Limit("capacity a multiple of 32", lambda op: op.get("capacity") % LANES == 0),
        Limit("heads 1 or more", lambda op: op.get("heads") >= 1),
        Limit("window positive", lambda op: op.window is None or 0 < op.get("window") < 2**31),
    )

    def tokens_seen(self) -> int:
        """Tokens that its rows belong to."""
        return shape(self.results[0])[0] // int(self.get("heads"))

    def visible(self, ctx: EvaluationContext, rows: int) -> Array:
        """Whether a row sees a position, `[rows, positions up to the last row's]`."""
        tokens = rows // self.get("heads")
        last = min(ctx.position + tokens, self.get("capacity"))
        position = ctx.position + np.repeat(np.arange(tokens), self.get("heads"))
        age = position[:, None] - np.arange(last)
        result: Array = (age >= 0) & (age < (self.get("window") or 2**31))
        return result


@irdl_op_definition
class MatMulKeysOp(CausalOp):
    """Scores of query heads `[head, head + heads)`: exact differences between them are those of
    `Σ (q − q_zero)(k − k_zero)`, because what is left out is the same for a whole row.

    `y = q·k' − q_zero·Σ k', k' = k − 128`
    """

    name = "htp.mat_mul_keys"
    QNN: ClassVar = "MatMul"
    q = operand_def(TensorType)
    keys = operand_def(TensorType)
    head = prop_def(IntegerAttr)
    head_dim = prop_def(IntegerAttr)
    PORTS: ClassVar = {"q": Tile((u8,)), "keys": Tile((u8,)), "result": Tile((s32,))}
    LIMITS: ClassVar = (
        *CausalOp.SHAPE,
        within("head_dim", 1, 8192),
        Limit(
            "keys are those of one head",
            lambda op: shape(op.keys) == (1, key_bytes(op.get("capacity"), op.get("head_dim"))),
        ),
        Limit(
            "q holds the heads",
            lambda op: (
                op.get("head") >= 0
                and (op.get("head") + op.get("heads")) * op.get("head_dim") <= channels(op.q)
            ),
        ),
        Limit(
            "a row for each token and head, as wide as capacity",
            lambda op: shape(op.result) == (shape(op.q)[0] * op.get("heads"), op.get("capacity")),
        ),
    )

    def evaluate(self, ctx: EvaluationContext, q: Array, keys: Array) -> Array:
        heads, dim, capacity = self.get("heads"), self.get("head_dim"), self.get("capacity")
        first = self.get("head") * dim
        rows = q[:, first : first + heads * dim].reshape(-1, dim).astype(np.float64)
        last = min(ctx.position + len(q), capacity)
        matrix, sums = unpack_keys(keys, capacity, dim)
        scores = np.zeros(shape(self.result), np.int32)
        scores[:, :last] = (rows @ matrix[:last].astype(np.float64).T).astype(np.int64) + sums[:last]
        return scores

    def macs(self) -> int:
        """Of all rows and positions."""
        return int(np.prod(shape(self.result)) * self.get("head_dim"))


@irdl_op_definition
class MaskedSoftmaxOp(CausalOp):
    """Probabilities (u16, 15 fraction bits) of the positions that each row sees; 0 for the others.
    `exponentials` holds 2^(-i / 2048) with 30 fraction bits.

    `y = softmax(min(requantize(max s − s, multiplier, shift), 65535))`
    """

    name = "htp.masked_softmax"
    QNN: ClassVar = "MaskedSoftmax"
    CARRIES: ClassVar = int_ops.AttentionOp
    x = operand_def(TensorType)
    exponentials = operand_def(TensorType)
    multiplier = prop_def(IntegerAttr)
    shift = prop_def(IntegerAttr)
    PORTS: ClassVar = {"x": Tile((s32,)), "exponentials": Tile((s32,), 1), "result": Tile((u16,))}
    LIMITS: ClassVar = (
        *CausalOp.SHAPE,
        same_shape("x"),
        Limit(
            "heads rows for each token, as wide as capacity",
            lambda op: shape(op.x)[1] == op.get("capacity") and shape(op.x)[0] % op.get("heads") == 0,
        ),
        *scales(),
        Limit("multiplier not negative", lambda op: op.get("multiplier") >= 0),
        Limit("exponentials has 2048 entries", lambda op: shape(op.exponentials) == (2048,)),
    )

    def evaluate(self, ctx: EvaluationContext, x: Array, exponentials: Array) -> Array:
        visible = self.visible(ctx, len(x))
        scores = x[:, : visible.shape[1]].astype(np.int64)
        largest = np.where(visible, scores, a.INT32_MIN).max(-1, keepdims=True)
        below = np.where(visible, largest - scores, 0)
        u = np.minimum(a.requantize(below, self.get("multiplier"), self.get("shift")), 65535)
        y = np.zeros(x.shape, np.uint16)
        y[:, : visible.shape[1]] = a.softmax(u, visible)
        return y


@irdl_op_definition
class MatMulValuesOp(CausalOp):
    """Weighted sums of values, as columns of query heads `[head, head + heads)` of the result.

    `y = clamp(requantize(Σ p·(v − v_zero), multiplier, shift) + zero_point)`
    """

    name = "htp.mat_mul_values"
    QNN: ClassVar = "MatMul"
    p = operand_def(TensorType)
    values = operand_def(TensorType)
    dest = operand_def(TensorType)
    head = prop_def(IntegerAttr)
    head_dim = prop_def(IntegerAttr)
    v_zero = prop_def(IntegerAttr)
    multiplier = prop_def(IntegerAttr)
    shift = prop_def(IntegerAttr)
    zero_point = prop_def(IntegerAttr)
    PORTS: ClassVar = {
        "p": Tile((u16,)), "values": Tile((u8,)), "dest": ACTIVATIONS, "result": ACTIVATIONS,
    }  # fmt: skip
    LIMITS: ClassVar = (
        *CausalOp.SHAPE,
        Limit("dest of the result's type", lambda op: op.dest.type == op.result.type),
        *scales(),
        within("v_zero", 0, 255),
        zero_of("zero_point"),
        within("head_dim", 1, 8192),
        Limit(
            "values are those of one head",
            lambda op: shape(op.values) == (1, value_bytes(op.get("capacity"), op.get("head_dim"))),
        ),
        Limit(
            "the result holds the heads",
            lambda op: (
                op.get("head") >= 0
                and (op.get("head") + op.get("heads")) * op.get("head_dim") <= channels(op.result)
            ),
        ),
        Limit(
            "a row of p for each token and head, as wide as capacity",
            lambda op: shape(op.p) == (op.tokens * op.get("heads"), op.get("capacity")),
        ),
    )

    def tied(self) -> SSAValue:
        return self.dest

    def tokens_seen(self) -> int:
        return self.tokens

    def evaluate(self, ctx: EvaluationContext, p: Array, values: Array, dest: Array) -> Array:
        heads, dim, capacity = self.get("heads"), self.get("head_dim"), self.get("capacity")
        first = self.get("head") * dim
        last = min(ctx.position + len(dest), capacity)
        matrix = unpack_values(values, capacity, dim)[:last].astype(np.float64) + (128 - self.get("v_zero"))
        acc = (p[:, :last].astype(np.float64) @ matrix).astype(np.int64)
        scaled = a.requantize(acc, self.get("multiplier"), self.get("shift")) + self.get("zero_point")
        dest[:, first : first + heads * dim] = self.narrow(scaled).reshape(len(dest), -1)
        return dest

    def macs(self) -> int:
        """Of all rows and positions."""
        return int(np.prod(shape(self.p)) * self.get("head_dim"))
