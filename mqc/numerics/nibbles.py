"""4-bit two's complement values, two a byte."""

from __future__ import annotations

import numpy as np

from mqc.arrays import Array


def join_nibbles(low: Array, high: Array) -> Array:
    """u8: the low four bits of `low` in the low halves, those of `high` in the high halves."""
    joined: Array = (low.view(np.uint8) & 15) | (high.view(np.uint8) << 4)
    return joined


def split_nibbles(packed: Array) -> tuple[Array, Array]:
    """s8 values of the low and of the high halves of u8 `packed`. Inverse of `join_nibbles`."""
    low, high = ((((part ^ 8) - 8).view(np.int8)) for part in (packed & 15, packed >> 4))
    return low, high
