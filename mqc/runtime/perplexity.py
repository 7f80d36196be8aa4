"""Perplexity: one definition for float models and integer programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mqc.errors import InputError

Ids = npt.NDArray[np.int32]
Progress = Callable[[float], None]


def text_windows(ids: Sequence[int], length: int, count: int, skip: int = 0) -> list[Ids]:
    """`count` consecutive windows of `length` tokens, after `skip` windows.

    Raises `InputError` if the text is too short or the numbers make no sense.
    """
    if length < 2 or count < 1 or skip < 0:
        raise InputError("perplexity needs length >= 2, windows >= 1 and skip >= 0")
    need = (skip + count) * length
    if len(ids) < need:
        raise InputError(
            f"{skip} + {count} windows of {length} tokens need {need} tokens; "
            f"the text has {len(ids)}: lower --windows, --skip or --length"
        )
    array = np.asarray(ids[:need], np.int32).reshape(-1, length)
    return list(array[skip:])


def perplexity(
    logits_of: Callable[[Ids], npt.NDArray[np.float32]],
    windows: Sequence[Ids],
    progress: Progress = lambda share: None,
) -> float:
    """exp of the mean negative log likelihood of each window's tokens after its first.

    Args:
        logits_of: real logits `[tokens, vocabulary]` of a window evaluated by itself.
        windows: token ids `[length]`; no start token is added.
    """
    total, count = 0.0, 0
    for number, window in enumerate(windows, 1):
        logits = logits_of(window)
        for start in range(0, len(window) - 1, 64):
            x = logits[start : min(start + 64, len(window) - 1)]
            top = x.max(-1, keepdims=True)
            log_sum = np.log(np.exp(x - top).sum(-1, dtype=np.float64)) + top[:, 0]
            targets = window[start + 1 : start + 1 + len(x)]
            total += float((log_sum - x[np.arange(len(x)), targets]).sum())
            count += len(x)
        progress(number / len(windows))
    return float(np.exp(total / count))
