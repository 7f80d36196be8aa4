"""Token ids that are given to a program: the one place where they are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mqc.errors import InputError


def token_ids(ids: Any, vocabulary: int, room: int | None = None) -> npt.NDArray[np.int32]:
    """`ids` as contiguous s32 `[tokens]`.

    Raises `InputError` unless they are a flat list of at least one integer, all in
    [0, vocabulary), and at most `room` if that is given.
    """
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise InputError(f"token ids must be a flat list of integers: {error}") from error
    if array.ndim != 1:
        raise InputError(f"token ids must be a flat list of integers, not {array.ndim}-dimensional")
    if not len(array):
        raise InputError("give at least one token id")
    if array.dtype.kind not in "iu":
        raise InputError(f"token ids must be integers below {vocabulary}, got {array[:4].tolist()}")
    outside = (array < 0) | (array >= vocabulary)
    if outside.any():
        wrong = int(array[outside][0])
        raise InputError(f"token id {wrong} is outside the vocabulary; give token ids in [0, {vocabulary})")
    if room is not None and len(array) > room:
        raise InputError(
            f"{len(array)} tokens do not fit the context, which has room for {room}; "
            "shorten the prompt or compile with a larger context"
        )
    return np.ascontiguousarray(array, np.int32)
