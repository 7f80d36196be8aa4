"""Channels of different values side by side, by a concatenation or by copies into a new tensor."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mqc.frontend.lanes import Elementwise, Index, Lanes, Rotary, lanes_of

Part = Lanes | Rotary | Elementwise


@dataclass(frozen=True)
class Joined:
    """Parts along the last axis; an axis on which one has size 1 repeats it. axis: tokens. order: of the last
    axis, if it was changed."""

    parts: tuple[Part, ...]
    axis: int
    order: Index | None = None

    def index(self) -> Index:
        """Channel numbers of the parts' values side by side, in the order of the whole's channels."""
        numbers: list[Index] = []
        offset = 0
        for part in self.parts:
            shape = (lanes_of(part) if isinstance(part, Elementwise) else part).index.shape
            count = int(np.prod(shape))
            moved = np.moveaxis(np.empty(shape), self.axis, 0).shape
            numbers.append(np.moveaxis(np.arange(count).reshape(moved), 0, self.axis) + offset)
            offset += count
        leading = np.broadcast_shapes(*(n.shape[:-1] for n in numbers))
        whole = np.concatenate([np.broadcast_to(n, (*leading, n.shape[-1])) for n in numbers], -1)
        if self.order is not None:
            whole = whole[..., self.order]
        return np.moveaxis(whole, self.axis, 0).reshape(-1)


def rotated_first(q: Any, k: Any) -> tuple[Any, Any]:
    """Queries and keys with what is rotated in front in each head, in both alike, which keeps their products.
    Values that need no change, or that allow none, are given back."""
    if isinstance(k, Blank):
        k = k.joined()
    if not isinstance(q, Rotary) or not isinstance(k, Rotary | Lanes | Joined):
        return q, k
    rotated = q.column.reshape(-1, q.column.shape[-1])[0] >= 0
    if rotated[: rotated.sum()].all():
        return q, k
    order = np.argsort(~rotated, kind="stable")
    return _reordered(q, order), _reordered(k, order)


def _reordered(value: Rotary | Lanes | Joined, order: Index) -> Rotary | Lanes | Joined:
    if isinstance(value, Joined):
        return replace(value, order=order)
    return value.map(lambda i: i[..., order], value.axis)


@dataclass(eq=False)
class Blank:
    """A new tensor whose elements are copied into it, part by part of the last axis."""

    shape: tuple[int, ...]
    axis: int | None
    parts: dict[tuple[int, int], Part] = field(default_factory=dict)

    def slice(self, arguments: list[Any]) -> BlankPart:
        """A slice. Raises `ValueError` for one of another axis than the last."""
        dim, start, stop = (*arguments, None, None)[:3]
        if dim % len(self.shape) != len(self.shape) - 1 or len(arguments) > 3:
            raise ValueError("of a new tensor, but of its last axis, has no llm form")
        width = self.shape[-1]
        return BlankPart(self, start or 0, width if stop is None else min(stop, width))

    def joined(self) -> Joined:
        """The whole. Raises `ValueError` unless its parts are all of it."""
        places = sorted(self.parts)
        ends = [0, *(stop for _, stop in places)]
        if [start for start, _ in places] != ends[:-1] or ends[-1] != self.shape[-1] or self.axis is None:
            raise ValueError("of a new tensor of which some elements were never written has no llm form")
        return Joined(tuple(self.parts[place] for place in places), self.axis)


@dataclass(frozen=True)
class BlankPart:
    """Channels [start, stop) of a new tensor."""

    whole: Blank
    start: int
    stop: int

    def fill(self, value: Any) -> None:
        """Copy a value into it. Raises `ValueError` for one that is no value of tokens."""
        if not isinstance(value, Lanes | Rotary | Elementwise):
            raise ValueError("of this into a new tensor has no llm form")
        self.whole.parts[self.start, self.stop] = value
