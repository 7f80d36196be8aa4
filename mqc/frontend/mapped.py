"""Parameters that stay in the files they came from, and are f32 for whoever computes with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

_aten: Any = torch.ops.aten


class Widened(torch.Tensor):
    """An f32 tensor whose elements are kept in a narrower float type, e.g. as bf16 in a mapped file.

    An op that computes with it is given its elements as f32, which is exact, and they are gone after it; a
    lookup widens the rows that it looks up.
    """

    stored: torch.Tensor

    @staticmethod
    def __new__(cls, stored: torch.Tensor) -> Widened:
        made: Widened = torch.Tensor._make_wrapper_subclass(
            cls, stored.shape, strides=stored.stride(), dtype=torch.float32, device=stored.device
        )
        made.stored = stored
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function._schema.is_mutable:
            raise TypeError(f"{function} would change weights that stay in their file")
        if function.is_view and function is not _aten.view.dtype and isinstance(args[0], Widened):
            views = function(args[0].stored, *args[1:], **kwargs)
            return tree_map_only(torch.Tensor, Widened, views)
        if function is _aten.embedding.default and isinstance(args[0], Widened):
            return function(args[0].stored, *args[1:], **kwargs).float()
        return function(*tree_map_only(Widened, widened, args), **tree_map_only(Widened, widened, kwargs))

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Widened({self.stored!r})"


@contextmanager
def shapes_only(model: torch.nn.Module) -> Iterator[None]:
    """Widened parameters are plain f32 tensors in the block, for tools that know no others. Their elements
    mean nothing: nobody wrote them, so that they take no memory."""
    kept: dict[int, torch.nn.Parameter] = {}
    places: list[tuple[dict[str, Any], str, Any]] = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, Widened):
                places.append((module._parameters, name, parameter))
                empty = torch.nn.Parameter(torch.empty(parameter.shape), requires_grad=False)
                module._parameters[name] = kept.setdefault(id(parameter), empty)
    try:
        yield
    finally:
        for parameters, name, parameter in places:
            parameters[name] = parameter


def rows_of(tensor: torch.Tensor, rows: Any) -> torch.Tensor:
    """Rows of any tensor as a matrix, its last axis the columns, f32: no other row is widened."""
    stored = tensor.stored if isinstance(tensor, Widened) else tensor.detach()
    return stored.reshape(-1, stored.shape[-1])[torch.from_numpy(rows)].float()


def columns_of(tensor: torch.Tensor, columns: Any) -> torch.Tensor:
    """Columns of a matrix, f32: no other one is widened."""
    stored = tensor.stored if isinstance(tensor, Widened) else tensor.detach()
    return stored[:, torch.from_numpy(columns)].float()


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """A plain tensor with the elements of any."""
    return tensor.stored.float() if isinstance(tensor, Widened) else tensor.detach()
