"""The bases of the ops of level `int`, and what their constraints are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from xdsl.dialects.builtin import IntegerType, TensorType
from xdsl.ir import Attribute, SSAValue

from mqc.arrays import Array
from mqc.dialects.constraints import ConstrainedOp, Limit, limits
from mqc.dialects.quant import UniformType
from mqc.ir.op import (
    INDICES,
    VALUE_SHAPE,
    channels,
    element_type,
    is_value,
    s8,
    s32,
    u8,
    u16,
)  # fmt: skip
from mqc.ir.weight_store import numpy_dtype
from mqc.numerics.layouts import LAYOUTS, S8_LAYOUTS, packed_shape


@dataclass(frozen=True)
class Elements:
    """A value `tensor<?xC>` with elements of one of these types."""

    types: tuple[Attribute, ...]

    def violation(self, kind: Attribute) -> str | None:
        if not is_value(kind):
            return f"{kind} {VALUE_SHAPE}"
        assert isinstance(kind, TensorType)
        return None if kind.get_element_type() in self.types else f"{kind} must have {self} elements"

    def __str__(self) -> str:
        return " or ".join(map(str, self.types))


@dataclass(frozen=True)
class Indices:
    """Token ids or positions."""

    def violation(self, kind: Attribute) -> str | None:
        return None if kind == INDICES else f"{kind} must be {INDICES}"

    def __str__(self) -> str:
        return "token ids or positions"


BYTES, ACTIVATIONS, ACCUMULATOR = Elements((u8,)), Elements((u8, u16)), Elements((s32,))
RESCALED = Elements((u8, u16, s32))
INDEX = Indices()


def same_channels(*names: str) -> Limit:
    """Operands have as many channels as the result."""
    return Limit(
        f"{' and '.join(names)} with the channels of the result",
        lambda op: all(channels(getattr(op, name)) == channels(op.results[0]) for name in names),
    )


def constant(name: str, element: Attribute, text: str, *shapes: Callable[[Any], tuple[int, ...]]) -> Limit:
    """A constant, if it is there, has elements of a type and one of the shapes."""

    def holds(op: Any) -> bool:
        ref = op.properties.get(name)
        if ref is None:
            return True
        return ref.type.get_element_type() == element and any(ref.shape == shape(op) for shape in shapes)

    def detail(op: Any) -> str:
        wanted = " or ".join(str(list(shape(op))) for shape in shapes)
        return f"it is {op.properties[name].type}, and must be {element} {wanted}"

    return Limit(f"{name} {element} {text}", holds, detail)


def matrix(
    name: str, weight_bits: Callable[[Any], int], layouts: Iterable[str] = LAYOUTS
) -> tuple[Limit, Limit]:
    """A constant is the op's matrix (`matrix_shape`), s8 as it is, or in the layout that the op states."""
    layouts = tuple(layouts)

    def known(op: Any) -> bool:
        layout = op.get("layout")
        return layout is None or (layout in layouts and LAYOUTS[layout] == weight_bits(op))

    def stored(op: Any) -> tuple[Attribute, tuple[int, ...]]:
        layout = op.get("layout")
        element = s8 if layout is None or layout in S8_LAYOUTS else u8
        return element, op.matrix_shape if layout is None else packed_shape(layout, *op.matrix_shape)

    def holds(op: Any) -> bool:
        kind = op.properties[name].type
        return (kind.get_element_type(), tuple(kind.get_shape())) == stored(op)

    def detail(op: Any) -> str:
        element, shape = stored(op)
        return f"it is {op.properties[name].type}, and must be {element} {list(shape)}"

    return (
        Limit(f"layout of {name} one of {', '.join(layouts)}, and of its bits", known),
        Limit(f"{name} si8 [rows, columns], or as its layout has it", holds, detail),
    )


class IntOp(ConstrainedOp):
    """An op of the `int` level: every operand and result has integer elements.

    A verified op addresses its weights within their bounds, whatever it is given; backends rely
    on it. What depends on the module (`mqc.context`, the vocabulary) is `mqc.analysis.verification`'s.
    """

    LEVELS: ClassVar[tuple[str, ...]] = ("int",)
    #: Property that holds a matrix `matrix_shape`, which kernels may want in a layout of their own.
    MATRIX: ClassVar[str | None] = None

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix in `MATRIX`."""
        raise NotImplementedError(f"{self.name} holds no matrix")

    def type_violations(self) -> Iterator[str]:
        for value in (*self.operands, *self.results):
            if not isinstance(element_type(value), IntegerType):
                yield f"{value.type} is not a tensor of integers"
            elif value.type != INDICES and not is_value(value.type):
                yield f"{value.type} {VALUE_SHAPE}"
        real = self.represents
        if real is not None and real.storage != element_type(self.results[0]):
            yield f"represents {real} is not stored as {self.results[0].type}"
        yield from super().type_violations()

    def takes(self, value: SSAValue, element: Attribute) -> bool:
        """Whether an operand may have elements of another type than it has."""
        ports = [
            port for name, port in self.PORTS.items() if name != "result" and getattr(self, name) is value
        ]
        return all(isinstance(port, Elements) and element in port.types for port in ports)

    @property
    def represents(self) -> UniformType | None:
        """The quantized type whose stored integers the result holds, where the op states it."""
        stated = self.attributes.get("represents")
        return stated if isinstance(stated, UniformType) else None

    def narrow(self, x: Any) -> Array:
        """Clamp to the result's type."""
        low, high = limits(self.results[0])
        return np.clip(x, low, high).astype(numpy_dtype(element_type(self.results[0])))
