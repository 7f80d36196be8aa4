"""More than one token a step: a draft is computed along with the last token, and kept as far as it is right.

Drafts are what followed the same tokens earlier in the sequence (prompt lookup, Saxena 2023; the n-grams of
"Lookahead decoding", arXiv 2402.02057, from the text alone). A right draft saves steps, since the weights are
read once for all tokens of a step. What is chosen does not depend on drafts: every token is chosen from the
logits that it would have alone.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Tokens that must recur before what followed them is a draft, longest first.
_LENGTHS = (4, 3, 2)
#: Most tokens of a draft.
MOST = 7
#: Steps without a draft, when drafts have cost more than they saved for the first time, and at most.
_REST, _LONGEST_REST = 8, 128


class Lookup:
    """Where runs of tokens stood last, in a sequence that grows."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        #: By run of tokens the position behind it.
        self._behind: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """The sequence goes on with a token."""
        # Runs count from the token behind them on, so that the last one does not find itself.
        for length in _LENGTHS:
            if len(self._tokens) >= length:
                self._behind[tuple(self._tokens[-length:])] = len(self._tokens)
        self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """At most so many tokens that may come next; none if the last ones never stood before."""
        for length in _LENGTHS:
            found = self._behind.get(tuple(self._tokens[-length:]))
            if found is not None and len(self._tokens) >= length:
                return self._tokens[found : found + most] if most > 0 else []
        return []


class Drafts:
    """How many tokens a draft may have: as many as pay, by the seconds that steps took.

    A step with a draft pays if the tokens that it gave would have taken longer one by one. The length
    doubles while whole drafts are right, and halves where nothing of one is. When drafts have cost more than
    they saved, there are none for a while, each time for longer.
    """

    def __init__(self) -> None:
        self._length = 2
        #: Mean seconds of a step with one token; None until there was one.
        self._single: float | None = None
        #: Seconds that drafts saved, not many of the past.
        self._saved = 0.0
        self._rest = _REST
        self._waits = 0

    def length(self) -> int:
        """Most tokens of the next draft."""
        if self._single is None:
            return 0
        if self._waits:
            self._waits -= 1
            return 0
        return self._length

    def took(self, seconds: float, draft: int, right: int) -> None:
        """A step took so long, with a draft of so many tokens, of which the first `right` were right."""
        if not draft:
            mean = seconds if self._single is None else self._single
            self._single = mean + (min(seconds, 4 * mean) - mean) / 8
            return
        assert self._single is not None
        self._saved = min(self._saved + (right + 1) * self._single - seconds, 8 * self._single)
        if right == draft:
            self._length = min(2 * self._length, MOST)
        elif not right:
            self._length = max(self._length // 2, 1)
        if self._saved < -2 * self._single:
            self._waits, self._rest = self._rest, min(2 * self._rest, _LONGEST_REST)
            self._saved = 0.0
        elif self._saved > 0:
            self._rest = _REST
