"""Windows of token ids to calibrate and to measure on: of texts, and of conversations by a chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from mqc.calibration import Calibration, Windows
from mqc.data import Part, code, questions, text
from mqc.errors import CalibrationError, InputError
from mqc.runtime.tokenizer import Tokenizer

Message = Mapping[str, Any]
Conversation = Sequence[Message]

#: Turns of the packaged conversations, one after the other.
_TURNS = 1, 3, 2, 5, 8
_SYSTEM = "You answer questions of school science in a few words."
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up in an encyclopedia.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "The word to look up."}},
            "required": ["word"],
        },
    },
}


def packaged_calibration(tokenizer: Tokenizer, vocabulary: int, length: int) -> Calibration:
    """WikiText-2; conversations, if the tokenizer has a chat template; and code: see `Calibration.of`."""
    sections = [
        _windows(tokenizer.encode(given("calibration"), start=False), length) for given in (text, code)
    ]
    if tokenizer.has_template:
        try:
            sections.insert(1, packaged_conversations(tokenizer, "calibration", length))
        except InputError as error:
            error.add_note("calibrate on a text of your own instead: calibration=…, --calibration FILE")
            raise
    return Calibration.of(sections, vocabulary, tokenizer.bos, tokenizer.in_front)


def calibration_from(
    tokenizer: Tokenizer, given: str | Sequence[Conversation], vocabulary: int, length: int
) -> Calibration:
    """From a user's text, or conversations.

    Raises `CalibrationError` if it is less than one window.
    """
    if isinstance(given, str):
        windows = _windows(tokenizer.encode(given, start=False), length)
    else:
        windows = conversation_windows(tokenizer, given, length)
    return Calibration.of([windows], vocabulary, tokenizer.bos, tokenizer.in_front)


def conversation_windows(tokenizer: Tokenizer, given: Sequence[Conversation], length: int) -> Windows:
    """Windows `[count, length]` of conversations by the chat template, without the tokens that begin every
    sequence. Each begins with a conversation, and is filled with further ones; what is over is dropped.

    Raises `CalibrationError` if they are less than one window.
    """
    bare = tokenizer.behind(tokenizer.in_front)
    return _packed((bare.chat(c, add_generation_prompt=False) for c in given), length)


def conversations_of(content: str) -> list[list[Message]]:
    """Conversations from JSON lines, each an object with `messages`, a list of objects with `role` and
    `content`. Raises `InputError` for other lines."""
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {number} is no JSON: {error}") from error
        messages = row.get("messages") if isinstance(row, dict) else None
        if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
            raise InputError(
                f'line {number} must read {{"messages": [{{"role": "user", "content": "…"}}, …]}}'
            )
        found.append(messages)
    return found


def packaged_conversations(tokenizer: Tokenizer, part: Part, length: int) -> Windows:
    """Packaged questions and answers as `conversation_windows`: of several turns; some with a system message
    and some with a tool, where the template takes them."""
    bare, left, turns = tokenizer.behind(tokenizer.in_front), iter(questions(part)), cycle(_TURNS)

    def conversations() -> Iterator[list[int]]:
        number = 0
        while exchanges := [pair for _, pair in zip(range(next(turns)), left, strict=False)]:
            number += 1
            system = [{"role": "system", "content": _SYSTEM}] if number % 3 == 0 else []
            roles = ("user", "assistant")
            messages = [
                {"role": r, "content": t} for pair in exchanges for r, t in zip(roles, pair, strict=True)
            ]
            tools: dict[str, Any] = {"tools": [_TOOL]} if number % 4 == 0 else {}
            try:
                yield bare.chat([*system, *messages], add_generation_prompt=False, **tools)
            except InputError:  # not every template takes these
                yield bare.chat(messages, add_generation_prompt=False)

    return _packed(conversations(), length)


def _windows(ids: Sequence[int], length: int) -> Windows:
    if len(ids) < length:
        raise CalibrationError(
            f"calibration needs a text of at least {length} tokens, got {len(ids)}; "
            "give a longer one, from the domain that the model will see"
        )
    return np.asarray(ids[: len(ids) // length * length], np.int64).reshape(-1, length)


def _packed(texts: Iterable[list[int]], length: int) -> Windows:
    """Windows that begin with a text, and go on with further ones; what is over is dropped."""
    windows, filling, seen = [], list[int](), 0
    for ids in texts:
        filling += ids
        seen += len(ids)
        if len(filling) >= length:
            windows.append(filling[:length])
            filling = []
    if not windows:
        raise CalibrationError(
            f"calibration needs conversations of at least {length} tokens, got {seen}; give more of them"
        )
    return np.array(windows, np.int64)
