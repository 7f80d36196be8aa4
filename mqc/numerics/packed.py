"""Integers of few bits, packed one behind the other."""

from __future__ import annotations

import numpy as np

from mqc.arrays import Array


def unpacked(words: Array, bits: int, count: int) -> Array:
    """u8 `[rows, count]`: the first `count` integers of 1 to 8 bits in s32 `[rows, words]`, lowest bits
    first; an integer may begin in one word and end in the next."""
    data = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        whole = ((data[:, :, None] >> shifts) & ((1 << bits) - 1)).reshape(len(data), -1)
        found: Array = whole[:, :count]
        return found
    single = np.unpackbits(data, axis=1, count=count * bits, bitorder="little").reshape(
        len(data), count, bits
    )
    return np.asarray(np.packbits(single, axis=2, bitorder="little")[:, :, 0])
