"""The integer form of a recurrent state: its scale, and the shifts that go with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mqc.arrays import Array
from mqc.dialects.quant import UniformType
from mqc.numerics.arithmetic import saturate32

#: A state has room for this many times the largest product of a key and a value; by the delta rule of a key
#: of 1 at least. Then, with |k| ≤ 1 and beta ≤ 1, the square of a column's norm grows by v² a token at most:
#: 2^13 tokens cannot fill it. A state that only adds up forgets as it does, and saturates beyond.
_ROOM_OF_DELTA_RULE, _ROOM_OF_SUM = 2.0**7, 2.0**12
#: Fraction bits that the accumulator has of the result's steps.
_RESULT_BITS = 10
#: Bits of a value that is written, before it is multiplied by the key.
_VALUE_BITS = 24


@dataclass(frozen=True)
class StateForm:
    """What `int.linear_attention` needs to know of its state.

    scale: real size of a step. memory: factor from `Σ k·S` after `sum_shift` to the unit of what is written,
    which is the value's scale times 2^-value_shift. unit: real size of a step of the accumulator.
    """

    scale: float
    value_shift: int
    update_shift: int
    sum_shift: int
    memory: float
    acc_shift: int
    unit: float

    def error(self, key_dim: int, v: UniformType, state: float, value: float) -> float:
        """How much one token can add, at most, to the error of the state, in the norm of a column.

        Each of two roundings is at most half a step of each entry. What is written is rounded four times, in
        steps of the value's scale times 2^-value_shift, and goes in with beta·|k| ≤ 2. The decay and beta are
        off by less than 2^-24. By the delta rule with beta·|k|² ≤ 2, and without it, an error does not grow
        by itself: over n tokens it is at most n times this, and that of the result |q| times that, plus half
        a step of the accumulator.

        Args:
            state: largest norm of a column of the state. value: largest value.
        """
        written = 4 * v.real_scale * 2.0**-self.value_shift
        return math.sqrt(key_dim) * self.scale + written + 2.0**-24 * (3 * state + 2 * value)


def state_form(
    q: UniformType, k: UniformType, v: UniformType, y: UniformType, beta: UniformType | None, delta: bool
) -> StateForm:
    """The form for operands and a result of these types; delta: whether by the delta rule.

    A step of the state is a power of two of the product of the key's and the value's: an update is a shift.
    The accumulator has steps of a 2^-10th of the result's at most, if the state's are as fine. So it
    saturates only far beyond what the result can hold.
    """
    room = _ROOM_OF_DELTA_RULE if delta else _ROOM_OF_SUM
    if beta is not None and not delta:
        room *= _largest(beta) * beta.real_scale
    key = max(_largest(k), 1 / k.real_scale) if delta else _largest(k)
    coarser = math.ceil(math.log2(room * key * _largest(v))) - 31
    scale = k.real_scale * v.real_scale * 2.0**coarser
    value_shift = min(_VALUE_BITS - v.bits, 15)
    memory = k.real_scale * scale * 2.0**value_shift / v.real_scale
    sum_shift = min(max(math.floor(-math.log2(memory)), 0), 62)
    product = q.real_scale * scale
    acc_shift = min(max(math.floor(math.log2(y.real_scale / product)) - _RESULT_BITS, 0), 31)
    return StateForm(
        scale, value_shift, max(value_shift + coarser, 0), sum_shift, memory * 2.0**sum_shift, acc_shift,
        product * 2.0**acc_shift,
    )  # fmt: skip


def fixed_point(real: Array) -> tuple[Array, int]:
    """Numbers as s32, and with how many fraction bits, in [0, 31]: as many as the largest allows."""
    largest = float(np.abs(real).max())
    bits = min(max(30 - math.frexp(largest)[1], 0), 31)
    return saturated(real.astype(np.float64) * 2.0**bits), bits


def saturated(state: Array) -> Array:
    """Real steps of a state as s32."""
    result: Array = saturate32(np.rint(state)).astype(np.int32)
    return result


def _largest(quantized: UniformType) -> int:
    """Largest magnitude of an integer without its zero point."""
    return max(quantized.high - quantized.zero, quantized.zero - quantized.low)
