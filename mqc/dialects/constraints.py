"""Constraints of ops as data: the verifier, legalisation and the reference pages read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Protocol

import numpy as np
from xdsl.dialects.builtin import IntegerType, Signedness
from xdsl.ir import Attribute, SSAValue

from mqc.arrays import Array
from mqc.ir.op import MqcOp, channels, element_type
from mqc.numerics.arithmetic import ADD_LEFT_SHIFT


def bits(value: SSAValue) -> int:
    element = element_type(value)
    assert isinstance(element, IntegerType)
    return int(element.width.data)


def limits(value: SSAValue) -> tuple[int, int]:
    """Smallest and largest integer of the value's element type."""
    element = element_type(value)
    assert isinstance(element, IntegerType)
    width = int(element.width.data)
    low = -(1 << (width - 1)) if element.signedness.data == Signedness.SIGNED else 0
    return low, low + (1 << width) - 1


class Port(Protocol):
    """What the type of an operand or result must be. Its text is for people."""

    def violation(self, kind: Attribute) -> str | None:
        """What about the type is not as stated, or None."""


@dataclass(frozen=True)
class Limit:
    """A constraint beyond types: what must hold, in words and as a test.

    `holds` may rely on the ports and on the limits before it: it is asked where those hold. `detail` says of
    an op for which it does not hold what is there and what was expected.
    """

    text: str
    holds: Callable[[Any], bool]
    detail: Callable[[Any], str] | None = None

    def violation(self, op: Any) -> str | None:
        """Why it does not hold for an op, or None."""
        if self.holds(op):
            return None
        return f"{self.text} does not hold" + (f": {self.detail(op)}" if self.detail is not None else "")


def within(name: str, low: int, high: int) -> Limit:
    """A property is in [low, high]."""
    bound = {0: "0", 2**31 - 1: "2^31 - 1", 2**62 - 1: "2^62 - 1", 2**16 - 1: "2^16 - 1"}
    text = f"{name} in [{bound.get(low, low)}, {bound.get(high, high)}]"
    return Limit(text, lambda op: low <= op.get(name) <= high)


def zero_of(name: str, operand: str | None = None) -> Limit:
    """A zero point is in the range of an operand, or of the result."""

    def holds(op: Any) -> bool:
        low, high = limits(op.results[0] if operand is None else getattr(op, operand))
        return low <= op.get(name) <= high

    return Limit(f"{name} in the range of {operand or 'the result'}", holds)


def scales(prefix: str = "") -> tuple[Limit, ...]:
    """A scalar multiplier and shift, as `mqc.numerics.arithmetic.requantize` takes them."""

    def holds(op: Any) -> bool:
        m = abs(op.get(f"{prefix}multiplier"))
        return m == 0 or 2**30 <= m < 2**31

    return (
        Limit(f"|{prefix}multiplier| 0 or in [2^30, 2^31)", holds),
        within(f"{prefix}shift", -31, 31),
    )


def addends(*names: str) -> Limit:
    """Each rescaled operand stays below 2^30, so that a sum of two stays in s32."""

    def holds(op: Any) -> bool:
        return all(
            (1 << (bits(getattr(op, name)) + ADD_LEFT_SHIFT))
            * abs(op.get(f"{name}_multiplier"))
            * 2.0 ** -(31 + op.get(f"{name}_shift"))
            < 2**30
            for name in names
        )

    return Limit(f"{' and '.join(names)} at most 64 times the result's range", holds)


@dataclass(frozen=True)
class Values:
    """What the elements of a constant must be, in words and as a test of the array; types do not say it.

    `holds` gives truth by element, or for all of them.
    """

    name: str
    text: str
    holds: Callable[[Any, Array], Any]

    def violation(self, op: Any, array: Array) -> str | None:
        """Why it does not hold for an op's constant, or None."""
        good = np.asarray(self.holds(op, array))
        if good.all():
            return None
        worst = f", and there is {array.reshape(-1)[int(good.reshape(-1).argmin())]}" if good.ndim else ""
        return f"{self.name} must be {self.text}{worst}"


#: Per channel, as `mqc.numerics.arithmetic.requantize` takes them.
MULTIPLIERS = Values(
    "multiplier",
    "0 or of a magnitude in [2^30, 2^31)",
    lambda op, m: (m == 0) | ((np.abs(m.astype(np.int64)) >= 2**30) & (m != -(2**31))),
)
SHIFTS = Values("shift", "in [-31, 31]", lambda op, s: (s >= -31) & (s <= 31))

#: Of a norm: sums of squares of 16-bit values stay in 64 bits.
NORM_GROUPS = Limit(
    "groups of at most 16384 channels each",
    lambda op: (
        op.get("groups") > 0
        and channels(op.x) % op.get("groups") == 0
        and channels(op.x) // op.get("groups") <= 1 << 14
    ),
)


class ConstrainedOp(MqcOp):
    """An op whose constraints are data.

    PORTS: by name of operand (`result` for the result). LIMITS: what must hold besides. VALUES: what the
    elements of constants must be, asked when weights are at hand (`mqc.analysis.values`).
    """

    VALUES: ClassVar[Sequence[Values]] = ()
    PORTS: ClassVar[Mapping[str, Port]] = {}
    LIMITS: ClassVar[Sequence[Limit]] = ()

    def verify_(self) -> None:
        for text in self.violations():
            self.expect(False, text)

    def violations(self) -> Iterator[str]:
        """What the types are not; else the first limit that does not hold, in words."""
        broken = list(self.type_violations())
        yield from broken
        found = (limit.violation(self) for limit in ([] if broken else self.LIMITS))
        yield from islice((text for text in found if text is not None), 1)

    def type_violations(self) -> Iterator[str]:
        """What the types of operands and result are not."""
        for name, port in self.PORTS.items():
            value = self.results[0] if name == "result" else getattr(self, name)
            if value is not None and (text := port.violation(value.type)) is not None:
                yield f"{name} {text}"

    @classmethod
    def constraints(cls) -> list[str]:
        """All of them in words: `docs/ops.md` and `docs/htp.md` list these."""
        ports = [f"`{name}`: {port}" for name, port in cls.PORTS.items()]
        values = (f"elements of {v.name} {v.text}" for v in cls.VALUES)
        return [*ports, *(limit.text for limit in cls.LIMITS), *values]
