"""Records: how the weights of a matrix product lie in memory for HVX.

A matrix `[N, K]` is `ceil(N / 32)` records, one for 32 outputs, of bytes in this order:

- s32 `correction_low[32]` and `correction_high[32]`: bias - x_zero * (sum of weights), split as
  `256 * high + low` with low in [0, 255] for u16 inputs, high = 0 for u8 inputs
- s32 `multiplier[32]`, s32 `shift[32]`: of the requantization of each output
- with groups, u8 `[ceil(groups / 4)][32][4]`: the factor of group `4 * i + j` of output n is `[i][n][j]`
- the weights: s8 `[ceil(K / 4)][32][4]`, or 4-bit two's complement `[ceil(K / 8)][32][4]`, of which the low
  halves are the inputs `8 * i + j` and the high halves the inputs `8 * i + 4 + j`, j = 0…3

So any run of records is one linear copy. N and K are padded with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mqc.arrays import Array
from mqc.numerics.nibbles import join_nibbles, split_nibbles

#: Outputs of a record: the 32-bit lanes of an HVX vector.
LANES = 32
#: Bytes of an HVX vector, and of what stands before factors and weights.
VECTOR_BYTES, HEADER_BYTES = 128, 512


def split_correction(correction: Array, input_bits: int) -> Array:
    """`[2, outputs]`, low and high, of s64 `[outputs]`: 16-bit inputs are two planes of 8 bits, and the low
    byte of the correction goes with the low plane."""
    if input_bits == 8:
        return np.stack([correction, np.zeros_like(correction)])
    return np.stack([correction & 255, correction >> 8])


@dataclass(frozen=True)
class Records:
    """Sizes of a matrix of `outputs` and `inputs` in records. group: inputs per factor, 0 for none."""

    outputs: int
    inputs: int
    bits: int = 8
    group: int = 0

    @property
    def count(self) -> int:
        return -(-self.outputs // LANES)

    @property
    def factor_bytes(self) -> int:
        return VECTOR_BYTES * -(-(self.inputs // self.group) // 4) if self.group else 0

    @property
    def record_bytes(self) -> int:
        step = 4 if self.bits == 8 else 8
        return HEADER_BYTES + self.factor_bytes + VECTOR_BYTES * -(-self.inputs // step)

    @property
    def shape(self) -> tuple[int, int]:
        return self.count, self.record_bytes

    def pack(
        self, weight: Array, correction: Array, multiplier: Array, shift: Array, factor: Array | None = None
    ) -> Array:
        """u8 `[count, record_bytes]` of `[outputs, inputs]` s8 weights (4-bit ones before their factors),
        s64 corrections (already split: `[2, outputs]`, low and high), multipliers, shifts `[outputs]`,
        and u8 factors `[outputs, groups]`. One copy of the matrix."""
        n, k = weight.shape
        records: Array = np.zeros(self.shape, np.uint8)
        head = records[:, :HEADER_BYTES].reshape(self.count, -1)
        for i, row in enumerate((*correction, multiplier, shift)):
            padded = np.zeros(self.count * LANES, np.int32)
            padded[:n] = row
            head[:, i * VECTOR_BYTES : (i + 1) * VECTOR_BYTES] = padded.view(np.uint8).reshape(self.count, -1)
        begin = HEADER_BYTES + self.factor_bytes
        if factor is not None:
            blocks: Array = np.zeros((self.count * LANES, self.factor_bytes // LANES), np.uint8)
            blocks[:n, : factor.shape[1]] = factor
            blocks = blocks.reshape(self.count, LANES, -1, 4).transpose(0, 2, 1, 3)
            records[:, HEADER_BYTES:begin] = blocks.reshape(self.count, -1)
        step = 4 if self.bits == 8 else 8
        full = weight
        if n % LANES or k % step:
            full = np.zeros((self.count * LANES, -(-k // step) * step), np.int8)
            full[:n, :k] = weight
        quads: Array = full.view(np.uint8).reshape(self.count, LANES, -1, 4).transpose(0, 2, 1, 3)
        if self.bits == 4:
            quads = join_nibbles(quads[:, 0::2], quads[:, 1::2])
        records[:, begin:] = quads.reshape(self.count, -1)
        return records

    def weights(self, records: Array) -> Array:
        """`[outputs, inputs]` s8 of records: 4-bit ones before their factors. Inverse of `pack`."""
        quads = records[:, HEADER_BYTES + self.factor_bytes :].reshape(len(records), -1, LANES, 4)
        if self.bits == 4:
            quads = np.stack(split_nibbles(quads), 2).reshape(len(records), -1, LANES, 4)
        # By inputs first: the transpose is `kn`, the layout that an ONNX product takes.
        columns = quads.view(np.int8).transpose(1, 3, 0, 2).reshape(-1, len(records) * LANES)
        result: Array = columns[: self.inputs, : self.outputs].T
        return result

    def padding(self, records: Array) -> Array:
        """s8 weights of the inputs that fill up the last vector of each record."""
        last = records[:, -VECTOR_BYTES:].reshape(-1, 1, LANES, 4)
        if self.bits == 4:
            last = np.stack(split_nibbles(last), 1)
        columns = last.view(np.int8).reshape(len(records), -1, LANES, 4).transpose(1, 3, 0, 2)
        result: Array = columns.reshape(-1, len(records) * LANES)
        return result[self.inputs % len(result) or len(result) :]

    def factors(self, records: Array) -> Array | None:
        """u8 `[outputs, groups]`, or None without groups."""
        if not self.group:
            return None
        table = records[:, HEADER_BYTES : HEADER_BYTES + self.factor_bytes]
        blocks = table.reshape(len(records), -1, LANES, 4)
        table = blocks.transpose(0, 2, 1, 3).reshape(len(records) * LANES, -1)
        result: Array = table[: self.outputs, : self.inputs // self.group]
        return result

    def parameters(self, records: Array) -> Array:
        """s32 `[4, outputs]`: correction low and high, multiplier, shift."""
        head = np.ascontiguousarray(records[:, :HEADER_BYTES]).view(np.int32).reshape(len(records), 4, LANES)
        result: Array = head.transpose(1, 0, 2).reshape(4, -1)[:, : self.outputs]
        return result
