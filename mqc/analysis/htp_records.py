"""That the records of a matrix, which hold parameters too, state what @main says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mqc.analysis.evaluation import Evaluation
from mqc.dialects.constraints import bits
from mqc.dialects.int_ops import LinearOp
from mqc.errors import IRError
from mqc.ir.op import channels
from mqc.numerics.htp_tiles import Records, split_correction
from mqc.numerics.layouts import records


def sizes_of(op: LinearOp) -> Records:
    """The sizes of its records. Raises `IRError` if its weights have another layout."""
    layout = "" if op.layout is None else str(op.layout.data)
    if not layout.startswith("records"):
        raise IRError(f"int.linear %{op.value_name}: level htp needs its weights in records, not {layout!r}")
    return records(layout, channels(op.result), channels(op.x))


def check_records(op: LinearOp, evaluation: Evaluation) -> None:
    """Check bias, zero point, factors and requantization in the records of a matrix. Raises `IRError`."""
    sizes, array = sizes_of(op), evaluation.array
    stored, requant = array(op.weight), op.requant()
    if requant is None:
        raise IRError(f"int.linear %{op.value_name} must be followed by one int.requant alone")
    low, high, multiplier, shift = sizes.parameters(stored)
    parts = split_correction(op.correction(evaluation), bits(op.x))
    stated: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("bias and zero point", lambda: (low == parts[0]) & (high == parts[1])),
        ("multiplier", lambda: multiplier == array(requant.multiplier)),
        ("shift", lambda: shift == array(requant.shift)),
        ("factors", lambda: op.group_scale is None or sizes.factors(stored) == array(op.group_scale)),
        ("padding of inputs", lambda: sizes.padding(stored) == 0),
    )
    for what, holds in stated:
        if not np.all(holds()):
            raise IRError(f"int.linear %{op.value_name}: the {what} in its records are not those of @main")
