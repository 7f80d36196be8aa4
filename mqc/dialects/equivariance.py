"""How per-channel scales move through an op: the vocabulary in which ops state it.

Dividing the channels of a value by a positive vector leaves the float function unchanged if every
op that touches the value either absorbs the vector in its weights or passes it on. An op states
what it demands as constraints on the logarithms of the vectors of its operands and result:

- `Tie(a, b, sign=+1)`: scale of channel `a_index[i]` of `a` equals that of `b_index[i]` of `b`.
- `Tie(..., sign=-1)`: they are reciprocal.
- `Fix(value)`: the value must not be scaled.

What an op does not mention is free for it: it absorbs any scale there (`MqcOp.absorb`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from xdsl.ir import SSAValue

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tie:
    """Channel `a_index[i]` of `a` and `b_index[i]` of `b` share a scale (`sign` 1) or have
    reciprocal ones (`sign` -1)."""

    a: SSAValue
    a_index: Index
    b: SSAValue
    b_index: Index
    sign: int = 1


@dataclass(frozen=True)
class Fix:
    """No channel of `value` may be scaled."""

    value: SSAValue


Constraint = Tie | Fix


def tie_all(a: SSAValue, b: SSAValue, count: int) -> Tie:
    """Channel i of `a` with channel i of `b`, for all `count` channels."""
    index = np.arange(count)
    return Tie(a, index, b, index)
