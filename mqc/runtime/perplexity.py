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
        loss = losses(logits_of(window), window)
        total, count = total + float(loss.sum()), count + len(loss)
        progress(number / len(windows))
    return float(np.exp(total / count))


def losses(logits: Logits, window: Ids) -> Floats:
    """Negative log likelihood, in nats, of each token of a window but its first: `[tokens − 1]`.

    Args:
        logits: real logits `[tokens, vocabulary]` of the window.
    """
    parts = []
    for rows in _blocks(len(window) - 1):
        x = logits[rows]
        parts.append(_log_sum(x) - x[np.arange(len(x)), window[1:][rows]])
    return np.concatenate(parts)


def divergences(reference: Logits, logits: Logits) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """KL(reference ‖ logits) of each token's prediction, in nats, and whether their likeliest tokens are
    equal: `[tokens]` each. Both logits are `[tokens, vocabulary]`."""
    kl, equal = [], []
    for rows in _blocks(len(logits)):
        p, q = reference[rows], logits[rows]
        log_p = p - _log_sum(p)[:, None].astype(np.float32)
        log_q = q - _log_sum(q)[:, None].astype(np.float32)
        kl.append((np.exp(log_p) * (log_p - log_q)).sum(-1, dtype=np.float64))
        equal.append(p.argmax(-1) == q.argmax(-1))
    return np.concatenate(kl), np.concatenate(equal)


def _blocks(count: int) -> Iterator[slice]:
    """Slices of 64 rows: copies of the logits stay small."""
    return (slice(start, min(start + 64, count)) for start in range(0, count, 64))


def _log_sum(x: Logits) -> Floats:
    """log of the sum of exp over the last axis."""
    top = x.max(-1, keepdims=True)
    return np.asarray(np.log(np.exp(x - top).sum(-1, dtype=np.float64)) + top[:, 0], np.float64)
