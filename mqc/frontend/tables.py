"""What depends on weights and positions alone: it is evaluated for all positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from mqc.frontend.lanes import SHORT, Elementwise, Lanes, Length, Lookup, Table, lanes_of
from mqc.frontend.mapped import widened
from mqc.frontend.nodes import concrete, flattened, token_axis, writes


def evaluated(node: Node, args: list[Any], context: int) -> Any:
    """The value of an FX node whose arguments are constants, tables and lengths: a constant, or tables.

    Raises `ValueError` where it cannot be computed for so many positions.
    """

    def value(short: bool) -> Any:
        given = concrete(args, context, short)
        if writes(node):
            given[0] = given[0].clone()  # a buffer of the model
        try:
            return node.target(*given, **node.kwargs)  # type: ignore[operator]
        except (IndexError, RuntimeError) as error:
            raise ValueError(
                f"cannot be evaluated for {context} positions ({error}); give a smaller context"
            ) from error

    result = value(short=False)
    if not any(isinstance(a, Table | Length) for a in flattened(args)):
        return result
    if isinstance(result, torch.Tensor):
        return Table(result, token_axis(node), value(short=True))
    if isinstance(result, tuple | list):
        pairs = zip(result, value(short=True), strict=True)
        return [Table(part, None, short) for part, short in pairs]
    if isinstance(result, int | float) and not isinstance(result, bool):
        return Length(result, value(short=True))
    return result


def table_plus(value: Any, vector: torch.Tensor) -> Lanes | None:
    """Rows of a table by token id, or a function of them, plus a vector: rows of another table. None if it is
    something else."""
    if not isinstance(value, Lanes | Elementwise) or not isinstance(lanes_of(value).base, Lookup):
        return None
    lanes = lanes_of(value)
    lookup = lanes.base
    assert isinstance(lookup, Lookup)
    if lanes.index.size != vector.numel() or (lanes.index.reshape(-1) != np.arange(vector.numel())).any():
        return None
    table = widened(lookup.table).float()
    table = (value.function(table) if isinstance(value, Elementwise) else table) + vector.reshape(-1)
    name = f"{lookup.weight_name}.sum"
    return replace(lanes, base=replace(lookup, table=table, weight_name=name, emitted={}))


def rows_of(table: Table, context: int) -> torch.Tensor:
    """A table's value. Raises `ValueError` if its rows depend on how many there are."""
    axis = table.axis
    if axis is not None:
        count = min(table.value.shape[axis], table.short.shape[axis])
        wide = torch.promote_types(table.value.dtype, torch.float64)
        first, same = (t.narrow(axis, 0, count).to(wide) for t in (table.value, table.short))
        if not torch.allclose(first, same):
            raise ValueError(
                f"takes positions by the length of the sequence: of {context} they are others than of "
                f"{SHORT}. A program has one table: give a context at which the model does not switch yet "
                "(longrope: `original_max_position_embeddings`)"
            )
    value: torch.Tensor = table.value
    return value
