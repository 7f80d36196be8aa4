"""Small modules around each `int` op, for backends to be compared with the oracle.

An op under test stands between embeddings, which make its operands, and a product with the unit
matrix, which brings its result out as s32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from xdsl.dialects import func
from xdsl.dialects.builtin import DYNAMIC_INDEX, ModuleOp, TensorType, i64

from mqc.analysis.context import CompilerContext
from mqc.backend import Engine
from mqc.dialects import int_ops
from mqc.ir.module import set_level
from mqc.ir.op import attr, channels, s32, tensor, u8, u16

ROWS, CONTEXT = 256, 40


class Lab:
    """Builds a module around one op, with random constants from `rng`."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.ctx = CompilerContext()
        index = TensorType(i64, [DYNAMIC_INDEX])
        self.function = func.FuncOp("main", ([index, index], [tensor(s32, 1)]))
        self.block = self.function.body.block

    def weight(self, array: Any, dtype: Any) -> Any:
        return self.ctx.weights.add("w", np.asarray(array).astype(dtype))

    def add(self, kind: Any, operands: list[Any], result: Any, **properties: Any) -> Any:
        op = kind.build_op(operands, result, "v", **properties)
        self.block.add_op(op)
        return op.results[0]

    def factors(self, count: int, low: int, high: int) -> dict[str, Any]:
        """Random multipliers, zero and negative ones among them, and shifts to both sides."""
        signs = [1, -1, 1, 1, 0] if count > 1 else [1, -1]
        m = self.rng.integers(2**30, 2**31, count) * self.rng.choice(signs, count)
        return {
            "multiplier": self.weight(m, np.int32),
            "shift": self.weight(self.rng.integers(low, high, count), np.int8),
        }

    def scalar(self, prefix: str, low: int, high: int) -> dict[str, int]:
        return {
            f"{prefix}multiplier": int(self.rng.integers(2**30, 2**31)),
            f"{prefix}shift": int(self.rng.integers(low, high)),
        }

    def zero(self, element: Any) -> int:
        return int(self.rng.choice([0, 1, 128, 255] if element == u8 else [0, 1, 32768, 65535]))

    def activation(self, element: Any, width: int) -> Any:
        table = self.weight(self.rng.integers(-128, 128, (ROWS, width)), np.int8)
        middle = 128 if element == u8 else 32768
        m = self.weight(self.rng.integers(2**30, 2**31, ROWS), np.int32)
        s = self.weight(self.rng.integers(*((-1, 2) if element == u8 else (-9, -5)), ROWS), np.int8)
        return self.add(
            int_ops.EmbeddingOp, [self.block.args[0]], tensor(element, width),
            table=table, multiplier=m, shift=s, zero_point=middle,
        )  # fmt: skip

    def requant(self, acc: Any, element: Any, magnitude_bits: int, per_channel: bool = True) -> Any:
        """Rescale accumulators of about `magnitude_bits` bits to the width of the result."""
        count = channels(acc) if per_channel else 1
        middle = magnitude_bits - (8 if element == u8 else 16)
        return self.add(
            int_ops.RequantOp, [acc], tensor(element, channels(acc)),
            **self.factors(count, middle - 2, middle + 3),
            zero_point=self.zero(element),
        )  # fmt: skip

    def finish(self, value: Any) -> ModuleOp:
        """Bring a value out unchanged."""
        n = channels(value)
        count = max(n, ROWS)  # token ids must be in the vocabulary
        unit = np.zeros((count, n))
        unit[:n] = np.eye(n)
        acc = self.add(
            int_ops.LinearOp, [value], tensor(s32, count), weight=self.weight(unit, np.int8),
            weight_bits=8, bias=self.weight(np.zeros(count), np.int32), x_zero=0, acc_shift=0,
        )  # fmt: skip
        return self.give(acc, self.weight(np.full(count, 2**30), np.int32), -1)

    def give(self, acc: Any, multiplier: Any, shift: int) -> ModuleOp:
        result = self.add(
            int_ops.RequantOp, [acc], tensor(s32, channels(acc)), multiplier=multiplier,
            shift=self.weight(np.full(multiplier.shape, shift), np.int8), zero_point=0,
        )  # fmt: skip
        self.block.add_op(func.ReturnOp(result))
        index = TensorType(i64, [DYNAMIC_INDEX])
        self.function.function_type = type(self.function.function_type).from_lists(
            [index, index], [result.type]
        )
        module = ModuleOp([self.function])
        set_level(module, "int")
        module.attributes["mqc.context"] = attr(CONTEXT)
        return module


def linear(x: Any, out: Any, k: int, n: int, bits: int = 8, group: int = 0) -> Callable[[Lab], ModuleOp]:
    def build(lab: Lab) -> ModuleOp:
        low, high = (-128, 128) if bits == 8 else (-8, 8)
        weight = lab.rng.integers(low, high, (n, k))
        weight[0], weight[-1] = low, high - 1  # the largest sums
        scale = None
        if group:
            scale = lab.weight(lab.rng.integers(1, 17, (n, k // group)), np.uint8)
        acc = lab.add(
            int_ops.LinearOp, [lab.activation(x, k)], tensor(s32, n), x_zero=lab.zero(x),
            weight=lab.weight(weight, np.int8), weight_bits=bits, group_scale=scale,
            bias=lab.weight(lab.rng.integers(-(2**20), 2**20, n), np.int32),
            acc_shift=0 if x == u8 else 3,
        )  # fmt: skip
        if out == s32:
            lab.vocabulary = n  # type: ignore[attr-defined]
            m = lab.weight(lab.rng.integers(2**30, 2**31, n), np.int32)
            return lab.give(acc, m, -4)
        return lab.finish(lab.requant(acc, out, (15 if bits == 4 else 19) + (5 if x == u16 else 0)))

    return build


def any_shift(out: Any) -> Callable[[Lab], ModuleOp]:
    """Every shift that there is, one a channel: most saturate, in the left shift or in the result."""

    def build(lab: Lab) -> ModuleOp:
        acc = lab.add(
            int_ops.MulOp, [lab.activation(u16, 63), lab.activation(u16, 63)], tensor(s32, 63),
            a_zero=lab.zero(u16), b_zero=lab.zero(u16), acc_shift=2,
        )  # fmt: skip
        multiplier = lab.rng.integers(2**30, 2**31, 63) * lab.rng.choice([1, -1], 63)
        value = lab.add(
            int_ops.RequantOp, [acc], tensor(out, 63), multiplier=lab.weight(multiplier, np.int32),
            shift=lab.weight(np.arange(-31, 32), np.int8), zero_point=lab.zero(out),
        )  # fmt: skip
        return lab.finish(value)

    return build


def norm(
    kind: Any, x: Any, out: Any, width: int, groups: int = 1, bias: bool = False
) -> Callable[[Lab], ModuleOp]:
    def build(lab: Lab) -> ModuleOp:
        added = {}
        if bias:
            shift, most = lab.rng.choice([0, 0, 1, 2, 7, 31], width), 2**28
            added = {
                "bias": lab.weight(lab.rng.integers(-most, most, width), np.int32),
                "bias_shift": lab.weight(shift, np.int8),
            }
        acc = lab.add(
            kind, [lab.activation(x, width)], tensor(s32, width), x_zero=lab.zero(x),
            epsilon=int(lab.rng.choice([1, 80, 2**40])), groups=groups, **added,
        )  # fmt: skip
        return lab.finish(lab.requant(acc, out, 29))

    return build


def rope(x: Any, out: Any, head_dim: int, rotary: int, interleaved: int) -> Callable[[Lab], ModuleOp]:
    def build(lab: Lab) -> ModuleOp:
        tables = lab.rng.integers(-(2**14), 2**14 + 1, (2, CONTEXT, rotary // 2))
        acc = lab.add(
            int_ops.RopeOp, [lab.activation(x, 3 * head_dim), lab.block.args[1]],
            tensor(s32, 3 * head_dim), cos=lab.weight(tables[0], np.int16),
            sin=lab.weight(tables[1], np.int16), head_dim=head_dim, interleaved=interleaved,
            x_zero=lab.zero(x),
        )  # fmt: skip
        return lab.finish(lab.requant(acc, out, 21 if x == u8 else 29, per_channel=False))

    return build


def lut(x: Any, out: Any, segment: int | None = None) -> Callable[[Lab], ModuleOp]:
    def build(lab: Lab) -> ModuleOp:
        top = 256 if out == u8 else 65536
        if segment is None:
            table = lab.weight(lab.rng.integers(0, top, 256), np.uint8 if out == u8 else np.uint16)
        else:
            knots = lab.rng.integers(-top * 4, top * 20, (1 << (16 - segment)) + 1)
            table = lab.weight(knots, np.int32)
        value = lab.add(
            int_ops.LutOp, [lab.activation(x, 21)], tensor(out, 21), table=table, segment_bits=segment
        )
        return lab.finish(value)

    return build


def mul(x: Any, y: Any, out: Any) -> Callable[[Lab], ModuleOp]:
    def build(lab: Lab) -> ModuleOp:
        shift = 2 if x == y == u16 else 0
        acc = lab.add(
            int_ops.MulOp, [lab.activation(x, 77), lab.activation(y, 77)], tensor(s32, 77),
            a_zero=lab.zero(x), b_zero=lab.zero(y), acc_shift=shift,
        )  # fmt: skip
        return lab.finish(lab.requant(acc, out, 29 if x == y else 23, per_channel=False))

    return build


def add(x: Any, y: Any, out: Any) -> Callable[[Lab], ModuleOp]:
    def build(lab: Lab) -> ModuleOp:
        # to 2^-8 of the result's steps, from 14 bits above the operand's
        wide = 8 if out == u8 else 0
        shifts = {u8: (-3 + wide, wide), u16: (5 + wide, 8 + wide)}
        value = lab.add(
            int_ops.AddOp, [lab.activation(x, 77), lab.activation(y, 77)], tensor(out, 77),
            a_zero=lab.zero(x), b_zero=lab.zero(y), zero_point=lab.zero(out),
            **lab.scalar("a_", *shifts[x]), **lab.scalar("b_", *shifts[y]),
        )  # fmt: skip
        return lab.finish(value)

    return build


def knots(lab: Lab, cap: float) -> Any:
    places = np.arange(2049) * 32 - 2**15
    return lab.weight(np.rint(cap * np.tanh(places / 2**13) * np.log2(np.e) * 2**15), np.int32)


def attention(
    out: Any,
    heads: int,
    kv_heads: int,
    dim: int,
    window: int | None = None,
    prefix: int = 0,
    sinks: bool = False,
    value_dim: int | None = None,
    softcap: float | None = None,
    key_bias: bool = False,
    chunk: int | None = None,
) -> Callable[[Lab], ModuleOp]:
    def build(lab: Lab) -> ModuleOp:
        q, k, v = heads * dim, kv_heads * dim, kv_heads * (value_dim or dim)
        rows = {
            f"prefix_{n}": lab.weight(lab.rng.integers(0, 256, (prefix, size)), np.uint8)
            for n, size in (("k", k), ("v", v))
            if prefix
        }
        value = lab.add(
            int_ops.AttentionOp,
            [lab.activation(u8, q), lab.activation(u8, k), lab.activation(u8, v)],
            tensor(out, heads * (value_dim or dim)),
            layer=0, heads=heads, kv_heads=kv_heads, window=window, chunk=chunk, **rows,
            sinks=lab.weight(lab.rng.integers(-(2**17), 2**18, heads), np.int32) if sinks else None,
            key_bias=lab.weight(lab.rng.integers(0, 2**17, (heads, CONTEXT)), np.int32) if key_bias else None,
            softcap=softcap, cap_table=None if softcap is None else knots(lab, softcap),
            q_zero=lab.zero(u8), k_zero=lab.zero(u8), v_zero=lab.zero(u8), zero_point=lab.zero(out),
            **lab.scalar("score_", -1, 8), **lab.scalar("", *((14, 16) if out == u8 else (6, 8))),
        )  # fmt: skip
        module = lab.finish(value)
        if prefix:
            from mqc.ir.module import set_prefix

            set_prefix(module, tuple(range(prefix)))
        return module

    return build


CASES: dict[str, Callable[[Lab], ModuleOp]] = {
    "linear-u8-u8": linear(u8, u8, 64, 48),
    "linear-u8-u16-odd": linear(u8, u16, 37, 21),
    "linear-u8-s32": linear(u8, s32, 70, 67),
    "linear-u16-u8": linear(u16, u8, 53, 130),
    "linear-u16-u16": linear(u16, u16, 200, 16),
    "linear-u16-s32": linear(u16, s32, 31, 61),
    "linear-s4": linear(u8, u8, 41, 83, bits=4),
    "linear-s4-u16": linear(u16, u16, 64, 64, bits=4),
    "linear-s4-groups": linear(u8, u16, 96, 40, bits=4, group=32),
    "linear-s4-groups-u16": linear(u16, u8, 128, 80, bits=4, group=64),
    "requant-any-shift-u8": any_shift(u8),
    "requant-any-shift-u16": any_shift(u16),
    "rms-norm": norm(int_ops.RmsNormOp, u16, u8, 75),
    "rms-norm-heads": norm(int_ops.RmsNormOp, u8, u16, 60, groups=5),
    "layer-norm": norm(int_ops.LayerNormOp, u16, u16, 75),
    "layer-norm-u8": norm(int_ops.LayerNormOp, u8, u8, 16),
    "rope": rope(u8, u8, 16, 16, 0),
    "rope-partial-interleaved": rope(u8, u16, 10, 6, 1),
    "rope-u16-u8": rope(u16, u8, 64, 64, 0),
    "rope-u16-u16": rope(u16, u16, 24, 20, 0),
    "rope-u16-interleaved": rope(u16, u8, 32, 32, 1),
    "rope-u16-partial-interleaved": rope(u16, u16, 10, 6, 1),
    "lut-u8-u8": lut(u8, u8),
    "lut-u8-u16": lut(u8, u16),
    "lut-u16-u8": lut(u16, u8, 5),
    "lut-u16-u16": lut(u16, u16, 8),
    "mul-u8-u16": mul(u8, u16, u16),
    "mul-u16-u16": mul(u16, u16, u8),
    "add-u16-u16": add(u16, u16, u16),
    "add-u16-u8": add(u16, u8, u8),
    "attention": attention(u8, 4, 4, 16),
    "attention-grouped": attention(u16, 6, 2, 20, prefix=2),
    "attention-many-query": attention(u8, 7, 1, 6, window=5, prefix=1),
    "attention-window": attention(u8, 2, 2, 64, window=18),
}


def check_engine(engine: Engine, ids: Any, want: Any) -> None:
    """The engine gives the oracle's logits in one call, in several, and of the last rows alone."""
    assert (engine.forward(ids) == want).all()
    engine.reset()
    parts = [engine.forward(ids[a:b]) for a, b in ((0, 1), (1, 2), (2, 7), (7, len(ids)))]
    assert (np.concatenate(parts) == want).all()
    engine.reset()
    assert (engine.forward(ids, rows=2) == want[-2:]).all()
