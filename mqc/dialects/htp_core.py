"""What the ops of the `htp` dialect share: memory spaces, and constraints that are stated once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from xdsl.dialects.builtin import IntegerAttr, IntegerType, NoneAttr, StringAttr, TensorType, i64
from xdsl.ir import Attribute, ParametrizedAttribute, SSAValue, TypeAttribute
from xdsl.irdl import irdl_attr_definition

from mqc.arrays import Array
from mqc.dialects.constraints import ConstrainedOp, Limit, limits
from mqc.dialects.int_core import IntOp
from mqc.ir.op import channels, element_type, s8, s16, s32, u8, u16
from mqc.ir.weight_store import numpy_dtype
from mqc.numerics.htp_tiles import LANES, VECTOR_BYTES

#: Memory spaces. Before tiling, values have none.
DDR, VTCM = "ddr", "vtcm"
#: QNN's names of the element types.
QNN_TYPES: dict[Attribute, str] = {
    u8: "UFIXED_POINT_8", u16: "UFIXED_POINT_16", s8: "SFIXED_POINT_8", s16: "SFIXED_POINT_16",
    s32: "INT_32", i64: "INT_64",
}  # fmt: skip


def static(element: Attribute, *shape: int, space: str | None = None) -> TensorType:
    """The type of a value of the `htp` level: a static shape, and the memory it lies in."""
    return TensorType(element, shape, NoneAttr() if space is None else StringAttr(space))


def space(kind: Attribute) -> str | None:
    """`ddr`, `vtcm`, or None before tiling."""
    assert isinstance(kind, TensorType)
    encoding = kind.encoding
    return encoding.data if isinstance(encoding, StringAttr) else None


def in_space(kind: Attribute, where: str) -> TensorType:
    """The same tensor in a memory space."""
    assert isinstance(kind, TensorType)
    return static(kind.get_element_type(), *kind.get_shape(), space=where)


def shape(value: SSAValue) -> tuple[int, ...]:
    assert isinstance(value.type, TensorType)
    return tuple(value.type.get_shape())


def tensor_bytes(kind: Attribute) -> int:
    """Bytes of a tensor of integers, without padding."""
    assert isinstance(kind, TensorType)
    element = kind.get_element_type()
    assert isinstance(element, IntegerType)
    return int(np.prod(kind.get_shape(), dtype=np.int64)) * int(element.width.data) // 8


def buffer_bytes(kind: Attribute) -> int:
    """Bytes that a tensor occupies in VTCM: whole vectors, and one behind them, because kernels read
    and write whole vectors from any byte on."""
    return (-(-tensor_bytes(kind) // VECTOR_BYTES) + 1) * VECTOR_BYTES


@irdl_attr_definition
class TransferType(ParametrizedAttribute, TypeAttribute):
    """A DMA under way: `!htp.transfer<tensor<…, "vtcm">>`; `htp.dma_wait` gives the tensor."""

    name = "htp.transfer"
    tensor: TensorType


@dataclass(frozen=True)
class Tile:
    """What an operand or result must be.

    types: element types. rank: number of dimensions. space: where it lies once tiled.
    """

    types: tuple[Attribute, ...]
    rank: int = 2
    space: str = VTCM

    def violation(self, kind: Attribute) -> str | None:
        """What about the type is not as stated, or None."""
        if not isinstance(kind, TensorType):
            return f"{kind} is no tensor"
        if kind.get_element_type() not in self.types:
            return f"{kind} must have {' or '.join(map(str, self.types))} elements"
        if kind.get_num_dims() != self.rank or min(kind.get_shape(), default=1) < 1:
            return f"{kind} must have {self.rank} dimensions of 1 or more"
        if space(kind) not in (None, self.space):
            return f"{kind} must lie in {self.space}"
        return None

    def __str__(self) -> str:
        names = " / ".join(QNN_TYPES.get(t, str(t)) for t in self.types)
        return f"{names}, rank {self.rank}, {self.space}"


ACTIVATIONS = Tile((u8, u16))
INDEX = Tile((i64,), 1, DDR)
#: Per 32 channels, s32 multiplier[32] and shift[32]; one block for all channels, or one for each 32.
SCALE = Tile((s32,), 3)


def same_shape(*names: str) -> Limit:
    """Operands have the result's shape."""
    return Limit(
        f"{' and '.join(names)} shaped like the result",
        lambda op: all(shape(getattr(op, name)) == shape(op.results[0]) for name in names),
    )


SCALE_SHAPE = Limit(
    f"scale is [1 or channels / {LANES} rounded up, 2, {LANES}]",
    lambda op: shape(op.scale) in ((1, 2, LANES), (-(-channels(op.results[0]) // LANES), 2, LANES)),
)


class HtpOp(ConstrainedOp):
    """An op of the `htp` level: static shapes, and constraints as data.

    QNN: the op of Qualcomm's HTP that it is modelled on. CARRIES: the `int` op that it carries out: of the
    ops of attention, the softmax stands for all.
    """

    LEVELS: ClassVar[tuple[str, ...]] = ("htp",)
    QNN: ClassVar[str] = ""
    CARRIES: ClassVar[type[IntOp] | None] = None
    PORTS: ClassVar[Mapping[str, Tile]] = {}

    def type_violations(self) -> Iterator[str]:
        for value in (*self.operands, *self.results):
            kind = value.type
            if isinstance(kind, TensorType) and not _integers(kind):
                yield f"{kind} is no static tensor of integers"
        yield from super().type_violations()
        spaces = {
            space(v.type)
            for v in (*self.operands, *self.results)
            if isinstance(v.type, TensorType) and element_type(v) != i64
        }
        if None in spaces and len(spaces) > 1:
            yield "some of its values lie in a memory space and some do not"
        offset = self.attributes.get("offset")
        if isinstance(offset, IntegerAttr) and (offset.value.data < 0 or offset.value.data % VECTOR_BYTES):
            yield f"offset {offset.value.data} must be a multiple of {VECTOR_BYTES}"

    @property
    def tokens(self) -> int:
        """Rows of the result."""
        return shape(self.results[0])[0]

    def narrow(self, x: Any) -> Array:
        """Clamp to the result's type."""
        low, high = limits(self.results[0])
        return np.clip(x, low, high).astype(numpy_dtype(element_type(self.results[0])))

    def tied(self) -> SSAValue | None:
        """The operand whose memory the result continues, if any."""
        return None


def _integers(kind: TensorType) -> bool:
    return isinstance(kind.get_element_type(), IntegerType) and min(kind.get_shape(), default=1) >= 1


def factors(scale: Array, count: int) -> tuple[Array, Array]:
    """Multipliers and shifts `[count]` of a scale operand."""
    full = scale if len(scale) > 1 else np.repeat(scale, -(-count // LANES), 0)
    flat = full.astype(np.int64).transpose(1, 0, 2).reshape(2, -1)
    return flat[0, :count], flat[1, :count]


def pack_scale(multiplier: Array, shift: Array) -> Array:
    """The inverse of `factors`: one block for a scalar, else `[ceil(channels / 32), 2, 32]` s32."""
    count = len(multiplier)
    if count == 1:
        return np.stack([np.full(LANES, v[0], np.int32) for v in (multiplier, shift)])[None]
    packed = np.zeros((2, -(-count // LANES) * LANES), np.int32)
    packed[0, :count], packed[1, :count] = multiplier, shift
    return np.ascontiguousarray(packed.reshape(2, -1, LANES).transpose(1, 0, 2))
