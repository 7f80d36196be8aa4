"""Which channels of a head rotate together under rotary position embedding."""

from __future__ import annotations

import numpy as np

from mqc.arrays import Array


def rope_pairs(head_dim: int, rotary_dim: int, interleaved: bool) -> tuple[Array, Array]:
    """First and second channel of each pair: (i, i + rotary_dim/2), or (2i, 2i + 1) interleaved.

    Channels from `rotary_dim` to `head_dim` are in no pair.
    """
    half = np.arange(rotary_dim // 2)
    return (2 * half, 2 * half + 1) if interleaved else (half, half + rotary_dim // 2)
