"""As `op_cases`, for what only some backends have: experts, sinks, keys in parts, values of any width, norms
with a bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.dialects import int_ops
from mqc.ir.op import s32, tensor, u8, u16
from tests.backends.op_cases import Lab, attention, norm


def routed(
    lab: Lab, x: Any, experts: int, top_k: int, normalization: str = "softmax", shares: int = 0,
    groups: tuple[int, int, int] = (1, 1, 1), bias: bool = False,
) -> Any:  # fmt: skip
    """Accumulators of a choice among experts; groups: how many, how many are kept, and scores of each."""
    magnitude = {u8: 40, u16: 9000}[x] if not shares else 4000
    return lab.add(
        int_ops.RouteOp, [lab.activation(x, experts)], tensor(s32, experts), x_zero=lab.zero(x), top_k=top_k,
        shares=shares, normalization=normalization, groups=groups[0], top_groups=groups[1],
        group_scores=groups[2], **lab.scalar("score_", *((-6, -3) if x == u8 else (2, 5))),
        bias=lab.weight(lab.rng.integers(-magnitude, magnitude, experts), np.int32) if bias else None,
    )  # fmt: skip


def route(x: Any, out: Any, experts: int, top_k: int, *options: Any, bits: int) -> Callable[[Lab], ModuleOp]:
    """bits: of the weights that it gives."""

    def build(lab: Lab) -> ModuleOp:
        return lab.finish(lab.requant(routed(lab, x, experts, top_k, *options), out, bits))

    return build


def gate(x: Any, gates: Any, out: Any, blocks: int, size: int) -> Callable[[Lab], ModuleOp]:
    def build(lab: Lab) -> ModuleOp:
        shift = 2 if x == gates == u16 else 0
        acc = lab.add(
            int_ops.GateOp, [lab.activation(x, blocks * size), lab.activation(gates, blocks)],
            tensor(s32, blocks * size), x_zero=lab.zero(x), gates_zero=lab.zero(gates), acc_shift=shift,
        )  # fmt: skip
        return lab.finish(lab.requant(acc, out, 29 if x == gates else 23))

    return build


def experts(
    x: Any, out: Any, axis: int, inputs: int, outputs: int, bits: int = 8, group: int = 0
) -> Callable[[Lab], ModuleOp]:
    """inputs, outputs: of each of five experts, of which a token takes two."""

    def build(lab: Lab) -> ModuleOp:
        count = 5
        rows, columns = (count * outputs, inputs) if axis == 0 else (outputs, count * inputs)
        weights = routed(lab, u16, count, 2)
        gates = lab.add(
            int_ops.RequantOp, [weights], tensor(u16, count), zero_point=7,
            multiplier=lab.weight([2**30], np.int32), shift=lab.weight([-1], np.int8),
        )  # fmt: skip
        low, high = (-128, 128) if bits == 8 else (-8, 8)
        weight = lab.rng.integers(low, high, (rows, columns))
        scale = lab.weight(lab.rng.integers(1, 17, (rows, columns // group)), np.uint8) if group else None
        acc = lab.add(
            int_ops.LinearOp, [lab.activation(x, columns), gates], tensor(s32, rows), x_zero=lab.zero(x),
            weight=lab.weight(weight, np.int8), weight_bits=bits, group_scale=scale,
            bias=lab.weight(lab.rng.integers(-(2**20), 2**20, rows), np.int32),
            acc_shift=0 if x == u8 else 3, gates_zero=7, expert_axis=axis,
        )  # fmt: skip
        return lab.finish(lab.requant(acc, out, (15 if bits == 4 else 19) + (5 if x == u16 else 0)))

    return build


def convolution(x: Any, out: Any, width: int, taps: int) -> Callable[[Lab], ModuleOp]:
    def build(lab: Lab) -> ModuleOp:
        weight = lab.rng.integers(-(2**15), 2**15, (width, taps))
        weight[0], weight[-1] = -(2**15), 2**15 - 1  # the largest sums
        reach, shift = (23, 0) if x == u8 else (31, 1 + taps.bit_length())
        acc = lab.add(
            int_ops.CausalConvOp, [lab.activation(x, width)], tensor(s32, width), layer=0,
            weight=lab.weight(weight, np.int16), x_zero=lab.zero(x), acc_shift=shift,
            bias=lab.weight(lab.rng.integers(-(2**20), 2**20, width), np.int32),
        )  # fmt: skip
        return lab.finish(lab.requant(acc, out, reach - shift))

    return build


def join(x: Any, y: Any, out: Any) -> Callable[[Lab], ModuleOp]:
    def build(lab: Lab) -> ModuleOp:
        wide = {u8: 0, u16: 8}
        value = lab.add(
            int_ops.JoinOp, [lab.activation(x, 21), lab.activation(y, 13)], tensor(out, 77),
            index=lab.weight(lab.rng.integers(0, 34, 77), np.int32), a_zero=lab.zero(x), b_zero=lab.zero(y),
            zero_point=lab.zero(out), **lab.scalar("a_", wide[x] - wide[out] - 1, wide[x] - wide[out] + 2),
            **lab.scalar("b_", wide[y] - wide[out] - 1, wide[y] - wide[out] + 2),
        )  # fmt: skip
        return lab.finish(value)

    return build


ROUTED_CASES: dict[str, Callable[[Lab], ModuleOp]] = {
    "layer-norm-bias": norm(int_ops.LayerNormOp, u16, u16, 75, bias=True),
    "layer-norm-bias-heads": norm(int_ops.LayerNormOp, u8, u8, 144, groups=2, bias=True),
    "attention-narrow-values": attention(u8, 6, 2, 24, prefix=2, value_dim=14),
    "attention-wide-values": attention(u16, 4, 4, 12, value_dim=40),
    "join-u8-u8": join(u8, u8, u8),
    "join-u16-u8": join(u16, u8, u16),
    "join-u8-u16": join(u8, u16, u8),
    "join-u16-u16": join(u16, u16, u8),
    "attention-softcap": attention(u8, 6, 2, 16, softcap=50.0),
    "attention-softcap-window": attention(u16, 5, 1, 20, window=5, prefix=2, softcap=300.0),
    "attention-sinks": attention(u8, 6, 2, 16, sinks=True),
    "attention-sinks-window": attention(u16, 5, 1, 20, window=5, prefix=2, sinks=True),
    "attention-chunks": attention(u8, 6, 2, 16, chunk=7),
    "attention-chunks-window": attention(u16, 5, 1, 20, window=5, chunk=8, prefix=2),
    "attention-key-bias": attention(u8, 6, 2, 16, key_bias=True),
    "attention-key-bias-window": attention(u16, 5, 1, 20, window=5, prefix=2, key_bias=True),
    "route-softmax": route(u16, u16, 9, 3, bits=15),
    "route-ties": route(u8, u8, 40, 8, bits=14),
    "route-none-bias": route(u16, u16, 12, 4, "none", 0, (1, 1, 1), True, bits=16),
    "route-shares": route(u16, u8, 16, 4, "none", 1, bits=13),
    "route-shares-sum-bias": route(u16, u16, 16, 4, "sum", 1, (1, 1, 1), True, bits=29),
    "route-sum-groups": route(u16, u16, 24, 5, "sum", 0, (4, 2, 2), True, bits=29),
    "route-softmax-groups": route(u8, u16, 12, 2, "softmax", 0, (6, 3, 1), bits=15),
    "gate-u8-u16": gate(u8, u16, u16, 5, 21),
    "gate-u16-u16": gate(u16, u16, u8, 3, 70),
    "gate-one-block": gate(u16, u8, u16, 1, 77),
    "convolution": convolution(u16, u16, 83, 3),
    "convolution-u8": convolution(u8, u8, 64, 4),
    "convolution-one-tap": convolution(u16, u8, 21, 1),
    "convolution-long": convolution(u8, u16, 17, 50),
    "experts-outputs": experts(u8, u8, 0, 64, 32),
    "experts-outputs-odd": experts(u8, u16, 0, 37, 21),
    "experts-outputs-u16": experts(u16, u8, 0, 53, 47),
    "experts-inputs": experts(u8, u8, 1, 32, 48),
    "experts-inputs-odd": experts(u8, u16, 1, 13, 21),
    "experts-inputs-u16": experts(u16, u16, 1, 27, 130),
    "experts-outputs-s4-groups": experts(u8, u16, 0, 64, 24, bits=4, group=32),
    "experts-inputs-s4-groups": experts(u16, u8, 1, 64, 40, bits=4, group=32),
    "experts-inputs-s4": experts(u8, u8, 1, 9, 83, bits=4),
}
