"""Choosing experts and multiplying with their matrices, against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.utils.exceptions import VerifyException

from mqc.analysis.proofs import accumulator_bound
from mqc.dialects import int_ops, llm
from mqc.ir.op import s32, tensor, u8, u16
from tests.dialects.test_int_ops import Weights, op

SEED = st.integers(0, 2**32 - 1)


def first_largest(values: list[int], count: int) -> list[int]:
    """Places of the largest values, of equal ones the first."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


@given(st.data(), SEED)
@settings(max_examples=60)
def test_route_is_the_plain_choice(data: st.DataObject, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    kept, scores = data.draw(st.integers(1, groups)), data.draw(st.integers(1, size))
    top_k = data.draw(st.integers(1, kept * size))
    normalization = data.draw(st.sampled_from(["none", "sum"]))
    zero, spread = int(rng.integers(0, 100)), data.draw(st.sampled_from([3, 200, 60000]))
    w, n = Weights(), groups * size
    bias = rng.integers(-spread, spread, n).astype(np.int32)
    route = op(
        int_ops.RouteOp, [tensor(u16, n)], tensor(s32, n), x_zero=zero, top_k=top_k, shares=0,
        normalization=normalization, groups=groups, top_groups=kept, group_scores=scores,
        bias=w.store.add("b", bias), score_multiplier=2**30, score_shift=0,
    )  # fmt: skip
    x = rng.integers(0, spread, (4, n)).astype(np.uint16)
    got = route.evaluate(w, x)
    for t in range(4):
        d = [int(v) - zero for v in x[t]]
        choice = [v + int(b) for v, b in zip(d, bias, strict=True)]
        sums = [sum(sorted(choice[g * size : (g + 1) * size])[-scores:]) for g in range(groups)]
        allowed = [i for g in first_largest(sums, kept) for i in range(g * size, (g + 1) * size)]
        allowed.sort()
        chosen = [allowed[i] for i in first_largest([choice[i] for i in allowed], top_k)]
        total = sum(max(d[i], 0) for i in chosen)
        for i in range(n):
            want = d[i] if i in chosen else 0
            if normalization == "sum":
                want = (max(want, 0) << 30) // total if total else 0
            assert got[t, i] == want


@pytest.mark.parametrize("shares", [0, 1])
def test_route_is_close_to_the_real_softmax(shares: int) -> None:
    rng, n = np.random.default_rng(0), 16
    step = 1 / 2048
    properties = {"top_k": 4, "shares": shares, "normalization": "none" if shares else "softmax"}
    groups = {"groups": 1, "top_groups": 1, "group_scores": 1}
    factor = step * np.log2(np.e) * 2**11
    route = op(
        int_ops.RouteOp, [tensor(u16, n)], tensor(s32, n), x_zero=32768, score_shift=-1,
        score_multiplier=round(factor * 2**30), **properties, **groups,
    )  # fmt: skip
    real = op(llm.RouteOp, [tensor_of_floats(n)], tensor_of_floats(n), **properties, **groups)
    x = rng.integers(20000, 45000, (50, n)).astype(np.uint16)
    scores = torch.from_numpy((x.astype(np.float32) - 32768) * step)
    want = real.compute(None, scores).numpy()
    assert np.abs(route.evaluate(Weights(), x) / 2**15 - want).max() < 2**-11


def tensor_of_floats(n: int) -> Any:
    from xdsl.dialects.builtin import f32

    return tensor(f32, n)


@given(st.integers(0, 1), st.integers(1, 4), st.integers(1, 6), st.integers(1, 7), st.booleans(), SEED)
@settings(max_examples=60)
def test_products_of_experts_are_plain_sums(
    axis: int, experts: int, inputs: int, outputs: int, wide: bool, seed: int
) -> None:
    rng, w = np.random.default_rng(seed), Weights()
    rows, columns = (experts * outputs, inputs) if axis == 0 else (outputs, experts * inputs)
    x_type, top = (u16, 65535) if wide else (u8, 255)
    weight = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
    bias = rng.integers(-(2**20), 2**20, rows).astype(np.int32)
    zero, shift, none = int(rng.integers(0, top + 1)), int(rng.integers(0, 4)), int(rng.integers(0, 2))
    linear = op(
        int_ops.LinearOp, [tensor(x_type, columns), tensor(u8, experts)], tensor(s32, rows), x_zero=zero,
        weight=w.store.add("w", weight), weight_bits=8, bias=w.store.add("b", bias), acc_shift=shift,
        gates_zero=none, expert_axis=axis,
    )  # fmt: skip
    x = rng.integers(0, top + 1, (3, columns)).astype(np.uint16 if wide else np.uint8)
    gates = rng.integers(0, 2, (3, experts)).astype(np.uint8)
    got = linear.evaluate(w, x, gates)
    for t in range(3):
        for j in range(rows):
            read = (
                range(columns) if axis == 0 else [k for k in range(columns) if gates[t, k // inputs] != none]
            )
            total = sum((int(x[t, k]) - zero) * int(weight[j, k]) for k in read) + int(bias[j])
            if axis == 0 and gates[t, j // outputs] == none:
                total = 0
            assert got[t, j] == (total + ((1 << shift) >> 1)) >> shift


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 255), st.data(), SEED)
@settings(max_examples=60)
def test_bound_of_chosen_blocks_is_attained(
    blocks: int, size: int, zero: int, data: st.DataObject, seed: int
) -> None:
    rng, chosen = np.random.default_rng(seed), data.draw(st.integers(1, blocks))
    weight = rng.integers(-128, 128, (3, blocks * size)).astype(np.int8)
    bias = rng.integers(-1000, 1000, 3)
    bound = accumulator_bound(weight, bias, -zero, 255 - zero, blocks, chosen)
    for j in range(3):
        parts = weight[j].astype(int).reshape(blocks, size)
        most = sorted(sum(max(-zero * v, (255 - zero) * v) for v in part) for part in parts.tolist())
        least = sorted(sum(min(-zero * v, (255 - zero) * v) for v in part) for part in parts.tolist())
        ends = sum(most[-chosen:]) + int(bias[j]), sum(least[:chosen]) + int(bias[j])
        assert bound[j] == max(map(abs, ends))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"top_k": 0}, "top_k"), ({"top_k": 5}, "top_k"), ({"groups": 3}, "groups divide"),
        ({"top_groups": 3}, "top_groups"), ({"group_scores": 3}, "group_scores"),
        ({"shares": 1, "normalization": "softmax"}, "softmax once"),
        ({"normalization": "most"}, "normalization"),
        ({"score_multiplier": -(2**30)}, "not negative"), ({"x_zero": 256}, "x_zero"),
    ],
)  # fmt: skip
def test_routes_that_make_no_sense_are_refused(changes: dict[str, Any], told: str) -> None:
    good = {
        "x_zero": 0, "top_k": 2, "shares": 0, "normalization": "none", "groups": 2, "top_groups": 1,
        "group_scores": 2, "score_multiplier": 2**30, "score_shift": 0,
    }  # fmt: skip
    op(int_ops.RouteOp, [tensor(u8, 4)], tensor(s32, 4), **good)
    with pytest.raises(VerifyException, match=told):
        op(int_ops.RouteOp, [tensor(u8, 4)], tensor(s32, 4), **{**good, **changes})


@pytest.mark.parametrize(
    ("gates", "changes", "told"),
    [
        (3, {}, "gates divide"), (None, {}, "together"), (2, {"expert_axis": 2}, "expert_axis 0 or 1"),
        (2, {"gates_zero": 256}, "gates_zero"), (2, {"gates_zero": None}, "together"),
    ],
)  # fmt: skip
def test_gates_that_fit_no_matrix_are_refused(gates: int | None, changes: dict[str, Any], told: str) -> None:
    w = Weights()
    properties = {
        "weight": w.store.add("w", np.zeros((4, 6), np.int8)), "weight_bits": 8, "x_zero": 0, "acc_shift": 0,
        "bias": w.store.add("b", np.zeros(4, np.int32)), "gates_zero": 0, "expert_axis": 0, **changes,
    }  # fmt: skip
    operands = [tensor(u8, 6), *([] if gates is None else [tensor(u8, gates)])]
    with pytest.raises(VerifyException, match=told):
        op(int_ops.LinearOp, operands, tensor(s32, 4), **properties)
