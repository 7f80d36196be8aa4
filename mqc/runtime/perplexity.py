"""Perplexity and divergence: one definition for float models and integer programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mqc.errors import InputError

Ids = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
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
    logits_of: Callable[[Ids], Logits], windows: Sequence[Ids], progress: Progress = lambda share: None
) -> float:
    """exp of the mean negative log likelihood of each window's tokens after its first.

    Args:
        logits_of: real logits `[tokens, vocabulary]` of a window evaluated by itself.
        windows: token ids `[length]`; no start token is added.
    """
    total, count = 0.0, 0
    for number, window in enumerate(windows, 1):
        loss = losses(log_probabilities(logits_of(window)), window)
        total, count = total + float(loss.sum()), count + len(loss)
        progress(number / len(windows))
    return float(np.exp(total / count))


def log_probabilities(logits: Logits) -> Logits:
    """log softmax of logits `[tokens, vocabulary]`, in nats."""
    result = np.empty_like(logits)
    for rows in _blocks(len(logits)):
        x = logits[rows] - logits[rows].max(-1, keepdims=True)
        log_sum = np.log(np.exp(x).sum(-1, keepdims=True, dtype=np.float64))
        np.subtract(x, log_sum.astype(np.float32), out=result[rows])
    return result


def losses(log_p: Logits, window: Ids) -> Floats:
    """Negative log likelihood, in nats, of each token of a window but its first: `[tokens − 1]`.

    Args:
        log_p: log probabilities `[tokens, vocabulary]` behind each token of the window.
    """
    return -log_p[np.arange(len(window) - 1), window[1:]].astype(np.float64)


def divergences(log_p: Logits, log_q: Logits) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """KL(p ‖ q) of each token's prediction, in nats, and whether their likeliest tokens are equal:
    `[tokens]` each. Both log probabilities are `[tokens, vocabulary]`."""
    kl = [
        (np.exp(log_p[rows]) * (log_p[rows] - log_q[rows])).sum(-1, dtype=np.float64)
        for rows in _blocks(len(log_p))
    ]
    return np.concatenate(kl), log_p.argmax(-1) == log_q.argmax(-1)


def _blocks(count: int) -> Iterator[slice]:
    """Slices of 64 rows: what is computed between arrays stays small."""
    return (slice(start, min(start + 64, count)) for start in range(0, count, 64))
