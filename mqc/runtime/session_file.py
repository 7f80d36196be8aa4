"""Sessions on disk: one safetensors file, whose tensors are the tokens and what ops keep of them.

Its metadata state the program by its hash, the conversation, and a hash of everything in the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mqc.arrays import Array
from mqc.errors import ArtifactError
from mqc.files import check_regular, json_object, replacing
from mqc.ir.op import State
from mqc.ir.weight_store import numpy_dtype

_VERSION = "mqc session 1"
_TOKENS, _STATE = "tokens", "state."


@dataclass(frozen=True)
class Saved:
    """What a session is: all its tokens, of which the first `cached` are in `state`; and the conversation.

    turns: where turns began, as numbers of tokens and of messages.
    """

    tokens: list[int]
    cached: int
    state: dict[str, Array]
    messages: list[dict[str, Any]]
    turns: list[tuple[int, int]]


def write(path: Path, program: str, saved: Saved) -> None:
    """Write a session; the file appears whole or not at all. Raises `StorageError`.

    program: the hash of the program that it belongs to.
    """
    tensors = {_STATE + name: np.ascontiguousarray(array) for name, array in saved.state.items()}
    tensors[_TOKENS] = np.array(saved.tokens, np.int32)
    conversation = json.dumps({"messages": saved.messages, "turns": saved.turns, "cached": saved.cached})
    metadata = {"format": _VERSION, "program": program, "conversation": conversation}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata | {"sha256": _digest(metadata, tensors)})


def read(path: Path, program: str, states: Sequence[State], vocabulary: int, room: int) -> Saved:
    """Read what `write` wrote.

    Args:
        program: the hash of the program that is to go on.
        states: what its ops keep. vocabulary: of token ids. room: positions behind the prefix.

    Raises `ArtifactError` if the file is truncated, altered, of another program, or no session's.
    """
    check_regular(path, ArtifactError)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            names = set(file.keys())
            if metadata.get("format") != _VERSION:
                raise ArtifactError(f"{path} is no session, or one of another version of mqc")
            if metadata.get("program") != program:
                raise ArtifactError(f"{path} is the session of another program; load the one that saved it")
            if names != {_TOKENS, *(_STATE + state.name for state in states)}:
                raise ArtifactError(f"{path}: its tensors are not those that the program keeps")
            count = _rows(path, file, _TOKENS, np.dtype(np.int32), (), room)
            tensors = {_TOKENS: file.get_tensor(_TOKENS)}
            for state in states:
                name, dtype = _STATE + state.name, numpy_dtype(state.element)
                if state.grows:
                    _rows(path, file, name, dtype, state.shape, count)
                else:
                    _check(path, file, name, dtype, state.shape)
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read as a session: {error}") from error
    if metadata.pop("sha256", None) != _digest(metadata, tensors):
        raise ArtifactError(f"{path} was altered: its SHA-256 is not the one that it states")
    tokens = tensors.pop(_TOKENS)
    if count and not (tokens.min() >= 0 and tokens.max() < vocabulary):
        raise ArtifactError(f"{path}: a token is outside the vocabulary of {vocabulary}")
    kept = {name.removeprefix(_STATE): array for name, array in tensors.items()}
    return Saved(tokens.tolist(), *_conversation(path, metadata, kept, states, count))


def _conversation(
    path: Path, metadata: Mapping[str, str], state: dict[str, Array], states: Sequence[State], count: int
) -> tuple[int, dict[str, Array], list[dict[str, Any]], list[tuple[int, int]]]:
    """`cached`, `state`, `messages` and `turns`, of the types that they should have."""
    try:
        told = json_object(metadata["conversation"])
        cached, messages, turns = told["cached"], told["messages"], told["turns"]
        good = type(cached) is int and 0 <= cached <= count
        good &= all(len(state[one.name]) == cached for one in states if one.grows)
        good &= isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
        good &= all(type(number) is int and number >= 0 for turn in turns for number in turn)
        pairs = [(tokens, told_before) for tokens, told_before in turns]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: its conversation cannot be read: {error}") from error
    if not good:
        raise ArtifactError(f"{path}: its conversation does not fit its tensors")
    return cached, state, messages, pairs


def _rows(path: Path, file: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], most: int) -> int:
    """How many rows of a shape a tensor has, at most `most`; nothing of it is read."""
    rows = int((*file.get_slice(name).get_shape(), 0)[0])
    _check(path, file, name, dtype, (min(rows, most), *shape))
    return rows


def _check(path: Path, file: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    found = file.get_slice(name)
    got, kind = tuple(found.get_shape()), _KINDS.get(found.get_dtype())
    if got != shape or kind != dtype:
        raise ArtifactError(f"{path}: tensor {name} is {kind}{list(got)}, not {dtype}{list(shape)}")


#: Element types of tensors, by safetensors' names.
_KINDS = {
    code: np.dtype(name)
    for code, name in {
        "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    }.items()
}  # fmt: skip


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Array]) -> str:
    """SHA-256 of all that a session's file says."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
