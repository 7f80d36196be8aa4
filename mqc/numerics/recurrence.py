"""Integer arithmetic of linear attention with a state, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from mqc.numerics.arithmetic import EXP2_TABLE, SCORE_FRACTION_BITS, Int, shift_right_round

#: How much a state forgets enters as octaves with this many fraction bits, at most `LONGEST_DECAY`.
DECAY_FRACTION_BITS = 24
LONGEST_DECAY = 32 << DECAY_FRACTION_BITS
#: Fraction bits of what is left of a state (s32, 1.0 is 2^30).
FACTOR_FRACTION_BITS = 30
#: Fraction bits of beta.
BETA_FRACTION_BITS = 24
#: Bits between two entries of `EXP2_TABLE`, and ln 2 with 17 fraction bits, the slope there.
_REST_BITS = DECAY_FRACTION_BITS - SCORE_FRACTION_BITS
_SLOPE, _SLOPE_BITS = 90852, 17


def decay_factors(octaves: Int) -> Int:
    """2^-octaves with 30 fraction bits, of octaves in [0, `LONGEST_DECAY`].

    From the nearest entry of `EXP2_TABLE` on along its tangent: with n = (u + 2^12) >> 13, r = u − (n << 13),
    t = EXP2_TABLE[n mod 2^11], it is shift_right_round(t − shift_right_round(t · 90852 · r, 41), n >> 11).
    The error is below 2^-25 of the factor plus 2^-30.
    """
    n = (octaves + (1 << (_REST_BITS - 1))) >> _REST_BITS
    rest = octaves - (n << _REST_BITS)
    entry = EXP2_TABLE[n & ((1 << SCORE_FRACTION_BITS) - 1)]
    below = shift_right_round(entry * (_SLOPE * rest), DECAY_FRACTION_BITS + _SLOPE_BITS)
    return np.asarray(shift_right_round(entry - below, n >> SCORE_FRACTION_BITS), np.int64)


def per_head(x: Any, heads: int, groups: int) -> Any:
    """`[tokens, heads · width]` as `[tokens, heads · groups, width]`: consecutive heads share one."""
    return x.reshape(len(x), heads, -1).repeat(groups, 1)
