"""The type of NumPy arrays whose dtype the text around them states, and their parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]

#: Elements of a block of rows.
_BLOCK = 1 << 23


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of consecutive rows that make up an array, of about eight million elements each."""
    rows = max(1, _BLOCK // max(math.prod(shape[1:]), 1))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))
