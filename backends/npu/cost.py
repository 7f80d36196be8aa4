"""What `htp` ops cost on a chip: work, traffic and energy, from shapes and types alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from mqc.backends.npu.chips import Chip
from mqc.backends.npu.packets import MOST_ROWS, packets, positions
from mqc.dialects.constraints import bits
from mqc.dialects.htp_attention import CacheWriteOp, MaskedSoftmaxOp, MatMulKeysOp, MatMulValuesOp
from mqc.dialects.htp_compute import FullyConnectedOp, GatherPositionsOp, GatherTokensOp
from mqc.dialects.htp_core import VTCM, shape, space, tensor_bytes
from mqc.dialects.htp_memory import CacheOp, ConstantOp, DmaLoadOp, DmaStoreOp, DmaWaitOp, EmptyOp
from mqc.ir.op import MqcOp, channels
from mqc.numerics.htp_tiles import LANES

#: Ops that only name memory.
FREE = (DmaWaitOp, EmptyOp, ConstantOp, CacheOp)


@dataclass(frozen=True)
class Cost:
    """What an op asks of a chip.

    ddr_bytes: moved from or to DDR; vtcm_bytes: read and written in VTCM. macs_8, macs_16: by bits of
    the activation; 16 by 16 bits count twice. packets: on HVX. matrix_cycles: of the matrix unit.
    """

    ddr_bytes: float = 0.0
    vtcm_bytes: float = 0.0
    macs_8: float = 0.0
    macs_16: float = 0.0
    packets: float = 0.0
    matrix_cycles: float = 0.0

    @property
    def macs(self) -> float:
        return self.macs_8 + self.macs_16

    def seconds(self, chip: Chip) -> dict[str, float]:
        """How long each unit works."""
        return {
            "ddr": self.ddr_bytes / chip.ddr_bytes_per_s,
            "vtcm": self.vtcm_bytes / chip.vtcm_bytes_per_s,
            "matrix": self.matrix_cycles / chip.clock_hz,
            "hvx": self.packets / chip.packets_per_s,
        }

    def joules(self, chip: Chip) -> float:
        """Without static power."""
        return 1e-12 * (
            self.ddr_bytes * chip.pj_per_ddr_byte
            + self.vtcm_bytes * chip.pj_per_vtcm_byte
            + self.macs_8 * chip.pj_per_mac_8
            + self.macs_16 * chip.pj_per_mac_16
            + self.packets * chip.pj_per_packet
        )


@dataclass(frozen=True)
class Product:
    """A matrix product `[rows, inputs] x [inputs, outputs]`, and the bytes of its result."""

    rows: int
    inputs: int
    outputs: int
    activation_bits: int
    weight_bits: int
    result_bytes: float

    @property
    def macs(self) -> tuple[float, float]:
        """With 8-bit activations, and with 16-bit ones."""
        count = float(self.rows * self.inputs * self.outputs)
        if self.activation_bits == 8:
            return count, 0.0
        return 0.0, count * max(self.weight_bits, 8) / 8

    def traffic(self, rows: float, outputs: float) -> float:
        """Bytes in VTCM if a pass of the weights serves so many rows, and one of the rows so many outputs."""
        activations = self.rows * self.inputs * self.activation_bits / 8 * ceil(self.outputs / outputs)
        weights = self.inputs * self.outputs * self.weight_bits / 8 * ceil(self.rows / rows)
        return activations + weights + self.result_bytes

    def on_matrix_unit(self, chip: Chip) -> Cost:
        """Rows and outputs are filled up to whole tiles."""
        tile = chip.matrix_tile
        filled = ceil(self.rows / tile) * ceil(self.outputs / tile) * tile**2 * self.inputs
        rate = {(8, 8): chip.matrix_macs_8, (8, 4): chip.matrix_macs_8_by_4}.get(
            (self.activation_bits, self.weight_bits),
            chip.matrix_macs_16 * 8 / max(self.weight_bits, 8),
        )
        return Cost(0.0, self.traffic(tile, tile), *self.macs, matrix_cycles=filled / rate)

    def on_hvx(self, count: float) -> Cost:
        rows = MOST_ROWS * 8 / self.activation_bits
        return Cost(0.0, self.traffic(rows, self.outputs), *self.macs, packets=count)


def product(op: MqcOp, filled: int | None) -> Product | None:
    """The matrix product that an op is, if any. filled: see `cost`."""
    if isinstance(op, FullyConnectedOp):
        outputs, width = int(op.get("outputs")), bits(op.result)
        size = op.tokens * outputs * width / 8
        return Product(op.tokens, channels(op.x), outputs, bits(op.x), int(op.get("weight_bits")), size)
    if isinstance(op, MatMulKeysOp):
        rows, end = shape(op.result)[0], _blocks(op, filled)
        wide, narrow = sorted((bits(op.q), bits(op.keys)))[::-1]
        return Product(rows, int(op.get("head_dim")), end, wide, narrow, rows * end * 4.0)
    if isinstance(op, MatMulValuesOp):
        rows, dim = shape(op.p)[0], int(op.get("head_dim"))
        size = rows * dim * bits(op.result) / 8
        return Product(rows, _blocks(op, filled), dim, bits(op.p), bits(op.values), size)
    return None


def _blocks(op: MatMulKeysOp | MatMulValuesOp | MaskedSoftmaxOp, filled: int | None) -> int:
    return ceil(positions(op, filled)[0] / LANES) * LANES


def cost(op: MqcOp, chip: Chip, filled: int | None = None) -> Cost:
    """Cost of an op, on the better of the units that can run it.

    filled: positions in the cache after the run, which attention reads; all there is room for if None.
    """
    if isinstance(op, DmaLoadOp):
        size = tensor_bytes(op.result.type.tensor)
        return Cost(ddr_bytes=size, vtcm_bytes=size)
    if isinstance(op, DmaStoreOp):
        size = tensor_bytes(op.x.type)
        return Cost(ddr_bytes=size, vtcm_bytes=size)
    if isinstance(op, FREE):
        return Cost()
    found, count = product(op, filled), packets(op, filled)
    if found is not None:
        both = found.on_matrix_unit(chip), found.on_hvx(count)
        return min(both, key=lambda c: max(c.seconds(chip).values()))
    if isinstance(op, MaskedSoftmaxOp):
        touched: float = shape(op.result)[0] * _blocks(op, filled) * (4 + 2)
    else:
        values = (*op.operands, *op.results)
        touched = sum(tensor_bytes(v.type) for v in values if space(v.type) == VTCM)
    return Cost(ddr_bytes=_direct(op), vtcm_bytes=touched, packets=count)


def _direct(op: MqcOp) -> float:
    """Bytes that an op itself reads from or writes to DDR."""
    if isinstance(op, GatherTokensOp):
        return op.tokens * (channels(op.result) + 5)  # with a multiplier and a shift each
    if isinstance(op, GatherPositionsOp):
        return tensor_bytes(op.result.type)
    return tensor_bytes(op.x.type) if isinstance(op, CacheWriteOp) else 0.0
