"""As `op_cases`, for linear attention with a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.dialects import int_ops
from mqc.ir.op import s32, tensor, u8, u16
from tests.backends.op_cases import Lab


def linear_attention(
    x: Any, out: Any, heads: int, key_heads: int, key_dim: int, value_dim: int, beta: Any = None,
    delta: bool = True, by_channel: bool = False, full: bool = False, apart: bool = False,
) -> Callable[[Lab], ModuleOp]:  # fmt: skip
    """x: elements of queries, keys and values; beta: of beta, None without. by_channel: steps of key
    channels; apart: decays of key channels, of which a head's share a step. full: so that states saturate."""

    def build(lab: Lab) -> ModuleOp:
        reach, value_shift = (8, 12) if x == u8 else (16, 8)
        steps = heads * key_dim if by_channel else heads
        decays = heads * key_dim if apart else steps
        operands = [lab.activation(x, n) for n in (key_heads * key_dim,) * 2 + (heads * value_dim,)]
        operands.append(lab.activation(u16, steps))
        more: dict[str, Any] = {}
        sums = {u8: 3, u16: 15}[x]  # so that 33 products fill the state
        update = (max(sums - 11, 0) if delta else sums) - (3 if full else 0)
        if beta is not None:
            operands.append(lab.activation(beta, heads))
            more = {
                "beta_zero": lab.zero(beta), **lab.scalar("beta_", *((-15, -12) if beta == u8 else (-7, -4))),
            }  # fmt: skip
        if delta:
            more |= {"sum_shift": reach - 2, **lab.scalar("memory_", 1, 7)}
        else:
            skip = lab.rng.integers(-(2**30), 2**30, heads)
            more |= {"skip": lab.weight(skip, np.int32), "skip_shift": 16}
        acc = lab.add(
            int_ops.LinearAttentionOp, operands, tensor(s32, heads * value_dim), layer=0, heads=heads,
            key_heads=key_heads, q_zero=lab.zero(x), k_zero=lab.zero(x), v_zero=lab.zero(x),
            step_zero=int(lab.rng.choice([0, 30000])),
            decay_multiplier=lab.weight(lab.rng.integers(2**30, 2**31, decays), np.int32),
            decay_shift=lab.weight(lab.rng.integers(-10, 3, decays), np.int8), value_shift=value_shift,
            update_shift=max(update, 0), acc_shift=reach, **more,
        )  # fmt: skip
        return lab.finish(lab.requant(acc, out, 29))

    return build


RECURRENT_CASES: dict[str, Callable[[Lab], ModuleOp]] = {
    "delta-rule": linear_attention(u16, u16, 4, 2, 8, 6, u16),
    "delta-rule-u8": linear_attention(u8, u8, 3, 3, 16, 70, u8),
    "delta-rule-by-channel": linear_attention(u16, u8, 2, 2, 33, 64, u16, by_channel=True),
    "delta-rule-full": linear_attention(u16, u16, 2, 1, 20, 17, u8, full=True),
    "scan": linear_attention(u16, u16, 6, 1, 8, 16, delta=False),
    "scan-steps": linear_attention(u16, u8, 4, 2, 8, 6, u16, delta=False),
    "scan-decays": linear_attention(u16, u16, 37, 1, 6, 1, u16, delta=False, apart=True),
    "scan-u8": linear_attention(u8, u16, 1, 1, 5, 130, delta=False),
    "scan-full": linear_attention(u16, u8, 1, 1, 12, 3, delta=False, full=True),
}
