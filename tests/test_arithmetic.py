"""The integer arithmetic against definitions written with Python's unbounded integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqc.numerics import arithmetic as a

s32 = st.integers(-(2**31), 2**31 - 1)
multipliers = st.one_of(st.integers(2**30, 2**31 - 1), st.integers(-(2**31) + 1, -(2**30)), st.just(0))


def clamp32(x: int) -> int:
    return max(-(2**31), min(2**31 - 1, x))


def plain_requantize(acc: int, m: int, s: int) -> int:
    if s < 0:
        acc, s = clamp32(acc * 2**-s), 0
    t = clamp32(math.floor(Fraction(acc * m, 2**31) + Fraction(1, 2)))
    return math.floor(Fraction(t, 2**s) + Fraction(1, 2))


@given(s32, multipliers, st.integers(-31, 31))
def test_requantize(acc: int, m: int, s: int) -> None:
    assert int(a.requantize(acc, m, s)) == plain_requantize(acc, m, s)


@given(st.floats(2.0**-30, 2.0**20), s32)
def test_multiplier_is_close(real: float, acc: int) -> None:
    m, s = a.quantize_multiplier(real)
    assert 2**30 <= int(m[0]) < 2**31
    assert float(m[0]) * 2.0 ** -(31 + int(s[0])) == pytest.approx(real, rel=2.0**-31)
    if abs(acc * real) < 2**30:
        # one rounding of the product, one of the shift
        assert abs(int(a.requantize(acc, m[0], s[0])) - acc * real) <= 1.5 + abs(acc * real) * 2**-30


def test_multiplier_limits() -> None:
    m, s = a.quantize_multiplier([0.0, 2.0**-40, 1.0 - 2.0**-40, -0.75])
    assert m.tolist() == [0, 0, 2**30, -1610612736] and s.tolist() == [0, 0, -1, 0]
    for bad in (float("nan"), float("inf"), 2.0**31):
        with pytest.raises(ValueError, match="rescaling factor"):
            a.quantize_multiplier(bad)


@given(st.integers(1, 2**63 - 1))
@example(1)
@example(2**32 - 1)
@example(2**63 - 1)
def test_inverse_norm(square_sum: int) -> None:
    r, h = (int(v[0]) for v in a.inverse_norm(np.array([square_sum])))
    assert 2**30 <= r <= 2**31
    exact = Fraction(2**62, 2**h) ** 2 / square_sum  # (2^62 / 2^h / sqrt(S))²
    assert abs(Fraction(r) ** 2 / exact - 1) < Fraction(1, 2**28)


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=300), st.data())
def test_softmax_is_within_its_bound(differences: list[int], data: st.DataObject) -> None:
    differences[data.draw(st.integers(0, len(differences) - 1))] = 0  # the largest score
    visible = np.array([data.draw(st.booleans()) or d == 0 for d in differences])
    d = np.array(differences)
    p = a.softmax(d[None], visible[None])[0]
    real = np.where(visible, np.exp2(-d / 2048.0), 0)
    real = real / real.sum()
    assert np.abs(p / 2.0**15 - real).max() <= 2.0**-15
    assert p.min() >= 0 and p.max() <= 32768 and not p[~visible].any()


def test_softmax_of_a_long_tail() -> None:
    """8,191 keys at 2^-18 of the largest: their sum must not be lost."""
    d = np.full((1, 8192), 18 * 2048)
    d[0, 0] = 0
    p = a.softmax(d, np.ones_like(d, bool))
    assert abs(p[0, 0] / 2.0**15 - 1 / (1 + 8191 * 2.0**-18)) <= 2.0**-15
