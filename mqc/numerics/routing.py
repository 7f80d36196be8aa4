"""Mixtures of experts in NumPy: which experts a token goes to, and products of their matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mqc.arrays import Array

#: How the weights of chosen experts are made one.
NORMALIZATIONS = ("none", "sum", "softmax")
#: Fraction bits of weights that were divided by their sum.
SHARE_FRACTION_BITS = 30

#: Largest magnitude of a bias of scores, in their steps.
BIAS_LIMIT = 2**30

Mask = npt.NDArray[np.bool_]


def largest(values: Array, count: int, allowed: Mask | None = None) -> Mask:
    """Where the `count` largest allowed values of each row stand; of equal ones the first.

    Args: values `[rows, columns]` s64 above −2^62.
    """
    asked = values if allowed is None else np.where(allowed, values, -(2**62))
    order = np.argsort(-asked, -1, kind="stable")
    found = np.zeros(values.shape, np.bool_)
    np.put_along_axis(found, order[:, :count], True, -1)
    return found


def best_groups(values: Array, groups: int, count: int, scores: int) -> Mask:
    """Where the columns of the `count` best of equal groups stand: those with the largest sums of their
    `scores` largest values. Shapes: values and result `[rows, columns]`."""
    parts = values.reshape(len(values), groups, -1)
    sums = np.sort(parts, -1)[..., -scores:].sum(-1)
    return np.repeat(largest(sums, count), parts.shape[-1], 1)


def shares_of_sum(values: Array, chosen: Mask) -> Array:
    """floor(2^30 · v / Σ v) of each row's chosen values v, negative ones taken for 0; 0 if the sum is."""
    positive = np.where(chosen, np.maximum(values, 0), 0)
    total = np.maximum(positive.sum(-1, keepdims=True), 1)
    result: Array = (positive << SHARE_FRACTION_BITS) // total
    return result


def routed_product(
    x: Array, chosen: Mask, axis: int, outputs: int, product: Callable[[Array, slice, slice], Array]
) -> Array:
    """A product whose matrix has a block for each expert, of which each token takes those it chose: s64.

    Args:
        x: `[tokens, inputs]`. chosen: `[tokens, experts]`.
        axis: 0 if the matrix's rows are in blocks, so that blocks of the result are 0 where not chosen; 1 if
            its columns are, so that blocks of the inputs are not read.
        outputs: of the whole matrix.
        product: of some tokens' inputs with rows and columns of the matrix.
    """
    y = np.zeros((len(x), outputs), np.int64)
    size = (outputs if axis == 0 else x.shape[1]) // chosen.shape[1]
    for expert in np.flatnonzero(chosen.any(0)).tolist():
        tokens, block = chosen[:, expert], slice(expert * size, (expert + 1) * size)
        if axis == 0:
            y[tokens, block] = product(x[tokens], block, slice(None))
        else:
            y[tokens] += product(x[tokens, block], slice(None), block)
    return y
