"""Rounding a matrix to integers: the steps of the grid, and which way to round."""

from __future__ import annotations

import numpy as np
import torch

from mqc.arrays import Array

#: Steps that are tried, as shares of the one that covers the largest weight.
_SHARES = np.linspace(1.0, 0.45, 23, dtype=np.float32)
#: Share of the mean diagonal that is added to a Hessian, as GPTQ's code does.
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


def round_with_feedback(weight: Array, step: Array, bits: int, hessian: torch.Tensor) -> Array:
    """s8 `[outputs, inputs]` with a small `tr((W − Q)·H·(W − Q)ᵀ)`: GPTQ (arXiv 2210.17323, algorithm 1).

    Input channels are rounded one after the other, the largest `H_kk` first; what each loses is made up
    for by those that are left. A second-order step, by the Cholesky factor of H⁻¹.

    Args:
        weight, step: `[outputs, inputs]`; step also broadcast to it.
        hessian: `X·Xᵀ` of the inputs, f32 `[inputs, inputs]`, in any unit.

    Time: outputs · inputs²; memory: a copy of the matrix and three of the Hessian.
    """
    low, high = bounds(bits)
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True)
    h = hessian[order][:, order]
    h += torch.eye(len(h)) * max(_DAMPING * float(diagonal.mean()), 1e-12)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    # Input channels become rows, each contiguous.
    rest = torch.from_numpy(weight).T[order]
    steps = torch.from_numpy(np.broadcast_to(step, weight.shape).copy()).T[order]
    result = torch.empty(rest.shape, dtype=torch.int8)
    for begin in range(0, len(rest), _BLOCK):
        end = min(begin + _BLOCK, len(rest))
        errors = torch.empty(end - begin, rest.shape[1])
        for k in range(begin, end):
            q = torch.clamp(torch.round(rest[k] / steps[k]), low, high)
            error = (rest[k] - q * steps[k]) / upper[k, k]
            rest[k:end] -= upper[k, k:end, None] * error
            result[order[k]], errors[k - begin] = q, error
        rest[end:] -= upper[begin:end, end:].T @ errors
    return np.ascontiguousarray(result.T.numpy())
