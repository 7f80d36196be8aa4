"""Steps of the engine, each of which gives one token or more."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection

import numpy as np

from mqc.backend import Engine
from mqc.runtime.sampling import Sampling, Steering
from mqc.runtime.speculation import Drafts, Lookup


class Steps:
    """Tokens that follow a sequence, one by one.

    With drafts the engine may be ahead of the sequence, by tokens that were chosen and not given out yet.

    Args:
        tokens: the sequence, to which the caller appends each token that it takes.
        ends: token ids that end it.
        scale, cap: of the logits (`Sampling.choose`).
        speculates: whether to draft tokens (`mqc.runtime.speculation`); the engine must be able to go back.
            The tokens are the same.
    """

    def __init__(
        self,
        engine: Engine,
        tokens: list[int],
        sampling: Sampling,
        steering: Steering | None,
        ends: Collection[int],
        scale: float,
        cap: float | None,
        speculates: bool,
    ) -> None:
        self._engine, self._tokens, self._ends = engine, tokens, ends
        self._sampling, self._steering, self._generator = sampling, steering, sampling.generator()
        self._scale, self._cap = scale, cap
        self._seen = set(tokens)
        self._chosen: deque[int] = deque()
        self._lookup = Lookup(tokens) if speculates else None
        self._drafts = Drafts()

    def next(self, most: int) -> int | None:
        """The next token, None at an end token; `most` are wanted from here on."""
        if not self._chosen:
            self._step(most)
        token = self._chosen.popleft()
        return None if token in self._ends else token

    def _step(self, most: int) -> None:
        engine, tokens = self._engine, self._tokens
        held = engine.position - engine.prefix_length
        fresh, draft = tokens[held:], []
        if self._lookup is not None and len(fresh) == 1:
            room = engine.context - engine.prefix_length - len(tokens)
            draft = self._lookup.draft(min(self._drafts.length(), most - 1, room))
        started = time.perf_counter()
        logits = engine.forward(np.array([*fresh, *draft], np.int32), rows=len(draft) + 1)
        took = time.perf_counter() - started
        right = 0
        for row, drafted in zip(logits, [*draft, None], strict=True):
            token = self._choose(row)
            if token != drafted or token in self._ends:
                break
            right += 1
        if right < len(draft):
            engine.rewind(engine.prefix_length + len(tokens) + right)
        if len(fresh) == 1:
            self._drafts.took(took, len(draft), right)

    def _choose(self, logits: np.ndarray) -> int:
        allowed = self._steering.allowed() if self._steering else None
        token = self._sampling.choose(logits, self._scale, self._generator, self._seen, self._cap, allowed)
        if self._steering:
            self._steering.chosen(token, logits)
        self._chosen.append(token)
        self._seen.add(token)
        if self._lookup is not None:
            self._lookup.append(token)
        return token
