"""From a request to pieces of its answer, and the chances of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mqc.runtime.constraint import Constraint
from mqc.runtime.program import Program
from mqc.runtime.sampling import Sampling, log_probabilities
from mqc.runtime.session import Session
from mqc.runtime.stop_texts import until_stop

#: Rows of float64 chances that are held at once.
_ROWS = 16


class Chance(NamedTuple):
    """A token, the logarithm of its probability, and the likeliest tokens at its place; None for the token
    that begins a text.

    The probabilities are the model's: before temperature, penalties and constraints.
    """

    token: int
    logprob: float | None
    top: list[tuple[int, float]] | None


@dataclass(frozen=True)
class Plan:
    """What one answer is to be.

    most: tokens of it. stop_ids, stop_texts: what ends it beside the model's own end tokens. chances: how
    many of the likeliest tokens are told with each token; None for no chances at all. continues: the answer
    goes on with a text, as completions do. echo: the text of the prompt, if the answer begins with it.
    """

    prompt: Sequence[int]
    most: int
    sampling: Sampling
    stop_ids: list[int] = field(default_factory=list)
    stop_texts: list[str] = field(default_factory=list)
    constraint: Constraint | None = None
    chances: int | None = None
    continues: bool = False
    echo: str | None = None


class Piece(NamedTuple):
    """A piece of an answer: its text, and the chances of the tokens that came since the last piece.

    finish: on the last piece why the answer ended, `stop` or `length`.
    """

    text: str
    chances: list[Chance]
    finish: str | None = None


def answer(session: Session, program: Program, plan: Plan) -> Iterator[Piece]:
    """Pieces of an answer as they are generated; the last one says why it ended."""
    if plan.echo is not None:
        told = [] if plan.chances is None else list(_of_prompt(session, program, plan.prompt, plan.chances))
        yield Piece(plan.echo, told)
    if plan.most == 0:
        yield Piece("", [], "length")
        return
    watch = _Watch(plan, program.logit_scale, program.logit_cap)
    ended = False

    def tokens() -> Iterator[int]:
        nonlocal ended
        # Without a watch tokens may be drafted.
        watched = plan.constraint is not None or plan.chances is not None
        yield from session.follow(
            plan.prompt, plan.most, plan.sampling, plan.stop_ids, watch if watched else None
        )
        ended = True

    pieces = program.tokenizer.decode_stream(tokens(), plan.continues)
    for text in until_stop(pieces, plan.stop_texts):
        yield Piece(text, watch.taken())
    full = ended and session.turn.generated == plan.most
    yield Piece("", watch.taken(), "length" if full else "stop")


def _of_prompt(session: Session, program: Program, ids: Sequence[int], top: int) -> Iterator[Chance]:
    """The chances of a prompt's tokens."""
    yield Chance(ids[0], None, None)
    targets = iter(ids[1:])
    for part in session.evaluate_in_parts(ids):
        for start in range(0, len(part), _ROWS):
            rows = log_probabilities(part[start : start + _ROWS], program.logit_scale, program.logit_cap)
            for row, token in zip(rows, targets, strict=False):
                yield _chance(row, token, top)


class _Watch:
    """A `Steering`: a plan's constraint, and the chances of what was chosen."""

    def __init__(self, plan: Plan, scale: float, cap: float | None) -> None:
        self._constraint = plan.constraint.begin() if plan.constraint else None
        self._top, self._scale, self._cap = plan.chances, scale, cap
        self._chances: list[Chance] = []

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        return self._constraint.allowed() if self._constraint else None

    def chosen(self, token: int, logits: npt.NDArray[np.int32]) -> None:
        if self._constraint:
            self._constraint.chosen(token, logits)
        if self._top is not None:
            self._chances.append(_chance(log_probabilities(logits, self._scale, self._cap), token, self._top))

    def taken(self) -> list[Chance]:
        """The chances since it was last asked."""
        found, self._chances = self._chances, []
        return found


def _chance(row: npt.NDArray[np.float64], token: int, top: int) -> Chance:
    top = min(top, len(row))
    likeliest = np.argpartition(row, len(row) - top)[len(row) - top :] if top else np.empty(0, np.int64)
    ordered = sorted(likeliest.tolist(), key=lambda i: (-row[i], i))
    return Chance(token, float(row[token]), [(i, float(row[i])) for i in ordered])
