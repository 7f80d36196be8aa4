"""Answers as the OpenAI API writes them: whole, and in pieces of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from mqc.serving.answers import Chance, Piece

#: The bytes of a token's text.
Bytes = Callable[[int], bytes]


class Chat:
    """Replies of `/v1/chat/completions`. model: the name that they state."""

    def __init__(self, model: str, token_bytes: Bytes) -> None:
        self._head = _head("chatcmpl", model)
        self._bytes = token_bytes

    def whole(self, answers: Sequence[Sequence[Piece]], usage: dict[str, Any]) -> dict[str, Any]:
        """All answers, one after the other."""
        choices = []
        for index, pieces in enumerate(answers):
            text = "".join(piece.text for piece in pieces)
            choice: dict[str, Any] = {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": self._chances([c for piece in pieces for c in piece.chances]),
                "finish_reason": pieces[-1].finish,
            }
            choices.append(choice)
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage}

    def first(self, index: int) -> dict[str, Any] | None:
        """What a stream says before the pieces of an answer."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece of an answer in a stream."""
        delta = {"content": piece.text} if piece.text else {}
        return self._chunk(index, delta, self._chances(piece.chances), piece.finish)

    def last(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The numbers of tokens, behind a stream's answers."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _chunk(self, index: int, delta: Any, logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _chances(self, chances: Sequence[Chance]) -> dict[str, Any] | None:
        if not chances:
            return None
        content = [
            {**self._one(c.token, c.logprob), "top_logprobs": [self._one(*other) for other in c.top or ()]}
            for c in chances
        ]
        return {"content": content, "refusal": None}

    def _one(self, token: int, logprob: float | None) -> dict[str, Any]:
        data = self._bytes(token)
        return {"token": shown(data), "logprob": logprob, "bytes": list(data)}


class Completion:
    """Replies of `/v1/completions`. model: the name that they state."""

    def __init__(self, model: str, token_bytes: Bytes) -> None:
        self._head = {**_head("cmpl", model), "object": "text_completion"}
        self._bytes = token_bytes
        #: By answer the characters of the tokens that were told.
        self._told: dict[int, int] = {}

    def whole(self, answers: Sequence[Sequence[Piece]], usage: dict[str, Any]) -> dict[str, Any]:
        """All answers, one after the other."""
        choices = []
        for index, pieces in enumerate(answers):
            text = "".join(piece.text for piece in pieces)
            chances = [c for piece in pieces for c in piece.chances]
            choices.append(self._choice(index, Piece(text, chances, pieces[-1].finish)))
        return {**self._head, "choices": choices, "usage": usage}

    def first(self, index: int) -> dict[str, Any] | None:
        """What a stream says before the pieces of an answer: nothing."""
        return None

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece of an answer in a stream."""
        return {**self._head, "choices": [self._choice(index, piece)]}

    def last(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The numbers of tokens, behind a stream's answers."""
        return {**self._head, "choices": [], "usage": usage}

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        logprobs = self._rows(index, piece.chances) if piece.chances else None
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}

    def _rows(self, index: int, chances: Sequence[Chance]) -> dict[str, Any]:
        texts, offsets = [shown(self._bytes(c.token)) for c in chances], []
        for text in texts:
            offsets.append(self._told.get(index, 0))
            self._told[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [c.logprob for c in chances],
            "top_logprobs": [
                None if c.top is None else {shown(self._bytes(token)): value for token, value in c.top}
                for c in chances
            ],
            "text_offset": offsets,
        }


def shown(data: bytes) -> str:
    """A token's text; bytes that are no whole characters as the API writes them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def event(data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def failure(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as the API writes it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
