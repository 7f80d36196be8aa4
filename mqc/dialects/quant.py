"""The `quant` level: the `llm` ops on values whose type says how they are quantized.

A value of type `tensor<?xC x !quant.uniform<u8:f32, scale:zero_point>>` is a real tensor that will
be stored as `round(x / scale) + zero_point` in the storage type (the notation of MLIR's quant
dialect). Evaluated in torch, rounding passes its gradient straight through, so that ranges
and transformations can be trained on this level.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from xdsl.dialects.builtin import FloatAttr, IntAttr, IntegerType, Signedness
from xdsl.ir import Attribute, Dialect, ParametrizedAttribute, SSAValue, TypeAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from mqc.ir.op import element_type, s8, s16, u8, u16

if TYPE_CHECKING:
    import torch

_STORAGE = {"u8": u8, "u16": u16, "s8": s8, "s16": s16}


@irdl_attr_definition
class UniformType(ParametrizedAttribute, TypeAttribute):
    """Per-tensor affine quantization: real = scale * (stored - zero_point)."""

    name = "quant.uniform"
    storage: IntegerType
    scale: FloatAttr
    zero_point: IntAttr

    @classmethod
    def of(cls, bits: int, scale: float, zero_point: int) -> UniformType:
        """Unsigned storage of `bits` bits."""
        return cls(_STORAGE[f"u{bits}"], FloatAttr(scale, 64), IntAttr(zero_point))

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        with parser.in_angle_brackets():
            name = parser.parse_identifier("storage type")
            if name not in _STORAGE:
                parser.raise_error(f"storage type must be one of {', '.join(_STORAGE)}")
            parser.parse_punctuation(":")
            parser.parse_keyword("f32")
            parser.parse_punctuation(",")
            scale = float(parser.parse_number())
            parser.parse_punctuation(":")
            zero = parser.parse_integer()
        return [_STORAGE[name], FloatAttr(scale, 64), IntAttr(zero)]

    def print_parameters(self, printer: Printer) -> None:
        name = next(k for k, v in _STORAGE.items() if v == self.storage)
        mantissa, _, exponent = repr(self.real_scale).partition("e")
        point = "" if "." in mantissa else ".0"
        scale = f"{mantissa}{point}{'e' + exponent if exponent else ''}"
        printer.print_string(f"<{name}:f32, {scale}:{self.zero}>")

    def verify(self) -> None:
        if self.storage not in _STORAGE.values():
            raise VerifyException(f"storage must be one of {', '.join(_STORAGE)}")
        if not (math.isfinite(self.real_scale) and self.real_scale > 0):
            raise VerifyException("scale must be positive and finite")
        if not self.low <= self.zero <= self.high:
            raise VerifyException(f"zero point {self.zero} is outside [{self.low}, {self.high}]")

    @property
    def real_scale(self) -> float:
        return float(self.scale.value.data)

    @property
    def zero(self) -> int:
        return self.zero_point.data

    @property
    def bits(self) -> int:
        return int(self.storage.width.data)

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) if self.storage.signedness.data == Signedness.SIGNED else 0

    @property
    def high(self) -> int:
        return self.low + (1 << self.bits) - 1

    def fake_quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Round to the grid of this type; the gradient passes straight through inside the range."""
        import torch

        inside = (x / self.real_scale).clamp_(self.low - self.zero, self.high - self.zero)
        if not inside.requires_grad:
            return inside.round_().mul_(self.real_scale)
        return (inside + (torch.round(inside) - inside).detach()) * self.real_scale


def uniform(value: SSAValue) -> UniformType | None:
    """Quantized element type of a value, None if it is float."""
    element = element_type(value)
    return element if isinstance(element, UniformType) else None


def affine_range(low: float, high: float, bits: int) -> UniformType:
    """The `bits`-bit unsigned type that covers [low, high] and represents 0 exactly.

    The zero point is rounded to an integer, so that either end may move by half a step.
    """
    return UniformType.of(bits, *affine_grid(low, high, bits))


def affine_grid(low: float, high: float, bits: int) -> tuple[float, int]:
    """Scale and zero point of `affine_range`."""
    low, high = min(low, 0.0), max(high, 0.0)
    steps = (1 << bits) - 1
    scale = max((high - low) / steps, 1e-12)
    return scale, min(max(round(-low / scale), 0), steps)


Quant = Dialect("quant", [], [UniformType])
