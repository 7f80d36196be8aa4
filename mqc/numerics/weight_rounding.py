"""Rounding a matrix to integers: the steps of the grid, and which way to round."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import lapack

from mqc.arrays import Array

#: Steps that are tried, as shares of the one that covers the largest weight.
_SHARES = np.linspace(1.0, 0.45, 23, dtype=np.float32)
#: Share of the mean diagonal that is added to a Hessian's.
_DAMPING = 0.01
#: Input channels that are rounded before the error is carried to all others.
_BLOCK = 128


def bounds(bits: int) -> tuple[int, int]:
    """Least and largest integer: all of 4 bits, and [−127, 127], which every kernel takes, of 8."""
    high = (1 << (bits - 1)) - 1
    return (-high if bits == 8 else -high - 1), high


def best_steps(weight: Array, group: int, bits: int, importance: Array | None = None) -> Array:
    """Steps `[outputs, groups]` with the least squared error of `weight` `[outputs, inputs]` rounded to
    the nearest integers of `bits` bits.

    Args:
        group: input channels that share a step.
        importance: of each input channel's error, `[inputs]`, such as its mean square; alike if None.
    """
    n, k = weight.shape
    low, high = bounds(bits)
    blocks = weight.reshape(n, k // group, group)
    share = np.ones(k, np.float32) if importance is None else importance + 1e-8 * importance.mean()
    cost = share.astype(np.float32).reshape(1, k // group, group)
    peak = np.maximum(np.abs(blocks).max(-1), 1e-12)
    best, least = peak / high, np.full(peak.shape, np.inf, np.float32)
    for part in _SHARES:
        step = peak * part / (high + 0.5)
        q = np.clip(np.rint(blocks / step[..., None]), low, high)
        error = ((q * step[..., None] - blocks) ** 2 * cost).sum(-1)
        best = np.where(error < least, step, best)
        least = np.minimum(error, least)
    return best


def least_scale(bias: Array, input_scale: float) -> Array:
    """Least weights' scale per output channel that keeps a bias, in units of both scales, within 2^29."""
    floor: Array = np.abs(bias) / (input_scale * 2.0**29)
    return floor


def round_nearest(weight: Array, step: Array, bits: int) -> Array:
    """s8 `[outputs, inputs]` nearest to `weight / step`."""
    low, high = bounds(bits)
    return np.clip(np.rint(weight / step), low, high).astype(np.int8)


class Hessian:
    """Mean products of the input channels of matrices, f32 `[inputs, inputs]`.

    Memory: one such matrix, two while `factor` is computed.
    """

    def __init__(self, products: torch.Tensor) -> None:
        self._products: torch.Tensor | None = products
        self._diagonal = products.diagonal().clone()

    @classmethod
    def of(cls, inputs: Sequence[torch.Tensor]) -> Hessian:
        """Over inputs `[tokens, inputs]`."""
        total: Array = np.zeros((inputs[0].shape[1],) * 2, np.float32)
        for x in map(torch.Tensor.numpy, inputs):
            total += x.T @ x  # NumPy sees that the product is symmetric, and computes half of it
        total /= sum(map(len, inputs))
        return cls(torch.from_numpy(total))

    @property
    def mean_squares(self) -> Array:
        """Of each input channel, `[inputs]`."""
        return np.asarray(self._diagonal.numpy())

    @cached_property
    def factor(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The order of the input channels, largest mean square first, and the upper Cholesky factor U of the
        inverse in this order, `H⁻¹ = Uᵀ·U`; damped as GPTQ's code does."""
        assert self._products is not None
        order = torch.argsort(self._diagonal, descending=True)
        back = order.flip(0)
        h = self._products[back[:, None], back]
        self._products = None
        h.diagonal().add_(max(_DAMPING * float(self._diagonal.mean()), 1e-12))
        # With the channels turned round, U is the inverse of a factor of H itself. Both steps are in place.
        lower, failed = lapack.spotrf(h.numpy().T, lower=1, overwrite_a=1)
        if failed:
            raise np.linalg.LinAlgError(f"channel {failed} makes the products not positive definite")
        inverse, _ = lapack.strtri(lower, lower=1, overwrite_c=1)
        return order, torch.from_numpy(np.ascontiguousarray(inverse[::-1, ::-1]))


def round_with_feedback(weight: Array, step: Array, bits: int, hessian: Hessian) -> Array:
    """s8 `[outputs, inputs]` with a small `tr((W − Q)·H·(W − Q)ᵀ)`: GPTQ (arXiv 2210.17323, algorithm 1).

    Input channels are rounded one after the other, the largest `H_kk` first; what each loses is made up
    for by those that are left. A second-order step, by the Cholesky factor of H⁻¹.

    Args:
        weight, step: `[outputs, inputs]`; step also broadcast to it.

    Time: outputs · inputs²; memory: two copies of the matrix.
    """
    low, high = bounds(bits)
    order, upper = hessian.factor
    # Input channels become rows, each contiguous.
    rest = torch.from_numpy(weight).T[order]
    steps = torch.tensor(step, dtype=torch.float32).T
    steps = steps[order] if len(steps) > 1 else steps.expand(rest.shape)
    result = torch.empty(rest.shape, dtype=torch.int8)
    pivots = upper.diagonal().tolist()
    for begin in range(0, len(rest), _BLOCK):
        end = min(begin + _BLOCK, len(rest))
        errors = torch.empty(end - begin, rest.shape[1])
        for k in range(begin, end):
            q = torch.div(rest[k], steps[k]).round_().clamp_(low, high)
            error = torch.addcmul(rest[k], q, steps[k], value=-1, out=errors[k - begin]).div_(pivots[k])
            rest[k + 1 : end].addr_(upper[k, k + 1 : end], error, alpha=-1)
            result[k] = q
        rest[end:].addmm_(upper[begin:end, end:].T, errors, alpha=-1)
    back = torch.empty_like(result)
    back[order] = result
    return np.ascontiguousarray(back.T.numpy())
