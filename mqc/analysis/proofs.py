"""Static proofs about `int` modules, from types and weights."""

from __future__ import annotations

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.evaluation import Evaluation
from mqc.arrays import Array, row_blocks
from mqc.dialects.constraints import limits
from mqc.dialects.int_ops import CausalConvOp, LinearOp, RopeOp
from mqc.errors import IRError
from mqc.ir.module import mqc_ops
from mqc.ir.op import WeightAttr, channels
from mqc.ir.weight_store import WeightStore
from mqc.numerics.arithmetic import INT32_MAX, ROPE_FRACTION_BITS
from mqc.numerics.products import row_sums


def accumulator_bound(
    weight: Array, bias: Array, low: int, high: int, blocks: int = 1, chosen: int = 1
) -> Array:
    """Largest magnitude of `Σ d·w + bias` per output channel for any d in [low, high], which 0 is in.

    Args: weight `[outputs, inputs]` integers, bias `[outputs]`. Of `blocks` of columns only `chosen` have a d
    that is not 0. The bound is attained.
    """
    return _bound(_signed_sums(weight, blocks), bias, low, high, chosen)


def _bound(sums: tuple[Array, Array], bias: Array, low: int, high: int, chosen: int) -> Array:
    positive, negative = sums
    top = _of_chosen(positive * high + negative * low, chosen) + bias.astype(np.int64)
    bottom = bias.astype(np.int64) - _of_chosen(-(positive * low + negative * high), chosen)
    result: Array = np.maximum(np.abs(top), np.abs(bottom))
    return result


def _of_chosen(parts: Array, chosen: int) -> Array:
    """The largest sums of `chosen` of the parts `[outputs, blocks]`, none of which is negative."""
    if chosen < parts.shape[1]:
        parts = np.partition(parts, -chosen, 1)[:, -chosen:]
    result: Array = parts.sum(1)
    return result


def _signed_sums(weight: Array, blocks: int) -> tuple[Array, Array]:
    """Sums of the weights above zero and below it, s64 `[outputs, blocks]`, of each block of columns."""
    apart = weight.reshape(len(weight), blocks, -1)
    magnitude = np.empty(apart.shape[:2], np.int64)
    unsigned = np.dtype(f"u{weight.itemsize}")
    for rows in row_blocks(weight.shape):
        # −128 has no magnitude in s8, but its bits are that in u8
        magnitude[rows] = np.abs(apart[rows]).view(unsigned).sum(-1, dtype=np.int64)
    total = apart.sum(-1, dtype=np.int64)
    return (magnitude + total) // 2, (total - magnitude) // 2


def acc_shift(bound: int) -> int:
    """Least right shift that brings magnitudes up to `bound`, rounded, into s32."""
    shift = max(bound.bit_length() - 31, 0)
    return shift if (bound + ((1 << shift) >> 1)) >> shift <= INT32_MAX else shift + 1


def check_accumulators(module: ModuleOp, weights: WeightStore) -> int:
    """Prove that no accumulator of any `int.linear`, `int.causal_conv` or `int.rope` leaves s32, whatever the
    input.

    Of a product three sums are bounded: of the 8-bit planes that kernels accumulate (Σ 255·|w|), of the
    exact result after `acc_shift`, and of each group's products; of a convolution, the result after
    `acc_shift`; of a rotation, the two products by the table's largest |cos| + |sin|. The other ops are
    bounded by their types (their verifiers). Returns the number of output channels of products proved.
    Raises `IRError` naming the op and the channel otherwise.
    """
    _check_rotations(module, weights)
    _check_convolutions(module, weights)
    evaluation = Evaluation(module, weights)
    return sum(_check_product(op, evaluation) for op in mqc_ops(module) if isinstance(op, LinearOp))


def _check_product(op: LinearOp, evaluation: Evaluation) -> int:
    """The number of its output channels, which fit. Raises `IRError`."""
    if _fits_by_size(op, evaluation):
        return channels(op.result)
    blocks, chosen = op.column_blocks
    positive, negative = sums = _signed_sums(op.matrix(evaluation), blocks)
    low, high = (end - op.get("x_zero") for end in limits(op.x))
    bound = _bound(sums, evaluation.array(op.bias), low, high, chosen)
    _check_shifted(op, bound)
    plane = 255 * _of_chosen(positive - negative, chosen)
    if int(plane.max()) > INT32_MAX:
        raise IRError(
            f"int.linear %{op.value_name}: an 8-bit plane of channel {int(plane.argmax())} can "
            f"accumulate to {int(plane.max())}; at most 65,000 inputs fit"
        )
    return len(bound)


def _check_convolutions(module: ModuleOp, weights: WeightStore) -> None:
    for op in mqc_ops(module):
        if isinstance(op, CausalConvOp):
            low, high = (end - op.get("x_zero") for end in limits(op.x))
            _check_shifted(op, accumulator_bound(weights[op.weight], weights[op.bias], low, high))


def _check_shifted(op: LinearOp | CausalConvOp, bound: Array) -> None:
    """Raise `IRError` if the op's sums, as large as `bound` `[outputs]`, leave s32 after its `acc_shift`."""
    shift, worst = op.get("acc_shift"), int(bound.argmax())
    if (int(bound[worst]) + ((1 << shift) >> 1)) >> shift > INT32_MAX:
        raise IRError(
            f"{op.name} %{op.value_name}: the accumulator of channel {worst} can reach "
            f"{int(bound[worst])}, which acc_shift {shift} does not bring into s32"
        )


def check_row_sums(module: ModuleOp, weights: WeightStore) -> None:
    """That the sums which a program states of its weights are theirs. Reads all of these weights.

    The oracle takes stated sums as they are, and so may a backend that uses them as the oracle does. Raises
    `IRError` naming the op.
    """
    evaluation = Evaluation(module, weights)
    for op in mqc_ops(module):
        if isinstance(op, LinearOp) and op.row_sums is not None:
            wrong = op.sums(evaluation) != row_sums(op.matrix(evaluation), *op.sums_shape[1:])
            if wrong.any():
                channel = int(wrong.nonzero()[0][0])
                raise IRError(
                    f"int.linear %{op.value_name}: row_sums of channel {channel} are not the sum of its "
                    "weights; compile the program again"
                )


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
    blocks, chosen = op.column_blocks
    added = np.abs(op.correction(evaluation)).reshape(channels(op.result), -1).sum(1)
    largest = 128 * high * channels(op.x) // blocks * chosen + int(added.max())
    return largest + int(np.abs(evaluation.array(op.bias).astype(np.int64)).max()) <= INT32_MAX
