"""The int ops against what they stand for: real arithmetic with a stated error, or plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.utils.exceptions import VerifyException
from xdsl.utils.test_value import create_ssa_value

from mqc.analysis.lut import exact, interpolation_table, table_of_256
from mqc.dialects import int_ops, llm
from mqc.dialects.constraints import bits
from mqc.dialects.quant import UniformType
from mqc.ir.op import INDICES, s32, tensor, u8, u16
from mqc.ir.weight_store import WeightStore
from mqc.numerics import arithmetic as a
from mqc.numerics.layouts import LAYOUTS, pack, packed_shape, unpack
from mqc.numerics.rotary import rope_pairs


class Weights:
    """What `evaluate` takes of an `Evaluation`: constants and the cache."""

    def __init__(self) -> None:
        self.store = WeightStore()
        self.state: dict[str, Any] = {}

    def array(self, ref: Any) -> Any:
        return self.store[ref]


def op(kind: Any, operands: list[Any], result: Any, **properties: Any) -> Any:
    built = kind.build_op([create_ssa_value(t) for t in operands], result, "v", **properties)
    built.verify()
    return built


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_join_is_each_channel_rescaled(left: int, right: int, n: int, seed: int) -> None:
    rng, w = np.random.default_rng(seed), Weights()
    index = rng.integers(0, left + right, n).astype(np.int32)
    zeros, factors = rng.integers(0, 256, 3).tolist(), rng.integers(2**30, 2**31, 2).tolist()
    shifts = rng.integers(-2, 3, 2).tolist()
    join = op(
        int_ops.JoinOp, [tensor(u8, left), tensor(u16, right)], tensor(u8, n), index=w.store.add("i", index),
        a_zero=zeros[0], b_zero=zeros[1], zero_point=zeros[2], a_multiplier=factors[0], a_shift=shifts[0],
        b_multiplier=factors[1], b_shift=shifts[1] + 8,
    )  # fmt: skip
    x, y = (
        rng.integers(0, 256, (3, left)).astype(np.uint8),
        rng.integers(0, 65536, (3, right)).astype(np.uint16),
    )
    got = join.evaluate(w, x, y)
    for t in range(3):
        for c, i in enumerate(index.tolist()):
            part = 0 if i < left else 1
            d = int(x[t, i]) - zeros[0] if part == 0 else int(y[t, i - left]) - zeros[1]
            real = d * factors[part] / 2.0 ** (31 + shifts[part] + 8 * part)
            assert abs(int(got[t, c]) - min(max(real + zeros[2], 0), 255)) <= 1


@given(st.integers(1, 40), st.integers(1, 60), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_linear_is_the_plain_sum(n: int, k: int, wide: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = Weights()
    x_type, top = (u16, 65535) if wide else (u8, 255)
    weight = rng.integers(-128, 128, (n, k)).astype(np.int8)
    bias = rng.integers(-(2**20), 2**20, n).astype(np.int32)
    shift, zero = int(rng.integers(0, 5)), int(rng.integers(0, top + 1))
    linear = op(
        int_ops.LinearOp, [tensor(x_type, k)], tensor(s32, n), weight=w.store.add("w", weight),
        weight_bits=8, bias=w.store.add("b", bias), x_zero=zero, acc_shift=shift,
    )  # fmt: skip
    x = rng.integers(0, top + 1, (3, k)).astype(np.uint16 if wide else np.uint8)
    got = linear.evaluate(w, x)
    for t in range(3):
        for j in range(n):
            total = sum((int(x[t, i]) - zero) * int(weight[j, i]) for i in range(k)) + int(bias[j])
            assert got[t, j] == (total + ((1 << shift) >> 1)) >> shift


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.sampled_from([name for name in sorted(LAYOUTS) if not name.startswith("records")]),
    st.integers(0, 99),
)
@settings(max_examples=40)
def test_layouts_invert(n: int, k: int, layout: str, seed: int) -> None:
    half = 1 << (LAYOUTS[layout] - 1)
    weight = np.random.default_rng(seed).integers(-half, half, (n, k)).astype(np.int8)
    packed = pack(weight, layout)
    assert packed.shape == packed_shape(layout, n, k)
    assert (unpack(packed, layout, n, k) == weight).all()


@given(
    st.integers(1, 300),
    st.sampled_from([1, 7, 900, 20000]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
@settings(max_examples=60)
def test_norms_are_within_2_to_minus_12(size: int, spread: int, seed: int, layer: bool) -> None:
    rng = np.random.default_rng(seed)
    x = np.clip(np.rint(rng.normal(30000, spread, (4, size))), 0, 65535).astype(np.uint16)
    kind = int_ops.LayerNormOp if layer else int_ops.RmsNormOp
    eps = 3
    norm = op(kind, [tensor(u16, size)], tensor(s32, size), x_zero=29990, epsilon=eps, groups=1)
    got = norm.evaluate(Weights(), x) / 2.0**30
    d = x.astype(np.float64) - 29990
    if layer:
        one = 2.0**a.MEAN_FRACTION_BITS
        d = (d - d.mean(-1, keepdims=True)) * one
    want = d / np.sqrt((d * d).sum(-1, keepdims=True) + eps)
    # the mean's fraction bits bound the error of a layer norm of nearly equal values
    slack = 0.5 / np.sqrt((d * d).sum(-1, keepdims=True) + eps) * np.sqrt(size) if layer else 0
    assert (np.abs(got - want) <= np.abs(want) * 2.0**-12 + 2.0**-29 + slack).all()


def test_layer_norm_error_on_ordinary_data() -> None:
    rng = np.random.default_rng(0)
    x = np.clip(np.rint(rng.normal(30000, 2000, (50, 768))), 0, 65535).astype(np.uint16)
    norm = op(int_ops.LayerNormOp, [tensor(u16, 768)], tensor(s32, 768), x_zero=0, epsilon=1, groups=1)
    got = norm.evaluate(Weights(), x) / 2.0**30
    d = x - x.mean(-1, keepdims=True)
    want = d / np.sqrt((d * d).sum(-1, keepdims=True))
    assert np.abs(got - want).max() <= np.abs(want).max() * 2.0**-12


@given(st.integers(0, 2**32 - 1), st.integers(-9, 9))
def test_a_bias_of_directions_is_the_real_one(seed: int, apart: int) -> None:
    """Within 2^-28 of the larger of the two, whatever their sizes are; also of gains and biases of 0."""
    rng, size = np.random.default_rng(seed), 50
    factor = rng.normal(0, 1, size) * rng.choice([0, 1, 1, 30], size)
    addend = rng.normal(0, 10.0**apart, size) * rng.choice([0, 1, 1], size)
    bias, shift, unit = a.addend_of_directions(factor, addend)
    w = Weights()
    norm = op(
        int_ops.LayerNormOp, [tensor(u16, size)], tensor(s32, size), x_zero=0, epsilon=1, groups=1,
        bias=w.store.add("b", bias), bias_shift=w.store.add("s", shift),
    )  # fmt: skip
    plain = op(int_ops.LayerNormOp, [tensor(u16, size)], tensor(s32, size), x_zero=0, epsilon=1, groups=1)
    found = {"bias": bias, "bias_shift": shift}
    assert all(values.violation(norm, found[values.name]) is None for values in norm.VALUES)
    x = rng.integers(0, 65536, (3, size)).astype(np.uint16)
    got, direction = norm.evaluate(w, x) * unit, plain.evaluate(w, x) / 2.0**30
    error = np.abs(got - (factor * direction + addend))
    assert (error <= np.maximum(np.abs(factor), np.abs(addend)) * 2.0**-28).all()


@pytest.mark.parametrize("function", [k.function for k in llm.ACTIVATIONS])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (-30.0, 90.0), (-8.0, 0.5)])
def test_lut16_is_within_one_step_for_all_inputs(function: Any, bits: int, low: float, high: float) -> None:
    x = UniformType.of(16, (high - low) / 65535, round(-low / (high - low) * 65535))
    values = function(torch.linspace(low, high, 999, dtype=torch.float64)).numpy()
    bottom, top = min(values.min(), 0), max(values.max(), 0)
    steps = (1 << bits) - 1
    y = UniformType.of(
        bits, max((top - bottom) / steps, 1e-9), round(-bottom / max(top - bottom, 1e-9) * steps)
    )
    w = Weights()
    table, segment = interpolation_table(function, x, y)
    lut = op(
        int_ops.LutOp, [tensor(u16, 1)], tensor(y.storage, 1), table=w.store.add("t", table),
        segment_bits=segment,
    )  # fmt: skip
    inputs = np.arange(65536, dtype=np.uint16)
    got = lut.evaluate(w, inputs[:, None])[:, 0].astype(int)
    want = np.clip(np.rint(exact(function, x, y, inputs)), y.low, y.high)
    assert np.abs(got - want).max() <= 1


def test_lut8_is_correctly_rounded() -> None:
    x, y = UniformType.of(8, 0.05, 100), UniformType.of(8, 0.03, 10)
    table = table_of_256(torch.nn.functional.silu, x, y)
    for i in range(256):
        real = (i - 100) * 0.05
        want = round(real / (1 + np.exp(-real)) / 0.03) + 10
        assert table[i] == min(max(want, 0), 255)


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([u8, u16]), st.integers(1, 9), st.integers(0, 5), st.booleans()
)
@settings(max_examples=60)
def test_rope_is_the_plain_rotation(seed: int, kind: Any, half: int, rest: int, interleaved: bool) -> None:
    """Extremes and both ends of the zero point among the values; s32 holds every result."""
    rng = np.random.default_rng(seed)
    w = Weights()
    top = 255 if kind == u8 else 65535
    angles = np.where(rng.random((7, half)) < 0.3, np.pi / 4, rng.uniform(0, 2 * np.pi, (7, half)))
    tables = [np.rint(f(angles) * 2.0**a.ROPE_FRACTION_BITS).astype(np.int16) for f in (np.cos, np.sin)]
    dim, zero = 2 * half + rest, int(rng.choice([0, top, rng.integers(0, top + 1)]))
    rope = op(
        int_ops.RopeOp, [tensor(kind, 2 * dim), INDICES], tensor(s32, 2 * dim), head_dim=dim, x_zero=zero,
        cos=w.store.add("cos", tables[0]), sin=w.store.add("sin", tables[1]), interleaved=int(interleaved),
    )  # fmt: skip
    x = rng.choice([0, top, *rng.integers(0, top + 1, 4)], (3, 2 * dim)).astype(f"uint{bits(rope.x)}")
    positions = rng.integers(0, 7, 3)
    got = rope.evaluate(w, x, positions)
    pairs = list(zip(*(p.tolist() for p in rope_pairs(dim, 2 * half, interleaved)), strict=True))
    for t, position in enumerate(positions):
        for head in range(2):
            d = [int(v) - zero for v in x[t, head * dim : (head + 1) * dim]]
            want = [v * 2**14 for v in d]
            for i, (first, second) in enumerate(pairs):
                c, s = (int(table[position, i]) for table in tables)
                want[first], want[second] = d[first] * c - d[second] * s, d[second] * c + d[first] * s
            assert got[t, head * dim : (head + 1) * dim].tolist() == want


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.sampled_from([None, 3]), st.sampled_from([None, 4])
)
@settings(max_examples=30)
def test_attention_through_the_cache_equals_the_whole(
    seed: int, group: int, window: int | None, chunk: int | None
) -> None:
    rng = np.random.default_rng(seed)
    w = Weights()
    prefix = rng.integers(0, 256, (2, 2, 8)).astype(np.uint8)
    attention = op(
        int_ops.AttentionOp, [tensor(u8, 8 * group), tensor(u8, 8), tensor(u8, 8)],
        tensor(u8, 8 * group), layer=0, heads=2 * group, kv_heads=2, window=window, chunk=chunk, q_zero=120,
        k_zero=130, v_zero=125, zero_point=128, score_multiplier=2**30 + 5, score_shift=3,
        multiplier=2**30, shift=14, prefix_k=w.store.add("pk", prefix[0]),
        prefix_v=w.store.add("pv", prefix[1]),
    )  # fmt: skip
    q = rng.integers(0, 256, (7, 8 * group)).astype(np.uint8)
    k, v = rng.integers(0, 256, (2, 7, 8)).astype(np.uint8)
    whole = attention.evaluate(w, q, k, v)
    w.state.clear()
    steps = [attention.evaluate(w, q[i : i + 1], k[i : i + 1], v[i : i + 1]) for i in range(7)]
    assert (np.concatenate(steps) == whole).all()


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_chunks_are_sequences_of_their_own(chunk: int) -> None:
    rng = np.random.default_rng(chunk)
    w = Weights()
    given = [rng.integers(0, 256, (11, n)).astype(np.uint8) for n in (24, 8, 8)]

    def attention(chunk: int | None) -> Any:
        return op(
            int_ops.AttentionOp, [tensor(u8, x.shape[1]) for x in given], tensor(u8, 24), layer=0, heads=6,
            kv_heads=2, chunk=chunk, q_zero=120, k_zero=130, v_zero=125, zero_point=128,
            score_multiplier=2**30 + 5, score_shift=3, multiplier=2**30, shift=14,
        )  # fmt: skip

    whole = attention(chunk).evaluate(w, *given)
    for first in range(0, 11, chunk):
        w.state.clear()
        alone = attention(None).evaluate(w, *(x[first : first + chunk] for x in given))
        assert (whole[first : first + chunk] == alone).all()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_add_and_mul_are_real_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = Weights()
    sa, sb, sy = rng.uniform(0.5, 2, 3) * [0.01, 0.02, 0.015]
    za, zb, zy = (int(z) for z in rng.integers(0, 65536, 3))
    scales = {}
    for name, real in (("a", sa), ("b", sb)):
        m, s = a.quantize_multiplier(real / sy * 2.0 ** (a.ADD_FRACTION_BITS - a.ADD_LEFT_SHIFT))
        scales |= {f"{name}_multiplier": int(m[0]), f"{name}_shift": int(s[0])}
    t = tensor(u16, 9)
    add = op(int_ops.AddOp, [t, t], t, a_zero=za, b_zero=zb, zero_point=zy, **scales)
    x, y = rng.integers(0, 65536, (2, 5, 9)).astype(np.uint16)
    real = (x.astype(float) - za) * sa + (y.astype(float) - zb) * sb
    want = np.clip(real / sy + zy, 0, 65535)
    assert np.abs(add.evaluate(w, x, y) - want).max() <= 0.51
    mul = op(int_ops.MulOp, [t, t], tensor(s32, 9), a_zero=za, b_zero=zb, acc_shift=2)
    product = (x.astype(object) - za) * (y.astype(object) - zb)
    assert (mul.evaluate(w, x, y) == (product + 2) // 4).all()


def test_float_types_are_refused() -> None:
    from xdsl.dialects.builtin import f32

    with pytest.raises(VerifyException, match="not a tensor of integers"):
        op(
            int_ops.MulOp,
            [tensor(f32, 2), tensor(u8, 2)],
            tensor(s32, 2),
            a_zero=0,
            b_zero=0,
            acc_shift=0,
        )
    with pytest.raises(VerifyException, match=r"must be si8 \[4, 3\]"):
        w = Weights()
        op(
            int_ops.LinearOp, [tensor(u8, 3)], tensor(s32, 4), x_zero=0, acc_shift=0, weight_bits=8,
            weight=w.store.add("w", np.zeros((3, 4), np.int8)), bias=w.store.add("b", np.zeros(4, np.int32)),
        )  # fmt: skip
