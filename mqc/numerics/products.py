"""What a product with constant integer weights takes besides the sums of products."""

from __future__ import annotations

import numpy as np

from mqc.arrays import Array

#: Input channels that can share a factor of 4-bit weights; 0 for none.
GROUPS = (0, 32, 64, 128)


def per_input(groups: Array, inputs: int) -> Array:
    """`[outputs, groups]` spread to `[outputs, inputs]`: each group's entry for each of its inputs."""
    spread: Array = np.repeat(groups, inputs // groups.shape[1], 1)
    return spread


def effective_weight(weight: Array, factor: Array | None) -> Array:
    """s8 `[outputs, inputs]`: 4-bit weights times the u8 factor of their group (1…16), if there are any."""
    return weight if factor is None else weight * per_input(factor.astype(np.int8), weight.shape[1])


def row_sums(weight: Array, experts: int | None = None) -> Array:
    """s32 `[outputs]`: Σw of each row of s8 `[outputs, inputs]`; or of each of equal blocks of its columns,
    `[outputs, experts]`."""
    blocks = weight if experts is None else weight.reshape(len(weight), experts, -1)
    sums: Array = blocks.sum(-1, dtype=np.int32)
    return sums


def correction(bias: Array, x_zero: int, sums: Array) -> Array:
    """s64 `[outputs]`: what Σ x·w lacks of Σ (x − x_zero)·w + bias, that is bias − x_zero · Σw."""
    result: Array = bias.astype(np.int64) - x_zero * sums.astype(np.int64)
    return result
