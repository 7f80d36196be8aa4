"""Static proofs about `int` modules, from types and weights."""

from __future__ import annotations

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.evaluation import Evaluation
from mqc.arrays import Array, row_blocks
from mqc.dialects.constraints import limits
from mqc.dialects.int_ops import LinearOp, RopeOp
from mqc.errors import IRError
from mqc.ir.module import mqc_ops
from mqc.ir.op import WeightAttr, channels
from mqc.ir.weight_store import WeightStore
from mqc.numerics.arithmetic import INT32_MAX, ROPE_FRACTION_BITS


def accumulator_bound(weight: Array, bias: Array, low: int, high: int) -> Array:
    """Largest magnitude of `Σ d·w + bias` per output channel for any d in [low, high].

    Args: weight `[outputs, inputs]` integers, bias `[outputs]`. The bound is attained.
    """
    positive, negative = _signed_sums(weight)
    top = positive * high + negative * low + bias.astype(np.int64)
    bottom = positive * low + negative * high + bias.astype(np.int64)
    result: Array = np.maximum(np.abs(top), np.abs(bottom))
    return result


def _signed_sums(weight: Array) -> tuple[Array, Array]:
    """Sums of the weights above zero and below it, s64 `[outputs]`."""
    positive = np.empty(len(weight), np.int64)
    for rows in row_blocks(weight.shape):
        positive[rows] = np.maximum(weight[rows], 0).sum(1, dtype=np.int64)
    return positive, weight.sum(1, dtype=np.int64) - positive


def acc_shift(bound: int) -> int:
    """Least right shift that brings magnitudes up to `bound`, rounded, into s32."""
    shift = max(bound.bit_length() - 31, 0)
    return shift if (bound + ((1 << shift) >> 1)) >> shift <= INT32_MAX else shift + 1


def check_accumulators(module: ModuleOp, weights: WeightStore) -> int:
    """Prove that no accumulator of any `int.linear` or `int.rope` leaves s32, whatever the input.

    Of a product three sums are bounded: of the 8-bit planes that kernels accumulate (Σ 255·|w|), of the
    exact result after `acc_shift`, and of each group's products; of a rotation, the two products by the
    table's largest |cos| + |sin|. The other ops are bounded by their types (their verifiers). Returns the
    number of output channels of products proved. Raises `IRError` naming the op and the channel otherwise.
    """
    _check_rotations(module, weights)
    evaluation = Evaluation(module, weights)
    proved = 0
    for op in mqc_ops(module):
        if not isinstance(op, LinearOp):
            continue
        if _fits_by_size(op, evaluation):
            proved += channels(op.result)
            continue
        weight = op.matrix(evaluation)
        bound = accumulator_bound(weight, op.correction(evaluation), *limits(op.x))
        shift = op.get("acc_shift")
        worst = int(bound.argmax())
        if (int(bound[worst]) + ((1 << shift) >> 1)) >> shift > INT32_MAX:
            raise IRError(
                f"int.linear %{op.value_name}: the accumulator of channel {worst} can reach "
                f"{int(bound[worst])}, which acc_shift {shift} does not bring into s32"
            )
        positive, negative = _signed_sums(weight)
        plane = 255 * (positive - negative)
        if int(plane.max()) > INT32_MAX:
            raise IRError(
                f"int.linear %{op.value_name}: an 8-bit plane of channel {int(plane.argmax())} can "
                f"accumulate to {int(plane.max())}; at most 65,000 inputs fit"
            )
        proved += len(bound)
    return proved


def _check_rotations(module: ModuleOp, weights: WeightStore) -> None:
    reach: dict[tuple[WeightAttr, WeightAttr], int] = {}  # layers share tables
    for op in mqc_ops(module):
        if not isinstance(op, RopeOp):
            continue
        tables = op.cos, op.sin
        if tables not in reach:
            cos, sin = (np.abs(weights[ref].astype(np.int64)) for ref in tables)
            reach[tables] = max(int((cos + sin).max()), 1 << ROPE_FRACTION_BITS)
        low, high = limits(op.x)
        bound = max(high - op.get("x_zero"), op.get("x_zero") - low) * reach[tables]
        if bound > INT32_MAX:
            raise IRError(
                f"int.rope %{op.value_name}: |cos| + |sin| goes up to {reach[tables]}, so that a rotation "
                f"can reach {bound}, which is beyond s32: give its operand 8 bits"
            )


def _fits_by_size(op: LinearOp, evaluation: Evaluation) -> bool:
    """Whether no weights of 8 bits could overflow: then they need not be read."""
    _, high = limits(op.x)
    if op.row_sums is None or high > 255:
        return False
    largest = 128 * high * channels(op.x) + int(np.abs(op.correction(evaluation)).max())
    return largest <= INT32_MAX
