"""Linear attention: the float op is transformers' function, the integer op its definition, near to float."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention
from transformers.models.mamba.modeling_mamba import mamba_selective_scan
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule
from xdsl.dialects.builtin import f32
from xdsl.utils.exceptions import VerifyException

from mqc.analysis.context import CompilerContext
from mqc.analysis.ir_text import parse_module
from mqc.analysis.recurrent_state import StateForm, state_form
from mqc.compiler.pass_manager import Pipeline
from mqc.dialects import int_ops, llm
from mqc.dialects.int_core import IntOp
from mqc.dialects.quant import UniformType, affine_range
from mqc.ir.module import mqc_ops
from mqc.ir.op import s32, tensor, u8, u16
from mqc.numerics.recurrence import FACTOR_FRACTION_BITS, LONGEST_DECAY, decay_factors
from tests.dialects.test_int_ops import Weights, op

SEED = st.integers(0, 2**32 - 1)
TOKENS = 4096


class FloatWeights(Weights):
    def torch(self, ref: Any) -> Any:
        return torch.from_numpy(self.store[ref])


def float_op(
    w: Weights,
    heads: int,
    key_heads: int,
    key_dim: int,
    value_dim: int,
    rate: Any,
    delta: int,
    skip: Any = None,
    steps: int | None = None,
) -> Any:
    widths = [key_heads * key_dim] * 2 + [heads * value_dim, steps or len(rate), heads]
    return op(
        llm.LinearAttentionOp, [tensor(f32, n) for n in widths], tensor(f32, heads * value_dim), layer=0,
        heads=heads, key_heads=key_heads, rate=w.store.add("r", np.asarray(rate, np.float32)), delta=delta,
        skip=None if skip is None else w.store.add("s", np.asarray(skip, np.float32)),
    )  # fmt: skip


@pytest.mark.parametrize("by_channel", [False, True])
def test_the_float_op_is_transformers_function(by_channel: bool) -> None:
    """In parts, of which one goes past a chunk."""
    heads, key_heads, key_dim, value_dim, count = 4, 4 if by_channel else 2, 8, 6, 150
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(1, count, *shape, generator=generator)

    q, k = normal(key_heads, key_dim), torch.nn.functional.normalize(normal(key_heads, key_dim), dim=-1)
    v, beta = normal(heads, value_dim), normal(heads).sigmoid()
    step = normal(*((heads, key_dim) if by_channel else (heads,))).exp() / 20
    rate = torch.rand(step.shape[2:], generator=generator)
    function = recurrent_kimi_delta_attention if by_channel else torch_recurrent_gated_delta_rule
    want, _ = function(q * key_dim**0.5, k, v, -rate * step, beta, None, False)
    w = FloatWeights()
    built = float_op(w, heads, key_heads, key_dim, value_dim, rate.reshape(-1).numpy(), 1)
    given = [x[0].reshape(count, -1) for x in (q, k, v, step, beta)]
    parts = [
        built.compute(w, *(x[a:b] for x in given)) for a, b in ((0, 70), (70, 71), (71, 72), (72, count))
    ]
    assert torch.allclose(torch.cat(parts), want[0].reshape(count, -1), atol=2e-5)


def test_the_float_op_is_the_scan_of_mamba() -> None:
    """Steps are beta as well, and part of the values goes past the state."""
    heads, groups, key_dim, value_dim, count = 4, 2, 5, 6, 90
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, count, groups, key_dim, generator=generator) for _ in range(2))
    v = torch.randn(1, count, heads, value_dim, generator=generator)
    step = torch.rand(1, count, heads, generator=generator)
    rate, skip = torch.tensor([0.0, 0.01, 0.5, 3.0]), torch.randn(heads, generator=generator)
    want = mamba2_chunk_scan(v, step, -rate, k, q, chunk_size=16, D=skip)
    w = FloatWeights()
    built = float_op(w, heads, groups, key_dim, value_dim, rate.numpy(), 0, skip.numpy())
    given = [x[0].reshape(count, -1) for x in (q, k, v, step, step)]
    parts = [built.compute(w, *(x[a:b] for x in given)) for a, b in ((0, 70), (70, 71), (71, count))]
    assert torch.allclose(torch.cat(parts), want[0].reshape(count, -1), atol=1e-4)


def test_the_float_op_is_the_selective_scan() -> None:
    """A head for each channel, which has a decay for each key channel, all of one step."""
    heads, key_dim, count = 12, 5, 90
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, key_dim, count, generator=generator) for _ in range(2))
    v, step = (
        torch.randn(1, heads, count, generator=generator),
        torch.rand(1, heads, count, generator=generator),
    )
    rate, skip = torch.rand(heads, key_dim, generator=generator), torch.randn(heads, generator=generator)
    want = mamba_selective_scan(v, step, -rate, k, q, D=skip)
    w = FloatWeights()
    built = float_op(w, heads, 1, key_dim, 1, rate.reshape(-1).numpy(), 0, skip.numpy(), steps=heads)
    given = [x[0].T for x in (q, k, v, step, step)]
    parts = [built.compute(w, *(x[a:b] for x in given)) for a, b in ((0, 70), (70, 71), (71, count))]
    assert torch.allclose(torch.cat(parts), want[0].T, atol=1e-4)


# ---- the integer op


def rounded(x: int, shift: int) -> int:
    """floor(x / 2^shift + 1/2)"""
    return (2 * x + (1 << shift)) // (2 << shift)


def saturated(x: int) -> int:
    return min(max(x, -(2**31)), 2**31 - 1)


def requantized(x: int, multiplier: int, shift: int) -> int:
    wide = saturated(x << max(-shift, 0))
    return rounded(saturated(rounded(wide * multiplier, 31)), max(shift, 0))


def factor(u: int) -> int:
    nearest = rounded(u, 13)
    entry = round(2.0 ** (30 - (nearest % 2048) / 2048))
    return rounded(entry - rounded(entry * 90852 * (u - (nearest << 13)), 41), nearest // 2048)


class Definition:
    """`int.linear_attention` of one head, in Python's integers, row by row of lists."""

    def __init__(self, p: dict[str, Any], key_dim: int, value_dim: int) -> None:
        self.p, self.state = p, [[0] * value_dim for _ in range(key_dim)]

    def token(
        self, q: list[int], k: list[int], v: list[int], step: list[int], beta: int | None,
        scales: list[tuple[int, int]], skip: int,
    ) -> list[int]:  # fmt: skip
        """All without their zero points; step and scales: one, or one of each key channel, apart."""
        p, rows, columns = self.p, range(len(k)), range(len(v))
        for row in rows:
            octaves = requantized(step[row % len(step)], *scales[row % len(scales)])
            e = factor(min(max(octaves, 0), 1 << 29))
            self.state[row] = [rounded(s * e, 30) for s in self.state[row]]
        written = [x * 2 ** p["value_shift"] for x in v]
        if "memory_shift" in p:
            for c in columns:
                sums = saturated(rounded(sum(k[row] * self.state[row][c] for row in rows), p["sum_shift"]))
                memory = requantized(sums, p["memory_multiplier"], p["memory_shift"])
                written[c] = saturated(written[c] - memory)
        if beta is not None:
            share = requantized(beta, p["beta_multiplier"], p["beta_shift"])
            written = [saturated(rounded(x * share, 24)) for x in written]
        for row in rows:
            for c in columns:
                update = rounded(k[row] * written[c], p["update_shift"])
                self.state[row][c] = saturated(self.state[row][c] + update)
        sums_of = [sum(q[row] * self.state[row][c] for row in rows) for c in columns]
        past = [rounded(x * skip, p.get("skip_shift", 0)) for x in v]
        return [saturated(rounded(x, p["acc_shift"]) + y) for x, y in zip(sums_of, past, strict=True)]


@given(st.data(), SEED)
@settings(max_examples=80, deadline=None)
def test_the_integer_op_is_its_definition(data: st.DataObject, seed: int) -> None:
    """Any numbers that verify, states that saturate among them; in parts as at once."""
    rng = np.random.default_rng(seed)
    key_heads, groups = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    key_dim, value_dim = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    delta, with_beta, by_channel, skipping, apart = (data.draw(st.booleans()) for _ in range(5))
    element, top = data.draw(st.sampled_from([(u8, 255), (u16, 65535)]))
    heads, w = key_heads * groups, Weights()
    steps = heads * key_dim if by_channel else heads
    decays = heads * key_dim if apart else steps  # of key channels that share a step
    zeros = {f"{name}_zero": int(rng.integers(0, top + 1)) for name in ("q", "k", "v", "step")}
    p: dict[str, Any] = {
        "value_shift": data.draw(st.integers(0, 15)), "update_shift": data.draw(st.integers(0, 47)),
        "acc_shift": data.draw(st.integers(0, 31)),
    }  # fmt: skip
    for name, there in (("beta", with_beta), ("memory", delta)):
        if there:
            p[f"{name}_multiplier"] = int(rng.integers(2**30, 2**31)) * data.draw(st.sampled_from([1, 0, -1]))
            p[f"{name}_shift"] = data.draw(st.integers(-31, 31))
    if with_beta:
        p["beta_zero"] = int(rng.integers(0, top + 1))
    if delta:
        p["sum_shift"] = data.draw(st.integers(0, 62))
    skip = rng.integers(-(2**31), 2**31, heads) if skipping else np.zeros(heads, int)
    if skipping:
        p["skip_shift"] = data.draw(st.integers(0, 31))
    multiplier = rng.integers(2**30, 2**31, decays).astype(np.int32)
    shift = rng.integers(-16, 20, decays).astype(np.int8)
    widths = [key_heads * key_dim] * 2 + [heads * value_dim, steps] + [heads] * with_beta
    built = op(
        int_ops.LinearAttentionOp, [tensor(element, n) for n in widths], tensor(s32, heads * value_dim),
        layer=0, heads=heads, key_heads=key_heads, decay_multiplier=w.store.add("m", multiplier),
        decay_shift=w.store.add("s", shift),
        skip=w.store.add("k", skip.astype(np.int32)) if skipping else None, **zeros, **p,
    )  # fmt: skip
    count = 6
    x = [rng.integers(0, top + 1, (count, n)).astype(np.uint16 if top > 255 else np.uint8) for n in widths]
    got = built.evaluate(w, *x)
    kept = w.state.copy()
    w.state.clear()
    cut = data.draw(st.integers(1, count - 1))
    parts = [built.evaluate(w, *(one[a:b] for one in x)) for a, b in ((0, cut), (cut, count))]
    assert (np.concatenate(parts) == got).all()
    assert (w.state["recurrent.0"] == kept["recurrent.0"]).all()
    names = ("q", "k", "v", "step", *(["beta"] if with_beta else []))
    d = [one.astype(int) - (zeros | p)[f"{name}_zero"] for name, one in zip(names, x, strict=True)]
    for head in range(heads):
        definition, group = Definition(p, key_dim, value_dim), head // groups
        width, of_head = steps // heads, slice(head * decays // heads, (head + 1) * decays // heads)
        scales = list(zip(multiplier[of_head].tolist(), shift[of_head].tolist(), strict=True))
        for t in range(count):
            q, k = (one[t, group * key_dim : (group + 1) * key_dim].tolist() for one in d[:2])
            v = d[2][t, head * value_dim : (head + 1) * value_dim].tolist()
            step = d[3][t, head * width : (head + 1) * width].tolist()
            beta = int(d[4][t, head]) if with_beta else None
            want = definition.token(q, k, v, step, beta, scales, int(skip[head]))
            assert got[t, head * value_dim : (head + 1) * value_dim].tolist() == want
        assert kept["recurrent.0"][head].tolist() == definition.state


def test_decay_factors_are_powers_of_two() -> None:
    """Within 2^-25 of the power, and 2^-30: all near to 1, and some of all others."""
    rng = np.random.default_rng(0)
    u = np.concatenate([np.arange(1 << 16), rng.integers(0, LONGEST_DECAY + 1, 1 << 18), [LONGEST_DECAY]])
    got = decay_factors(u) / 2.0**FACTOR_FRACTION_BITS
    real = np.exp2(-u / 2.0**24)
    assert (np.abs(got - real) <= real * 2.0**-25 + 2.0**-30).all()
    assert got[0] == 1 and got.max() == 1


BROKEN = [
    ({"key_heads": 3}, "key_heads divides heads"),
    ({"heads": 3, "key_heads": 3}, "q and k of key_heads times key_dim"),
    ({"decays": 6}, "decay_multiplier of the channels of step, or of heads times key_dim"),
    ({"step_zero": 70000}, "step_zero in the range of step"),
    ({"value_shift": 16}, r"value_shift in \[0, 15\]"),
    ({"update_shift": 48}, r"update_shift in \[0, 47\]"),
    ({"beta_zero": None}, "beta, beta_zero, beta_multiplier, beta_shift together"),
    ({"sum_shift": None}, "memory_multiplier, memory_shift, sum_shift together"),
    ({"skip_shift": 3}, "skip, skip_shift together"),
    ({"memory_multiplier": 5}, "memory_multiplier"),
    ({"sum_shift": 63}, r"sum_shift in \[0, 62\]"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_what_does_not_verify(changes: dict[str, Any], message: str) -> None:
    w = Weights()
    good: dict[str, Any] = {
        "layer": 0, "heads": 4, "key_heads": 2, "q_zero": 0, "k_zero": 0, "v_zero": 0, "step_zero": 0,
        "decay_multiplier": w.store.add("m", np.full(4, 2**30, np.int32)),
        "decay_shift": w.store.add("s", np.zeros(4, np.int8)), "beta_zero": 0, "beta_multiplier": 2**30,
        "beta_shift": 0, "sum_shift": 3, "memory_multiplier": 2**30, "memory_shift": 0, "value_shift": 8,
        "update_shift": 16, "acc_shift": 16,
    }  # fmt: skip
    types = [tensor(u16, n) for n in (10, 10, 12, 4, 4)]
    op(int_ops.LinearAttentionOp, types, tensor(s32, 12), **good)
    if "decays" in changes:
        changes = {"decay_multiplier": w.store.add("n", np.full(changes["decays"], 2**30, np.int32))}
    with pytest.raises(VerifyException, match=message):
        op(int_ops.LinearAttentionOp, types, tensor(s32, 12), **(good | changes))


# ---- how near it is to float

MODULE = """
builtin.module attributes {{mqc.level = "quant", mqc.context = 64 : i64}} {{
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x{out}xf32> {{
    {operands}
    %y = llm.linear_attention {names} {{heads = {heads}, key_heads = 1, layer = 0, delta = {delta}, rate = #mqc.weight<"rate", "0", tensor<{heads}xf32>>}} : ({types}) -> {result}
    %l = llm.linear %y {{range = array<f64: -9.0, 9.0>, weight = #mqc.weight<"w", "0", tensor<{out}x{out}xf32>>}} : ({result}) -> tensor<?x{out}xf32>
    func.return %l : tensor<?x{out}xf32>
  }}
}}
"""  # noqa: E501


RESULT = affine_range(-50.0, 50.0, 16)


def lowered(types: list[tuple[int, UniformType]], rate: Any, delta: bool) -> tuple[IntOp, CompilerContext]:
    """The integer op of operands of some widths and types, as `lower-to-int` makes it."""
    ctx, heads = CompilerContext(), len(rate)
    texts = [f"tensor<?x{n}x{kind}>" for n, kind in types]
    operands = [
        f'%{i} = llm.embedding %ids {{table = #mqc.weight<"t{i}", "0", tensor<64x{n}xf32>>}} '
        f": (tensor<?xi64>) -> {text}"
        for i, ((n, _), text) in enumerate(zip(types, texts, strict=True))
    ]
    out = types[2][0]
    module = parse_module(
        MODULE.format(
            out=out, operands="\n    ".join(operands), heads=heads, types=", ".join(texts),
            names=", ".join(f"%{i}" for i in range(len(types))),
            result=f"tensor<?x{out}x{RESULT}>", delta=int(delta),
        )
    )  # fmt: skip
    for operation in mqc_ops(module):
        for name in ("table", "weight", "rate"):
            ref = operation.properties.get(name)
            if ref is not None:
                shape = ref.shape  # type: ignore[attr-defined]
                array = np.asarray(rate, np.float32) if name == "rate" else np.ones(shape, np.float32)
                operation.properties[name] = ctx.weights.add(ref.key.data, array)  # type: ignore[attr-defined]
    Pipeline.parse("quantize-weights,lower-to-int").run(ctx, module)
    found = next(o for o in mqc_ops(module) if isinstance(o, int_ops.LinearAttentionOp))
    return found, ctx


def exact(q: Any, k: Any, v: Any, decay: Any, beta: Any, delta: bool) -> tuple[Any, float]:
    """The recurrence in float64 `[tokens, heads, value_dim]`, and the largest norm of a state's column."""
    state, largest = np.zeros((v.shape[1], k.shape[-1], v.shape[-1])), 0.0
    result = np.empty(v.shape)
    for t in range(len(v)):
        state = state * np.exp(decay[t])[:, None, None]
        written = beta[t][:, None] * (v[t] - delta * np.einsum("k,hkv->hv", k[t], state))
        state = state + k[t][None, :, None] * written[:, None]
        result[t] = np.einsum("k,hkv->hv", q[t], state)
        largest = max(largest, float(np.sqrt((state**2).sum(1)).max()))
    return result, largest


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("delta", [True, False], ids=["delta rule", "scan"])
def test_the_error_over_4096_tokens_is_bounded(delta: bool, bits: int) -> None:
    """By the bound that `StateForm.error` states; and in the mean it is about a step of 16 bits."""
    rng, key_dim, value_dim, rate = np.random.default_rng(bits), 16, 4, [0.0, 1e-4, 0.02, 3.0]
    heads = len(rate)
    q, k = (rng.standard_normal((TOKENS, key_dim)) for _ in range(2))
    q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
    v = rng.standard_normal((TOKENS, heads * value_dim))
    step, beta = rng.exponential(size=(TOKENS, heads)), rng.random((TOKENS, heads))
    given, kinds = [q, k, v, step, beta], []
    for x in given:
        kinds.append(affine_range(float(x.min()) * 1.25, float(x.max()) * 1.25, 16 if x is step else bits))
    stored = [
        np.clip(np.rint(x / kind.real_scale) + kind.zero, 0, kind.high).astype(f"uint{kind.bits}")
        for x, kind in zip(given, kinds, strict=True)
    ]
    built, ctx = lowered([(x.shape[1], kind) for x, kind in zip(given, kinds, strict=True)], rate, delta)
    w = Weights()
    w.store.update(ctx.weights)
    acc = built.evaluate(w, *stored)  # type: ignore[arg-type]
    form: StateForm = state_form(*kinds[:3], RESULT, kinds[4], delta)
    real = [(x.astype(float) - kind.zero) * kind.real_scale for x, kind in zip(stored, kinds, strict=True)]
    values = real[2].reshape(TOKENS, heads, -1)
    want, norm = exact(real[0], real[1], values, -real[3] * rate, real[4], delta)
    error = np.abs((acc * form.unit).reshape(want.shape) - want)
    strongest = np.linalg.norm(real[0], axis=1).max()
    bound = (
        strongest * TOKENS * form.error(key_dim, kinds[2], norm, float(np.abs(real[2]).max())) + form.unit / 2
    )
    assert error.max() < bound
    assert np.sqrt((error**2).mean() / (want**2).mean()) < 2.0**-14
    assert np.abs(w.state["recurrent.0"].astype(np.int64)).max() < 2**31 - 1, "it never saturates here"
