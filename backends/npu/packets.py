"""How many packets the HVX kernels of `kernels/` retire, from the shapes of an op.

The constants are fitted to counts that the runtime gives under QEMU (clang 19, -O2) for rows of 32 to 2048
channels; `tests/backends/npu_packets.json` records some, and a test compares. A packet is no cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from mqc.dialects.constraints import bits
from mqc.dialects.htp_attention import (
    CacheWriteKeysOp,
    CacheWriteOp,
    CausalOp,
    MaskedSoftmaxOp,
    MatMulKeysOp,
    MatMulValuesOp,
)
from mqc.dialects.htp_compute import (
    AddOp,
    FullyConnectedOp,
    GatherPositionsOp,
    GatherTokensOp,
    LayerNormOp,
    MultiplyOp,
    NeuronOp,
    RmsNormOp,
    RotaryEmbeddingOp,
)
from mqc.dialects.htp_core import shape, tensor_bytes
from mqc.ir.op import MqcOp, channels
from mqc.numerics.htp_tiles import LANES, VECTOR_BYTES

#: Packets before the first element of an op.
START = 30


@dataclass(frozen=True)
class Rate:
    """Packets of a row, and of each 32 elements of it."""

    row: float
    block: float

    def of(self, rows: float, elements: float) -> float:
        return START + rows * (self.row + self.block * ceil(elements / LANES))


#: What costs: requantizing per lane (about 5 packets of 32) and packing; in a norm's row the sums, a square
#: root and a division, in a softmax' row a division, and the largest lane and the sum of all.
RATES: dict[type[MqcOp], Rate] = {
    RmsNormOp: Rate(190, 25.3),
    LayerNormOp: Rate(240, 25.3),
    RotaryEmbeddingOp: Rate(0, 20.5),
    MultiplyOp: Rate(0, 13),
    AddOp: Rate(0, 14.5),
    GatherTokensOp: Rate(10, 23.5),
    MaskedSoftmaxOp: Rate(95, 28),
}
#: Of 32 products of 16 by 16 bits, and of a token's row whose heads have 64 channels.
WIDE_PRODUCT, ROTATE_64 = 18.3, Rate(40, 12.5)
#: Of 8-bit values to 8 bits and to 16; of 16-bit values between knots, by two gathers.
LOOK_UP = {(8, 8): Rate(0, 3.3), (8, 16): Rate(0, 7), (16, 8): Rate(0, 26), (16, 16): Rate(0, 28)}
#: Of new rows of the cache, byte by byte on the scalar units.
WRITE_KEYS, WRITE_VALUES = Rate(28, 68), Rate(15, 160)
#: Rows of bytes that share a load of weights: a row of 16 bits is two.
MOST_ROWS = 4


def packets(op: MqcOp, filled: int | None = None) -> float:
    """Packets of an op on HVX. filled: positions in the cache after the run, all it has if None."""
    if isinstance(op, FullyConnectedOp):
        return START + _fully_connected(op)
    if isinstance(op, CausalOp):
        return _attention(op, filled)
    if isinstance(op, CacheWriteOp):
        rate = WRITE_KEYS if isinstance(op, CacheWriteKeysOp) else WRITE_VALUES
        dim = int(op.get("head_dim"))
        return rate.of(shape(op.x)[0] * (channels(op.x) // dim), dim)
    if isinstance(op, NeuronOp):
        return LOOK_UP[bits(op.x), bits(op.result)].of(1, op.tokens * channels(op.result))
    if isinstance(op, RotaryEmbeddingOp):
        dim = int(op.get("head_dim"))
        if dim == 64:
            return ROTATE_64.of(op.tokens, channels(op.result))
        return RATES[type(op)].of(op.tokens * (channels(op.result) // dim), dim)
    if isinstance(op, RmsNormOp | LayerNormOp):
        groups = int(op.get("groups"))
        return RATES[type(op)].of(op.tokens * groups, channels(op.result) // groups)
    if isinstance(op, GatherPositionsOp):
        return START + 2 * tensor_bytes(op.result.type) / VECTOR_BYTES
    if isinstance(op, MultiplyOp) and bits(op.operands[0]) == bits(op.operands[1]) == 16:
        return Rate(0, WIDE_PRODUCT).of(op.tokens, channels(op.result))
    if type(op) in RATES:
        return RATES[type(op)].of(shape(op.results[0])[0], channels(op.results[0]))
    return 0.0


def positions(op: CausalOp, filled: int | None) -> tuple[int, float]:
    """Positions of the cache up to the last row's, and those that a row sees, on average."""
    capacity = int(op.get("capacity"))
    tokens = op.tokens if isinstance(op, MatMulValuesOp) else op.tokens // int(op.get("heads"))
    end = capacity if filled is None else min(filled, capacity)
    seen = float(capacity) if filled is None else max(1.0, end - (tokens - 1) / 2)
    return end, min(seen, op.get("window") or seen)


def _grouped(rows: int) -> list[tuple[int, int]]:
    """Rows by how many go together: (how often, how many). Three run as four."""
    rest = rows % MOST_ROWS
    pairs = (rows // MOST_ROWS, MOST_ROWS), (1, MOST_ROWS if rest == 3 else rest)
    return [pair for pair in pairs if all(pair)]


def _dot(inputs: float, rows: int) -> float:
    """Of rows of bytes by a record's weights: a load of weights, and of four bytes and a product a row."""
    return ceil(inputs / 4) * (0.66 + 1.37 * rows)


def _fully_connected(op: FullyConnectedOp) -> float:
    inputs, group = channels(op.x), int(op.get("group"))
    records = op.records().count
    total = 0.0
    for count, rows in _grouped(op.tokens * bits(op.x) // 8):
        packets = 38 + (20 if bits(op.x) == 8 else 13) * rows + _dot(inputs, rows)
        packets += ceil(inputs / 4) * 0.35 if op.get("weight_bits") == 4 else 0  # sign extension
        packets += 95 + inputs // group * (17 + 3 * rows) if group else 0
        total += count * (30 + 33 * rows + records * packets)
    return total


def _attention(op: Any, filled: int | None) -> float:
    """Of the positions that rows see, in blocks of 32. 16-bit keys or values would be two planes."""
    blocks = ceil(positions(op, filled)[1] / LANES)
    if isinstance(op, MaskedSoftmaxOp):
        return RATES[MaskedSoftmaxOp].of(shape(op.result)[0], blocks * LANES)
    dim = int(op.get("head_dim"))
    if isinstance(op, MatMulKeysOp):
        planes = bits(op.keys) // 8
        groups = _grouped(shape(op.result)[0] * bits(op.q) // 8)
        return START + planes * sum(
            n * (20 + 55 * rows + blocks * (17 + 7 * rows + _dot(dim, rows))) for n, rows in groups
        )
    planes = bits(op.values) // 8
    columns = ceil(dim / LANES)
    return START + planes * shape(op.p)[0] * (
        29 + 25.5 * columns + 3 * blocks + columns * _dot(positions(op, filled)[1], bits(op.p) // 8)
    )
