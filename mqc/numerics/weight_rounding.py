"""Rounding a matrix to integers: the steps of the grid, and which way to round."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch

from mqc.arrays import Array
from mqc.numerics.bfloat16 import bfloat16_products
from mqc.numerics.products import per_input

#: Steps that are tried, as shares of the one that covers the largest weight.
_SHARES = np.linspace(1.0, 0.45, 23, dtype=np.float32)
#: Share of the mean diagonal that is added to a Hessian's.
_DAMPING = 0.01
#: A weight that is a whole number of steps, computed in f32, is off by less of a step.
_BETWEEN = 1e-3
#: Input channels that are rounded before their errors are carried on.
_BLOCK = 128


def bounds(bits: int) -> tuple[int, int]:
    """Least and largest integer: all of 4 bits, and [−127, 127], which every kernel takes, of 8."""
    high = (1 << (bits - 1)) - 1
    return (-high if bits == 8 else -high - 1), high


def whole_steps(weight: Array, step: Array) -> Array | None:
    """How many steps each weight is; None if some weight lies between two.

    Args:
        weight: `[outputs, inputs]`. step: above 0, `[outputs, groups]`, groups of consecutive inputs.
    """
    exact = weight / (step if step.shape[1] == 1 else per_input(step, weight.shape[1]))
    whole: Array = np.rint(exact)
    return whole if np.abs(exact - whole).max() < _BETWEEN else None


def in_other_steps(integers: Array, step: Array, other: Array, bits: int) -> Array:
    """Integers `[outputs, inputs]` in steps `[outputs, groups]` as integers of `bits` bits in other steps.

    They stay where the steps differ by an eighth or less: what chose them made up for one's error by another.
    Elsewhere they are the nearest ones.
    """
    low, high = bounds(bits)
    change = step / other
    change = np.where(np.abs(change - 1) <= 1 / 8, 1, change)
    return np.clip(np.rint(integers * per_input(change, integers.shape[1])), low, high)


def common_scales(step: Array) -> tuple[Array, Array]:
    """The scale of each output channel, f32 `[outputs]`, and the factor of each group in 1…16, u8
    `[outputs, groups]`, whose products are nearest to steps `[outputs, groups]`: with the least squared error
    over the channel."""
    peak = step.max(1, keepdims=True)
    best, least = np.ones_like(step), np.full(peak.shape, np.inf)
    for largest in np.linspace(8, 16.5, 69):
        factor = np.clip(np.rint(step * (largest / peak)), 1, 16)
        scale = (factor * step).sum(1, keepdims=True) / (factor * factor).sum(1, keepdims=True)
        error = ((factor * scale - step) ** 2).sum(1, keepdims=True)
        best = np.where(error < least, factor, best)
        least = np.minimum(error, least)
    scale = (best * step).sum(1) / (best * best).sum(1)
    return scale.astype(np.float32), best.astype(np.uint8)


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

    Memory: one such matrix, three while `factor` is computed.
    """

    def __init__(self, products: torch.Tensor) -> None:
        self._products: torch.Tensor | None = products
        self._diagonal = products.diagonal().clone()

    @classmethod
    def of(cls, inputs: Sequence[torch.Tensor]) -> Hessian:
        """Over inputs `[tokens, inputs]`, by `bfloat16_products`."""
        total = torch.zeros((inputs[0].shape[1],) * 2)
        # The product is symmetric: of each quarter of its rows what is right of the diagonal is left out.
        parts = np.linspace(0, len(total), 5).astype(int).tolist()
        with bfloat16_products():
            for x in inputs:
                for begin, end in pairwise(parts):
                    total[begin:end, :end].addmm_(x[:, begin:end].T, x[:, :end])
        total.div_(sum(map(len, inputs)))
        return cls(total.tril_().add_(total.tril(-1).T))

    @property
    def mean_squares(self) -> Array:
        """Of each input channel, `[inputs]`."""
        return np.asarray(self._diagonal.numpy())

    @cached_property
    def factor(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The order of the input channels, largest mean square first, and in this order the lower unit
        triangular L of `H = Lᵀ·D·L`, D diagonal; H damped as GPTQ's code does."""
        assert self._products is not None
        order = torch.argsort(self._diagonal, descending=True)
        back = order.flip(0)
        h = self._products[back[:, None], back]
        self._products = None
        h.diagonal().add_(max(_DAMPING * float(self._diagonal.mean()), 1e-12))
        lower = torch.linalg.cholesky(h)
        del h
        # With the channels turned round, the transposed factor is lower triangular.
        lower = lower.T.flip(0, 1)
        return order, lower.div_(lower.diagonal().clone()[:, None])


def round_with_feedback(weight: Array, step: Array, bits: int, hessian: Hessian) -> Array:
    """s8 `[outputs, inputs]` with a small `tr((W − Q)·H·(W − Q)ᵀ)`: GPTQ (arXiv 2210.17323, algorithm 1), in
    its form without an inverse (Babai's nearest plane: arXiv 2507.18553).

    Input channels are rounded one after the other, the largest `H_kk` first; each makes up for what those
    before it have lost, by its row of `Hessian.factor`.

    Args:
        weight, step: `[outputs, inputs]`; step also broadcast to it.

    Time: outputs · inputs²; memory: two copies of the matrix.
    """
    low, high = bounds(bits)
    order, lower = hessian.factor
    # Input channels become rows, each contiguous.
    exact, steps = torch.from_numpy(weight).T, step.T
    lost = torch.empty(exact.shape)
    integers = np.empty(exact.shape, np.int8)
    for begin in range(0, len(order), _BLOCK):
        chosen = order[begin : begin + _BLOCK]
        block = slice(begin, begin + len(chosen))
        wanted = exact[chosen]
        target = torch.addmm(wanted, lower[block, :begin], lost[:begin])
        grid = np.broadcast_to(steps if len(steps) == 1 else steps[chosen.numpy()], wanted.shape)
        _round_block(wanted, target, grid, (low, high), lower[block, block], lost[block], integers[block])
    result = np.empty(weight.shape, np.int8)
    result[:, order.numpy()] = integers.T
    return result


def _round_block(
    wanted: torch.Tensor,
    target: torch.Tensor,
    grid: Array,
    limits: tuple[int, int],
    lower: torch.Tensor,
    lost: torch.Tensor,
    integers: Array,
) -> None:
    """Rounds channels `[channels, outputs]`, whose targets make up for all channels before them."""
    q = np.empty(wanted.shape[1], np.float32)
    # NumPy's calls take a third of the time of torch's, which counts for rows of a thousand elements.
    exact, losses = wanted.numpy(), lost.numpy()
    for k, (row, step) in enumerate(zip(target.numpy(), grid, strict=True)):
        if k:
            target[k].addmv_(lost[:k].T, lower[k, :k])
        np.divide(row, step, out=q)
        np.rint(q, out=q)
        np.clip(q, *limits, out=q)
        integers[k] = q
        np.multiply(q, step, out=q)
        np.subtract(exact[k], q, out=losses[k])
