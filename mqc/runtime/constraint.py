"""Answers that keep a form: a JSON schema, a regular expression, one of some texts.

The form is compiled to sets of tokens by the llguidance library (extra `serve`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance
import numpy as np
import numpy.typing as npt

from mqc.errors import InputError
from mqc.runtime.tokenizer import TOKENIZER, Tokenizer

#: Space between the parts of JSON. A small model that may write as much of it as it likes writes no more
#: than that.
_SPACE = r"( |\n {0,32})?"


class Constraints:
    """Makes constraints on a program's tokens, and knows their bytes.

    Args:
        vocabulary: of the program's logits.

    Raises `InputError` for a tokenizer that llguidance cannot read.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._ends = sorted(tokenizer.ends)
        self._vocabulary = vocabulary
        try:
            self._tokens = llguidance.LLTokenizer(tokenizer.files[TOKENIZER], vocabulary, self._ends or None)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"llguidance cannot read this tokenizer: {error}") from error

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token's text; those of a control token's name."""
        return bytes(self._tokens.decode_bytes([token]))

    def json(self, schema: Mapping[str, Any]) -> Constraint:
        """Answers that are JSON of a schema (JSON Schema). Raises `InputError`, as all of these do."""
        return self._made(
            llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(schema), overrides={"whitespace_pattern": _SPACE}
            )
        )

    def regex(self, pattern: str) -> Constraint:
        """Answers that match a regular expression as a whole."""
        return self._made(llguidance.LLMatcher.grammar_from_regex(pattern))

    def choice(self, texts: Sequence[str]) -> Constraint:
        """Answers that are one of some texts."""
        if not texts or "" in texts:
            raise InputError("a choice needs texts, none of them empty")
        return self._made(llguidance.grammar_from("choice", json.dumps(list(texts))))

    def _made(self, grammar: str) -> Constraint:
        if not self._ends:
            raise InputError("the tokenizer names no end token: an answer of a given form could not end")
        matcher = llguidance.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise _wrong(matcher)
        return Constraint(matcher, self._vocabulary)


class Constraint:
    """A `Steering` that lets an answer keep a form. It serves one answer; `begin` gives another."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def begin(self) -> Constraint:
        """The same constraint at its beginning."""
        matcher = self._matcher.deep_copy()
        matcher.reset()
        return Constraint(matcher, self._vocabulary)

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Tokens with which the answer keeps the form; end tokens where it may end, `[vocabulary]`."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise _wrong(self._matcher)
        tokens = np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_)
        if not tokens.any():
            raise InputError("the form of the answer: the tokenizer has no token that could follow")
        return tokens

    def chosen(self, token: int, logits: npt.NDArray[np.int32]) -> None:
        """Go on behind a token. Raises `InputError` if it breaks the form."""
        if not self._matcher.consume_token(token):
            raise _wrong(self._matcher)


def _wrong(matcher: llguidance.LLMatcher) -> InputError:
    """What is wrong, without the parser's state."""
    return InputError(f"the form of the answer: {matcher.get_error().partition('<state>')[0].strip()}")
