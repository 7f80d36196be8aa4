"""Tables for functions of one quantized value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mqc.arrays import Array
from mqc.dialects.quant import UniformType
from mqc.errors import PassError
from mqc.numerics import arithmetic

Function = Callable[[torch.Tensor], torch.Tensor]


def exact(function: Function, x: UniformType, y: UniformType, inputs: Array) -> Array:
    """`function` of stored inputs, in steps of `y` with its zero point, not rounded, float64.

    Raises `PassError` if it has no value at one.
    """
    real = torch.from_numpy((inputs.astype(np.float64) - x.zero) * x.real_scale)
    result: Array = function(real).numpy() / y.real_scale + y.zero
    if not np.isfinite(result).all():
        worst = float(real[~np.isfinite(result)][0])
        raise PassError(f"an elementwise function has no value at {worst:g}, which is within the range seen")
    return result


def table_of_256(function: Function, x: UniformType, y: UniformType) -> Array:
    """Correctly rounded result for each of the 256 stored values of `x`: `[256]`, y's dtype."""
    values = np.rint(exact(function, x, y, np.arange(256)))
    result: Array = np.clip(values, y.low, y.high).astype(f"uint{y.bits}")
    return result


def interpolation_table(function: Function, x: UniformType, y: UniformType) -> tuple[Array, int]:
    """Knots (s32, 4 fraction bits) and segment bits for a 16-bit input (`int.lut`).

    The widest segments whose result, for all 65,536 inputs, is within one step of the correctly
    rounded one.
    """
    inputs = np.arange(1 << 16)
    wanted = np.clip(np.rint(exact(function, x, y, inputs)), y.low, y.high)
    one = 1 << arithmetic.LUT_FRACTION_BITS
    for bits in range(8, -1, -1):
        places = np.arange((1 << (16 - bits)) + 1) << bits
        values = np.clip(exact(function, x, y, places), -arithmetic.KNOT_LIMIT, arithmetic.KNOT_LIMIT)
        knots = np.rint(values * one).astype(np.int64)
        index, rest = inputs >> bits, inputs & ((1 << bits) - 1)
        line = knots[index] * ((1 << bits) - rest) + knots[index + 1] * rest
        got = arithmetic.shift_right_round(line, bits + arithmetic.LUT_FRACTION_BITS)
        if np.abs(np.clip(got, y.low, y.high) - wanted).max() <= 1:
            break
    return knots.astype(np.int32), bits
