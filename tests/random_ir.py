"""Random valid modules of every level, for property tests. Weights are named, not made."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp, StringAttr, TensorType, f32
from xdsl.ir import SSAValue

from mqc.dialects import int_ops, llm
from mqc.dialects.quant import UniformType
from mqc.ir.module import set_level, set_prefix
from mqc.ir.op import (
    INDICES,
    MqcOp,
    WeightAttr,
    attr,
    channels,
    s8,
    s16,
    s32,
    tensor,
    u8,
    u16,
)  # fmt: skip

CONTEXT, VOCABULARY = 16, 24

_TEXT = "abz09 ./:'\"\\{}<>%#"


class Builder:
    """Makes one random module of a level, with about as many ops as asked for."""

    def __init__(self, level: str, size: int, rng: random.Random) -> None:
        self.level, self.size, self.rng = level, size, rng
        self.function = func.FuncOp("main", ([INDICES, INDICES], [tensor(f32, 1)]))
        self.block = self.function.body.block
        self.ids, self.positions = self.block.args
        self.ids.name_hint, self.positions.name_hint = "ids", "positions"
        self.prefix = [rng.randrange(VOCABULARY) for _ in range(rng.randint(0, 2))]
        self.layers = 0
        self.values: list[SSAValue] = []

    def build(self) -> ModuleOp:
        rules = self.float_rules() if self.level != "int" else self.int_rules()
        self.values.append(rules[0](None))
        for _ in range(self.size):
            rule = self.rng.choice(rules[1:])
            self.values.append(rule(self.rng.choice(self.values)))
        returned = self.finish(self.values[-1])
        self.block.add_op(func.ReturnOp(returned))
        kind = type(self.function.function_type)
        self.function.function_type = kind.from_lists([INDICES, INDICES], [returned.type])
        module = ModuleOp([self.function])
        set_level(module, self.level)
        module.attributes["mqc.context"] = attr(CONTEXT)
        if self.prefix:
            set_prefix(module, tuple(self.prefix))
        return module

    def weight(self, element: Any, *shape: int) -> WeightAttr:
        digest = f"{self.rng.getrandbits(64):016x}"
        name = "".join(self.rng.choices(_TEXT, k=self.rng.randint(0, 6)))
        return WeightAttr(StringAttr(name), StringAttr(digest), TensorType(element, shape))

    def add(self, kind: type[MqcOp], operands: list[SSAValue], result: Any, **properties: Any) -> SSAValue:
        op = kind.build_op(operands, result, self.name(), **properties)
        if self.rng.random() < 0.5:
            op.attributes["loc"] = attr("".join(self.rng.choices(_TEXT, k=self.rng.randint(0, 8))))
        self.block.add_op(op)
        return op.results[0]

    def name(self) -> str:
        short = "".join(self.rng.choices("abcdefgh_$-", k=self.rng.randint(1, 4)))
        layer = f".{self.rng.randint(0, 99)}.{self.rng.choice('xyz')}" if self.rng.random() < 0.5 else ""
        return f"v{short}{layer}"

    def real_number(self) -> float:
        return float(10 ** self.rng.uniform(-6, 6))

    def maybe(self, value: Any) -> Any:
        return value if self.rng.random() < 0.5 else None

    def width(self) -> int:
        return 4 * self.rng.randint(1, 6)

    def attention_shape(self) -> tuple[dict[str, Any], int, int]:
        kv_heads, group, dim = (self.rng.randint(1, 3) for _ in range(3))
        stated = {
            "layer": self.layers, "heads": kv_heads * group, "kv_heads": kv_heads,
            "window": self.maybe(self.rng.randint(1, 20)), "chunk": self.maybe(self.rng.randint(1, 20)),
        }  # fmt: skip
        self.layers += 1
        return stated, kv_heads * group * dim, kv_heads * dim

    def prefix_rows(self, element: Any, width: int) -> dict[str, WeightAttr]:
        names = ("prefix_k", "prefix_v") if self.prefix else ()
        return {name: self.weight(element, len(self.prefix), width) for name in names}

    # ---- llm and quant

    def real(self, count: int) -> TensorType:
        if self.level == "quant" and self.rng.random() < 0.5:
            bits = self.rng.choice([8, 16])
            zero = self.rng.randint(0, 2**bits - 1)
            return tensor(UniformType.of(bits, self.real_number(), zero), count)
        return tensor(f32, count)

    def float_linear(self, x: SSAValue, n: int) -> SSAValue:
        weight, bias = self.weight(f32, n, channels(x)), self.maybe(self.weight(f32, n))
        return self.add(llm.LinearOp, [x], self.real(n), weight=weight, bias=bias)

    def float_rules(self) -> list[Any]:
        def embedding(_: Any) -> SSAValue:
            n = self.width()
            return self.add(llm.EmbeddingOp, [self.ids], self.real(n), table=self.weight(f32, VOCABULARY, n))

        def norm(x: SSAValue) -> SSAValue:
            kind = self.rng.choice([llm.RmsNormOp, llm.LayerNormOp])
            gain = self.maybe(self.weight(f32, channels(x)))
            return self.add(kind, [x], self.real(channels(x)), eps=self.real_number(), groups=1, gain=gain)

        def activation(x: SSAValue) -> SSAValue:
            return self.add(self.rng.choice(llm.ACTIVATIONS), [x], self.real(channels(x)))

        def binary(x: SSAValue) -> SSAValue:
            kind = self.rng.choice([llm.AddOp, llm.MulOp])
            return self.add(kind, [x, self.float_linear(x, channels(x))], self.real(channels(x)))

        def rope(x: SSAValue) -> SSAValue:
            tables = {n: self.weight(f32, CONTEXT, self.rng.choice([2])) for n in ("cos", "sin")}
            interleaved = self.rng.randint(0, 1)
            return self.add(
                llm.RopeOp, [self.float_linear(x, 8), self.positions], self.real(8), **tables, head_dim=4,
                interleaved=interleaved,
            )  # fmt: skip

        def attention(x: SSAValue) -> SSAValue:
            stated, q, kv = self.attention_shape()
            operands = [self.float_linear(x, n) for n in (q, kv, kv)]
            rows = self.prefix_rows(f32, kv)
            return self.add(
                llm.AttentionOp, operands, self.real(q), scale=self.real_number(), **stated, **rows
            )

        return [
            embedding,
            norm,
            activation,
            binary,
            rope,
            attention,
            lambda x: self.float_linear(x, self.width()),
        ]

    # ---- int

    def activation_type(self) -> Any:
        return self.rng.choice([u8, u16])

    def zero(self, value: Any) -> int:
        return self.rng.randint(0, 255 if value == u8 else 65535)

    def scale(self, prefix: str = "", low: int = -31, high: int = 31) -> dict[str, int]:
        return {
            f"{prefix}multiplier": self.rng.randint(2**30, 2**31 - 1),
            f"{prefix}shift": self.rng.randint(low, high),
        }

    def requant(self, acc: SSAValue, element: Any) -> SSAValue:
        count = self.rng.choice([1, channels(acc)])
        return self.add(
            int_ops.RequantOp, [acc], tensor(element, channels(acc)), multiplier=self.weight(s32, count),
            shift=self.weight(s8, count), zero_point=0 if element == s32 else self.zero(element),
        )  # fmt: skip

    def int_linear(self, x: SSAValue, n: int, element: Any) -> SSAValue:
        bits = self.rng.choice([4, 8])
        acc = self.add(
            int_ops.LinearOp, [x], tensor(s32, n), weight=self.weight(s8, n, channels(x)), weight_bits=bits,
            bias=self.weight(s32, n), x_zero=self.zero(x.type.get_element_type()),  # type: ignore[attr-defined]
            acc_shift=self.rng.randint(0, 31),
            group_scale=self.maybe(self.weight(u8, n, channels(x))) if bits == 4 else None,
        )  # fmt: skip
        return self.requant(acc, element)

    def int_rules(self) -> list[Any]:
        def element(x: SSAValue) -> Any:
            return x.type.get_element_type()  # type: ignore[attr-defined]

        def embedding(_: Any) -> SSAValue:
            n, kind = self.width(), self.activation_type()
            return self.add(
                int_ops.EmbeddingOp, [self.ids], tensor(kind, n), table=self.weight(s8, VOCABULARY, n),
                multiplier=self.weight(s32, VOCABULARY), shift=self.weight(s8, VOCABULARY),
                zero_point=self.zero(kind),
            )  # fmt: skip

        def linear(x: SSAValue) -> SSAValue:
            return self.int_linear(x, self.width(), self.activation_type())

        def norm(x: SSAValue) -> SSAValue:
            kind = self.rng.choice([int_ops.RmsNormOp, int_ops.LayerNormOp])
            direction = self.add(
                kind, [x], tensor(s32, channels(x)), x_zero=self.zero(element(x)), groups=channels(x),
                epsilon=self.rng.randint(1, 2**61),
            )  # fmt: skip
            return self.requant(direction, self.activation_type())

        def lut(x: SSAValue) -> SSAValue:
            kind, bits = self.activation_type(), None
            table = self.weight(kind, 256)
            if element(x) == u16:
                bits = self.rng.randint(0, 8)
                table = self.weight(s32, (1 << (16 - bits)) + 1)
            return self.add(int_ops.LutOp, [x], tensor(kind, channels(x)), table=table, segment_bits=bits)

        def mul(x: SSAValue) -> SSAValue:
            y = self.int_linear(x, channels(x), self.activation_type())
            product = self.add(
                int_ops.MulOp, [x, y], tensor(s32, channels(x)), a_zero=self.zero(element(x)),
                b_zero=self.zero(element(y)), acc_shift=self.rng.randint(2, 31),
            )  # fmt: skip
            return self.requant(product, self.activation_type())

        def add(x: SSAValue) -> SSAValue:
            y, kind = self.int_linear(x, channels(x), self.activation_type()), self.activation_type()
            return self.add(
                int_ops.AddOp, [x, y], tensor(kind, channels(x)), a_zero=self.zero(element(x)),
                b_zero=self.zero(element(y)), zero_point=self.zero(kind), **self.scale("a_", 1),
                **self.scale("b_", 1),
            )  # fmt: skip

        def rope(x: SSAValue) -> SSAValue:
            tables = {name: self.weight(s16, CONTEXT, 2) for name in ("cos", "sin")}
            kind = self.activation_type()
            rotated = self.add(
                int_ops.RopeOp, [self.int_linear(x, 8, kind), self.positions], tensor(s32, 8), **tables,
                head_dim=4, interleaved=self.rng.randint(0, 1), x_zero=self.zero(kind),
            )  # fmt: skip
            return self.requant(rotated, u8)

        def attention(x: SSAValue) -> SSAValue:
            stated, q, kv = self.attention_shape()
            kind = self.activation_type()
            zeros = {f"{name}_zero": self.zero(u8) for name in "qkv"}
            return self.add(
                int_ops.AttentionOp, [self.int_linear(x, n, u8) for n in (q, kv, kv)], tensor(kind, q),
                zero_point=self.zero(kind), **stated, **zeros, **self.scale("score_"), **self.scale(),
                **self.prefix_rows(u8, kv),
            )  # fmt: skip

        return [embedding, linear, norm, lut, mul, add, rope, attention]

    def finish(self, x: SSAValue) -> SSAValue:
        if self.level == "int":
            return self.int_linear(x, VOCABULARY, s32)
        weight = self.weight(f32, VOCABULARY, channels(x))
        return self.add(llm.LinearOp, [x], tensor(f32, VOCABULARY), weight=weight)


@dataclass
class Drawn:
    """A module that hypothesis shows as text."""

    module: ModuleOp

    def __repr__(self) -> str:
        return f"\n{self.module}"


def random_module(level: str, size: int, seed: int) -> Drawn:
    return Drawn(Builder(level, size, random.Random(seed)).build())


def modules(levels: tuple[str, ...] = ("llm", "quant", "int"), most: int = 8) -> st.SearchStrategy[Drawn]:
    """Valid modules of up to some thirty ops."""
    return st.builds(random_module, st.sampled_from(levels), st.integers(0, most), st.integers(0, 2**32))
