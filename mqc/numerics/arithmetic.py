"""Integer arithmetic that every backend matches bit for bit, in NumPy.

All functions take and return int64 arrays (or Python integers) that hold values of the stated
narrower types, so that nothing wraps here; where the definition saturates, the function does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mqc.numerics.rotary import rope_pairs

Int = npt.NDArray[np.int64]

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

#: `int.rms_norm` and `int.layer_norm` give x / ||x|| with this many fraction bits.
NORM_FRACTION_BITS = 30
#: What `int.layer_norm` adds to it is less, so that the sum stays in s32.
NORM_BIAS_LIMIT = 2**30
#: Fraction bits that `int.layer_norm` keeps of the mean.
MEAN_FRACTION_BITS = 6
#: Fraction bits of the cosine and sine tables of `int.rope`, and of its result.
ROPE_FRACTION_BITS = 14
#: Scores enter the softmax as log2 differences to the largest, with this many fraction bits.
SCORE_FRACTION_BITS = 11
#: Fraction bits of a probability (u16, 1.0 is 32768).
PROBABILITY_FRACTION_BITS = 15
#: Operands of `int.add` are shifted left by `ADD_LEFT_SHIFT` before they are rescaled, and summed
#: with `ADD_FRACTION_BITS` fraction bits of the result's scale.
ADD_LEFT_SHIFT, ADD_FRACTION_BITS = 14, 8
#: Fraction bits of the knots of a 16-bit `int.lut`.
LUT_FRACTION_BITS = 4
#: Largest magnitude of a knot, in steps of the result: twice the range of u16, so that interpolation stays in
#: s32.
KNOT_LIMIT = 2**17


def saturate32(x: Any) -> Any:
    """Clamp to the range of s32."""
    return np.clip(x, INT32_MIN, INT32_MAX)


def shift_right_round(x: Any, shift: Any) -> Any:
    """`floor(x / 2^shift + 1/2)` for `shift >= 0`: arithmetic shift, ties towards +infinity."""
    shift = np.asarray(shift, np.int64)
    half = np.where(shift > 0, np.left_shift(np.int64(1), np.maximum(shift - 1, 0)), 0)
    return (x + half) >> shift


def requantize(acc: Any, multiplier: Any, shift: Any) -> Int:
    """Rescale s32 values by `multiplier · 2^-31 · 2^-shift`, rounding.

    docs/architecture.md, "Integer semantics", states the formula.

    Args:
        acc: s32 values.
        multiplier: s32, |multiplier| in [2^30, 2^31) or 0; negative for negative norm gains.
        shift: in [-31, 31]; a negative one is a saturating left shift before the product.

    Returns:
        s32 values before zero point and clamp.
    """
    acc = np.asarray(acc, np.int64)
    shift = np.asarray(shift, np.int64)
    left = np.maximum(-shift, 0)
    widened = saturate32(np.left_shift(acc, left))
    product = saturate32((widened * np.asarray(multiplier, np.int64) + 2**30) >> 31)
    return np.asarray(shift_right_round(product, np.maximum(shift, 0)), np.int64)


def quantize_multiplier(real: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """`(multiplier, shift)` with `real ≈ multiplier · 2^-31 · 2^-shift`, for `requantize`.

    Relative error ≤ 2^-31. Values below 2^-32 become 0. Raises `ValueError` at 2^31 and above.
    """
    real = np.atleast_1d(np.asarray(real, np.float64))
    if not np.isfinite(real).all() or (np.abs(real) >= 2.0**31).any():
        raise ValueError("a rescaling factor must be finite and below 2^31")
    mantissa, exponent = np.frexp(real)  # real = mantissa · 2^exponent, |mantissa| in [1/2, 1)
    multiplier = np.rint(mantissa * 2**31).astype(np.int64)
    overflow = np.abs(multiplier) == 2**31
    multiplier = np.where(overflow, multiplier // 2, multiplier)
    shift = -(exponent + overflow)
    tiny = shift > 31
    multiplier, shift = np.where(tiny, 0, multiplier), np.where(tiny, 0, shift)
    return multiplier.astype(np.int32), shift.astype(np.int8)


def inverse_norm(square_sum: Int) -> tuple[Int, Int]:
    """`(r, h)` with `1/sqrt(square_sum) ≈ r · 2^(h - 62)`, r in [2^30, 2^31], relative error < 2^-29.

    `square_sum` is in [1, 2^63). With e the largest even shift that keeps `square_sum << e` below
    2^64: q = floor(sqrt(square_sum << e)), r = floor(2^62 / q), h = e / 2.
    """
    r, h = np.empty_like(square_sum), np.empty_like(square_sum)
    flat_r, flat_h = r.reshape(-1), h.reshape(-1)
    for i, value in enumerate(square_sum.reshape(-1).tolist()):
        shift = (64 - value.bit_length()) & ~1
        flat_r[i], flat_h[i] = (1 << 62) // math.isqrt(value << shift), shift // 2
    return r, h


def directions(deviations: Int, epsilon: int) -> Int:
    """`2^30 · d / sqrt(Σ d² + epsilon)` along the last axis, s32: `inverse_norm`, rounded."""
    square_sum = (deviations * deviations).sum(-1, keepdims=True) + epsilon
    r, h = inverse_norm(square_sum)
    return np.asarray(shift_right_round(deviations * r, 62 - NORM_FRACTION_BITS - h), np.int64)


def deviations_from_mean(x: Int) -> Int:
    """`64·x − round(64·mean(x))` along the last axis, for x ≥ 0."""
    count, one = x.shape[-1], 1 << MEAN_FRACTION_BITS
    mean = (2 * one * x.sum(-1, keepdims=True) + count) // (2 * count)
    return np.asarray(x * one - mean, np.int64)


def addend_of_directions(factor: Any, addend: Any) -> tuple[Any, Any, Any]:
    """`(bias, bias_shift, unit)` of channels, with which a direction d becomes `factor·2^-30·d + addend`:
    `unit·(shift_right_round(d, bias_shift) + bias)`.

    Each channel gets the shift that keeps its bias below 2^30, so that the sum stays in s32. A factor below
    2^-29 of its addend is taken for that. Error: 2^-30 of |factor| + |addend|.
    """
    factor, addend = np.asarray(factor, np.float64), np.asarray(addend, np.float64)
    factor = np.copysign(np.maximum(np.abs(factor), np.abs(addend) * 2.0**-29), factor)
    ratio = np.divide(addend, factor, out=np.zeros_like(addend), where=factor != 0)
    shift = np.maximum(np.frexp(ratio)[1], 0)
    bias = np.rint(np.ldexp(ratio, NORM_FRACTION_BITS - shift))
    most = NORM_BIAS_LIMIT - 1
    return (
        np.clip(bias, -most, most).astype(np.int32),
        shift.astype(np.int8),
        np.ldexp(factor, shift - NORM_FRACTION_BITS),
    )


def rotate(d: Int, cos: Int, sin: Int, interleaved: bool) -> Int:
    """Rotary embedding of `[tokens, heads, head_dim]` by tables `[tokens, 1, pairs]` with 14 fraction bits,
    which the result keeps; lanes past the pairs are shifted only."""
    first, second = rope_pairs(d.shape[-1], 2 * cos.shape[-1], interleaved)
    y = d << ROPE_FRACTION_BITS
    y[..., first] = d[..., first] * cos - d[..., second] * sin
    y[..., second] = d[..., second] * cos + d[..., first] * sin
    return y


def interpolate(x: Int, knots: Int, segment_bits: int) -> Int:
    """Linear interpolation between `knots` (4 fraction bits), one each 2^segment_bits values of x."""
    index, rest = x >> segment_bits, x & ((1 << segment_bits) - 1)
    y = knots[index] * ((1 << segment_bits) - rest) + knots[index + 1] * rest
    return np.asarray(shift_right_round(y, segment_bits + LUT_FRACTION_BITS), np.int64)


def rescaled_sum(*terms: tuple[Int, int, int]) -> Int:
    """Sum of `(d, multiplier, shift)` terms, each rescaled to 2^-8 of the result's step; rounded."""
    total = sum(requantize(d << ADD_LEFT_SHIFT, multiplier, shift) for d, multiplier, shift in terms)
    return np.asarray(shift_right_round(total, ADD_FRACTION_BITS), np.int64)


#: 2^-f for f = 0, 1/2048, …, 2047/2048 with 30 fraction bits, correctly rounded.
EXP2_TABLE: Int = np.rint(
    np.exp2(-np.arange(1 << SCORE_FRACTION_BITS) / (1 << SCORE_FRACTION_BITS)) * 2.0**30
).astype(np.int64)


def softmax(differences: Int, visible: npt.NDArray[np.bool_]) -> Int:
    """Probabilities (u16, 15 fraction bits) along the last axis; hidden entries get 0.

    `differences` are u16: log2 of (largest / this), 11 fraction bits. An entry is
    `EXP2_TABLE[low 11 bits] >> high 5 bits`; the sum's top 31 bits `t` (shift `k`) give the
    reciprocal `R = floor(2^61 / t)`, and p = (entry · R + 2^(45+k)) >> (46 + k).
    Each is within 2^-15 of the real softmax of the same differences.
    """
    mask = (1 << SCORE_FRACTION_BITS) - 1
    exps = np.where(visible, EXP2_TABLE[differences & mask] >> (differences >> SCORE_FRACTION_BITS), 0)
    total = exps.sum(-1, keepdims=True)
    # total is in [2^30, 2^47): its bit length is exact in float64.
    k = np.frexp(total.astype(np.float64))[1].astype(np.int64) - 31
    k = np.maximum(k, 0)
    reciprocal = (np.int64(1) << 61) // (total >> k)
    return (exps * reciprocal + (np.int64(1) << (45 + k))) >> (46 + k)
