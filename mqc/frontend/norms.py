"""Norms side by side that are one norm of groups of channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mqc.frontend.lanes import Centered, Elementwise, Index, Lanes, Moment, Norm, in_place


def moment(squares: Centered | Lanes | Elementwise) -> Moment | None:
    """The mean of squares over the last axis, if they are squares: of a value, or of what it is from its
    mean."""
    probe = torch.linspace(-3, 3, 13)
    if isinstance(squares, Centered):
        return Moment(squares.lanes, centered=True) if squares.squared else None
    if isinstance(squares, Elementwise) and torch.allclose(squares.function(probe), probe * probe):
        return Moment(squares.lanes)
    return None


def joined_norms(parts: Sequence[Any], function: Callable[..., Index], dim: int, axis: int) -> Lanes | None:
    """Norms of parts of one value, concatenated or stacked (`function`) along `dim`, as one norm.

    A model may have a norm of each head. axis: tokens after it. None if they are something else.
    """
    if not all(isinstance(part, Lanes) and isinstance(part.base, Norm) for part in parts):
        return None
    norms: list[Norm] = [part.base for part in parts]
    inputs = [norm.x for norm in norms if isinstance(norm.x, Lanes)]
    kinds = {
        (n.kind, n.eps, len(n) // n.groups, n.gain is None, n.bias is None, part.index.size == len(n))
        for n, part in zip(norms, parts, strict=True)
    }
    one_value = len(inputs) == len(norms) and all(x.base is inputs[0].base for x in inputs)
    if not one_value or len(kinds) > 1 or any((part.index != in_place(part)).any() for part in parts):
        return None
    index, sign = (function([getattr(x, name) for x in inputs], dim) for name in ("index", "sign"))
    places = _in_order([in_place(part) for part in parts], function, dim, axis)
    gain, bias = (
        None
        if getattr(norms[0], name) is None
        else np.concatenate([getattr(norm, name) for norm in norms])[places]
        for name in ("gain", "bias")
    )
    name = norms[0].name.rpartition(".")[0] or norms[0].name
    groups, x = sum(norm.groups for norm in norms), Lanes(inputs[0].base, index, sign, axis)
    joined = Norm(x, norms[0].kind, norms[0].eps, groups, name, gain, bias)
    return Lanes(joined, in_place(x), np.ones_like(index), axis)


def _in_order(places: list[Index], function: Callable[..., Index], dim: int, axis: int) -> Index:
    """Where the whole's channels are among those of the parts, one part after the other."""
    offsets = np.cumsum([0, *(p.size for p in places[:-1])])
    whole = function([p + offset for p, offset in zip(places, offsets, strict=True)], dim)
    return np.moveaxis(whole, axis, 0).reshape(-1)
