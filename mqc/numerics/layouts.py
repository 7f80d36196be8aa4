"""Memory layouts of weight matrices: how a backend wants `[outputs, inputs]` s8 to be stored.

`n16k4`     s8 `[N/16, K/4, 16, 4]`: four consecutive inputs of sixteen outputs fill 64 bytes, the
            operand of one 512-bit dot-product instruction.
`n16k4.s4`  u8 `[N/16, K/4, 32]`: the same 64 values as 4-bit two's complement; byte i holds
            value i in its low half and value i + 32 in its high half.
`kn`        s8 `[K, N]`: transposed, the second operand of an ONNX matrix product.
`kn.s4`     u8 `[ceil(K·N / 2)]`: the values of `kn` in C order as 4-bit two's complement, two a byte,
            the first in the low half: an ONNX INT4 tensor.

`records…`  u8 `[ceil(N / 32), bytes]`: for HVX, with the parameters of each output
            (`mqc.numerics.htp_tiles`); `.s4` 4-bit, `.gG` with factors for groups of G inputs.

The `n16k4` layouts pad N to a multiple of 16 and K to a multiple of 4 with zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mqc.arrays import Array
from mqc.numerics.htp_tiles import Records
from mqc.numerics.nibbles import join_nibbles, split_nibbles

#: Inputs per factor of 4-bit records.
_GROUPS = {"records.s4": 0, "records.s4.g32": 32, "records.s4.g64": 64, "records.s4.g128": 128}
#: Bits of a weight in each layout.
LAYOUTS = {"n16k4": 8, "n16k4.s4": 4, "kn": 8, "kn.s4": 4, "records": 8, **dict.fromkeys(_GROUPS, 4)}
#: Those whose elements are the weights themselves; the others' are bytes.
S8_LAYOUTS = ("n16k4", "kn")


def packed_shape(layout: str, n: int, k: int) -> tuple[int, ...]:
    """Shape of a matrix of `n` outputs and `k` inputs in a layout. Raises `ValueError`."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
    if layout.startswith("records"):
        return records(layout, n, k).shape
    if layout.startswith("kn"):
        return (k, n) if layout == "kn" else (-(-k * n // 2),)
    blocks = (-(-n // 16), -(-k // 4))
    return (*blocks, 16, 4) if layout == "n16k4" else (*blocks, 32)


def records(layout: str, n: int, k: int) -> Records:
    """The sizes of a matrix in a `records` layout. Raises `ValueError` for groups that it has none for."""
    if layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout}")
    return Records(n, k, LAYOUTS[layout], _GROUPS.get(layout, 0))


def pack(weight: Array, layout: str) -> Array:
    """`[N, K]` s8 in the given layout. One copy of the matrix.

    Raises `ValueError` for `records`: they hold parameters too; `Records.pack` makes them.
    """
    if layout.startswith("records"):
        raise ValueError(f"layout {layout} holds more than weights; use mqc.numerics.htp_tiles.Records.pack")
    n, k = weight.shape
    shape = packed_shape(layout, n, k)
    if layout == "kn":
        return np.ascontiguousarray(weight.T)
    if layout == "kn.s4":
        flat = np.zeros(2 * shape[0], np.int8)
        flat[: n * k] = weight.T.reshape(-1)
        return join_nibbles(flat[0::2], flat[1::2])
    padded = weight
    if n % 16 or k % 4:
        padded = np.zeros((-(-n // 16) * 16, -(-k // 4) * 4), np.int8)
        padded[:n, :k] = weight
    blocks = padded.reshape(padded.shape[0] // 16, 16, padded.shape[1] // 4, 4).transpose(0, 2, 1, 3)
    blocks = np.ascontiguousarray(blocks)
    if layout == "n16k4":
        return blocks
    values = blocks.reshape(*blocks.shape[:2], 64)
    packed = join_nibbles(values[..., :32], values[..., 32:])
    assert packed.shape == shape
    return packed


def unpack(packed: Array, layout: str, n: int, k: int) -> Array:
    """Inverse of `pack` for a matrix of `n` outputs and `k` inputs."""
    if layout.startswith("records"):
        return records(layout, n, k).weights(packed)
    if layout == "kn":
        return packed.T
    blocks: Any = packed
    if layout.endswith(".s4"):
        halves = split_nibbles(packed)
        if layout == "kn.s4":
            return np.stack(halves, -1).reshape(-1)[: n * k].reshape(k, n).T
        blocks = np.concatenate(halves, -1).reshape(*packed.shape[:2], 16, 4)
    matrix = blocks.transpose(0, 2, 1, 3).reshape(blocks.shape[0] * 16, blocks.shape[1] * 4)
    result: Array = matrix[:n, :k]
    return result
