"""Rotary embeddings from products of channels with tables over positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mqc.frontend.lanes import ComplexPairs, Lanes, Rotary, Weighted


def rotary_of(a: Weighted, b: Weighted, context: int) -> Rotary:
    """The sum of cos-weighted lanes and of sin-weighted permuted lanes of the same value.

    Raises `ValueError` where it is something else.
    """
    if (b.lanes.index == np.sort(b.lanes.index, axis=-1)).all() and (b.lanes.sign > 0).all():
        a, b = b, a
    x, rotated = a.lanes, b.lanes
    if x.base is not rotated.base or x.index.shape != rotated.index.shape or (x.sign < 0).any():
        raise ValueError("of position tables is no rotary embedding")
    width = x.index.shape[-1]
    tables = [t.reshape(context, -1) for t in (a.table, b.table)]
    if any(t.shape[1] != width for t in tables):
        raise ValueError("of position tables per head has no llm form")
    column = np.broadcast_to(np.arange(width), x.index.shape)
    return Rotary(x.base, x.index, rotated.index, rotated.sign, column, tables[0], tables[1], x.axis)


def rotary_of_complex(value: Any, context: int) -> Rotary:
    """Complex numbers times a table over positions, as pairs of real ones: an interleaved rotary embedding.

    Raises `ValueError` where it is something else.
    """
    if not isinstance(value, ComplexPairs) or value.table is None:
        raise ValueError("of complex numbers that no table turned has no llm form")
    lanes, table = value.lanes, value.table.reshape(context, -1)
    pairs = lanes.index.shape[-2]
    if table.shape[1] != pairs or (lanes.sign < 0).any():
        raise ValueError("of complex numbers and a table per head has no llm form")
    column = np.broadcast_to(np.arange(pairs)[:, None], lanes.index.shape)
    sign = np.broadcast_to(np.array([-1, 1]), lanes.index.shape)
    return Rotary(
        lanes.base, lanes.index, lanes.index[..., ::-1], sign, column, table.real, table.imag, lanes.axis
    )


def weighted(lanes: Lanes, table: torch.Tensor, context: int) -> Weighted | Rotary:
    """Lanes times a table over positions. A number for each position is a rotation by nothing, times that."""
    rows, width = table.reshape(context, -1), lanes.index.shape[-1]
    if rows.shape[1] > 1 or width % 2 or lanes.axis == lanes.index.ndim - 1:
        return Weighted(lanes, table)
    sign = np.broadcast_to(np.repeat([-1, 1], width // 2), lanes.index.shape)
    pair, column = np.roll(lanes.index, width // 2, -1), np.zeros_like(lanes.index)
    return Rotary(lanes.base, lanes.index, pair, sign, column, rows, torch.zeros_like(rows), lanes.axis)


def scaled_rotary(a: Rotary, factor: torch.Tensor, context: int) -> Rotary:
    """A rotary embedding times a number for each position, which its tables take.

    Raises `ValueError` for several numbers a position.
    """
    rows = factor.reshape(context, -1)
    if rows.shape[1] != 1:
        raise ValueError("of a rotary embedding and a table of several channels has no llm form")
    return replace(a, cos=a.cos * rows, sin=a.sin * rows)
