"""Texts that end an answer, of any length: they need not be whole tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mqc.errors import InputError
from mqc.runtime.tokenizer import Tokenizer


def split_stops(tokenizer: Tokenizer, stop: Iterable[int | str]) -> tuple[list[int], list[str]]:
    """Token ids that end an answer, and texts that do; a single text may be given by itself.

    The text of a control token, which no answer shows, is its id. Raises `InputError` for an empty text.
    """
    ids, texts = [], []
    control = {text: number for number, text in tokenizer.control.items()}
    for one in [stop] if isinstance(stop, str) else stop:
        if isinstance(one, int):
            ids.append(one)
        elif not one:
            raise InputError("a stop text is empty")
        elif one in control:
            ids.append(control[one])
        else:
            texts.append(one)
    return ids, texts


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """A text in pieces up to a stop text: the one that is whole first, of several the longest.

    What may be the beginning of one is held back until it is known. How the text is cut into pieces does not
    matter.
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [(at + len(stop), at) for stop in stops if (at := held.find(stop)) >= 0]
        if found:
            held = held[: min(found)[1]]
            break
        begun = max((_begun(held, stop) for stop in stops), default=0)
        if len(held) > begun:
            yield held[: len(held) - begun]
            held = held[len(held) - begun :]
    if held:
        yield held


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop text."""
    most = min(len(stop) - 1, len(text))
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
