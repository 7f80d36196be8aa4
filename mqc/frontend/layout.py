"""Layout ops on symbolic values: views, transposes, slices, splits and joins of channel numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from mqc.frontend.joins import Joined, Part
from mqc.frontend.lanes import Beside, Index, Lanes, Length, Linear, Rotary, lanes_of
from mqc.frontend.norms import joined_norms

VIEWS = {"view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as"}
_WHOLE = 2**62  # torch writes "to the end" as a stop of 2^63 - 1


def relayout(
    name: str, value: Lanes | Rotary, args: list[Any], shape: tuple[int, ...], axis: int | None
) -> Any:
    """Carry out an aten layout op.

    Args:
        name: of the op, without overload. args: its arguments after the tensor.
        shape: of the result, the token axis of size 1. axis: token axis of the result.

    Returns a value, or a list of them where the op gives several. Raises `ValueError` with the
    reason where the op has no `llm` form.
    """
    rank = value.index.ndim
    if any(isinstance(a, Length) and a.negative for n, a in enumerate(args) if (name, n) != ("slice", 1)):
        raise ValueError("up to minus the number of tokens has no llm form")
    # None: as many tokens as there are.
    args = [a.value if isinstance(a, Length) else a for a in args]
    if name in VIEWS:
        if axis is None or np.prod(value.index.shape[: value.axis]) != np.prod(shape[:axis]):
            raise ValueError("mixes tokens and channels, which has no llm form")
        return value.map(lambda i: i.reshape(shape), axis)
    match name:
        case "transpose":
            order = list(range(rank))
            first, second = args[0] % rank, args[1] % rank
            order[first], order[second] = order[second], order[first]
            return value.map(lambda i: i.transpose(order), order.index(value.axis))
        case "permute":
            order = [d % rank for d in args[0]]
            return value.map(lambda i: i.transpose(order), order.index(value.axis))
        case "slice":
            return _slice(value, args)
        case "select":
            dim = args[0] % rank
            _keep_tokens(dim, value)
            return value.map(partial(np.take, indices=args[1], axis=dim), value.axis - (dim < value.axis))
        case "unbind":
            dim = (args[0] if args else 0) % rank
            _keep_tokens(dim, value)
            axis_after = value.axis - (dim < value.axis)
            return [
                value.map(partial(np.take, indices=n, axis=dim), axis_after)
                for n in range(value.index.shape[dim])
            ]
        case "index":
            return _index(value, args[0])
        case "broadcast_to" if axis is not None:
            return value.map(lambda i: np.broadcast_to(i, shape), axis)
        case "chunk" | "split" | "split_with_sizes":
            return _split(name, value, args)
    raise ValueError("has no llm form")


def _keep_tokens(dim: int, value: Lanes | Rotary) -> None:
    if dim == value.axis:
        raise ValueError("takes some of the tokens, which has no llm form")


def _slice(value: Lanes | Rotary, args: list[Any]) -> Lanes | Rotary:
    defaults: list[Any] = [0, None, None, 1]
    dim, start, stop, step = args + defaults[len(args) :]
    dim %= value.index.ndim
    if dim == value.axis and start in (0, None) and (stop is None or stop >= _WHOLE) and step == 1:
        return value
    _keep_tokens(dim, value)
    taken = (slice(None),) * dim + (slice(start, stop, step),)
    return value.map(lambda i: i[taken], value.axis)


def _index(value: Lanes | Rotary, places: list[Any]) -> Lanes | Rotary:
    """`value[:, …, [places], …]`, along one axis."""
    chosen = [(dim, place) for dim, place in enumerate(places) if place is not None]
    if len(chosen) != 1 or not isinstance(chosen[0][1], torch.Tensor) or chosen[0][1].ndim != 1:
        raise ValueError("by more than the places of one axis has no llm form")
    dim, place = chosen[0]
    _keep_tokens(dim, value)
    return value.map(partial(np.take, indices=place.numpy(), axis=dim), value.axis)


def _split(name: str, value: Lanes | Rotary, args: list[Any]) -> list[Lanes | Rotary]:
    dim = (args[1] if len(args) > 1 else 0) % value.index.ndim
    _keep_tokens(dim, value)
    size = value.index.shape[dim]
    if name == "split_with_sizes":
        cuts = np.cumsum(args[0])[:-1]
    else:
        part = -(-size // args[0]) if name == "chunk" else args[0]
        cuts = np.arange(part, size, part)
    return [value.map(partial(_part, cuts, dim, n), value.axis) for n in range(len(cuts) + 1)]


def _part(cuts: Index, dim: int, number: int, array: Index) -> Index:
    return np.split(array, cuts, dim)[number]


def join(
    parts: Sequence[Any], function: Callable[..., Index], dim: int, axis: int
) -> Lanes | Rotary | Joined:
    """Concatenate or stack (`function`) channels of one value along `dim`; `axis`: tokens after it.

    Parts of a rotary embedding may be joined, and with channels that pass through. Raises `ValueError`.
    """
    first = parts[0]
    if (products := _products_of_one(parts)) is not None:
        parts, first = products, products[0]
    if not all(isinstance(p, Lanes | Rotary) and p.base is first.base for p in parts):
        if (norm := joined_norms(parts, function, dim, axis)) is not None:
            return norm
        last = all(isinstance(p, Part) for p in parts) and dim in (-1, lanes_of(first).index.ndim - 1)
        if last and function is np.concatenate and axis != lanes_of(first).index.ndim - 1:
            return Joined(tuple(parts), axis)
        raise ValueError("joins channels of different values, which has no llm form")
    rotated = [p for p in parts if isinstance(p, Rotary)]
    if not rotated:
        index, sign = (function([getattr(p, f) for p in parts], dim) for f in ("index", "sign"))
        return Lanes(first.base, index, sign, axis)
    cos, sin = rotated[0].cos, rotated[0].sin
    whole = [p.with_tables(cos, sin) if isinstance(p, Rotary) else _unrotated(p, rotated[0]) for p in parts]
    if None in whole:
        raise ValueError("joins two rotary embeddings, which has no llm form")
    index, pair, sign, column = (
        function([getattr(p, f) for p in whole], dim) for f in ("index", "pair", "sign", "column")
    )
    return Rotary(first.base, index, pair, sign, column, rotated[0].cos, rotated[0].sin, axis)


def _products_of_one(parts: Sequence[Any]) -> list[Lanes] | None:
    """Parts that are channels of different matrix products of one value, as channels of all of them side by
    side; None if they are not."""
    bases = [p.base for p in parts if isinstance(p, Lanes) and isinstance(p.base, Linear)]
    if len(bases) < len(parts) or len({id(b) for b in bases}) == 1:
        return None
    leading = {p.index.shape[:-1] for p in parts}
    if any(b.x is not bases[0].x or b.gates is not None for b in bases) or len(leading) > 1:
        return None
    found = list({id(b): b for b in bases}.values())
    beside = Beside(tuple(found))
    begins = np.cumsum([0, *(len(b.weight) for b in found)])
    place = {id(b): int(n) for b, n in zip(found, begins, strict=False)}
    return [replace(p, base=beside, index=p.index + place[id(p.base)]) for p in parts]


def _unrotated(lanes: Lanes, like: Rotary) -> Rotary:
    zero = np.zeros_like(lanes.index)
    return Rotary(lanes.base, lanes.index, lanes.index, zero, zero - 1, like.cos, like.sin, lanes.axis)
