"""Op lists: what the runtime executes, as a binary file and as text.

The file is little-endian 32-bit words: magic, version, bytes of VTCM, bytes of the KV cache, vocabulary and
the number of lists; then for each list its tokens, its number of words, and its commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mqc.backends.npu.commands import FIELDS, HEADER, OPCODES, WIDE, Command, binary
from mqc.errors import ArtifactError

MAGIC, VERSION = 0x4C50514D, 2
_KINDS = {opcode: name for name, opcode in OPCODES.items()}


@dataclass(frozen=True)
class CommandList:
    """Commands that compute `tokens` tokens."""

    tokens: int
    commands: list[Command]


@dataclass(frozen=True)
class OpList:
    """All lists of a program, and the sizes of the memory that they share. vocabulary: of the logits."""

    vtcm_bytes: int
    cache_bytes: int
    vocabulary: int
    lists: list[CommandList] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """The binary file."""
        head = [MAGIC, VERSION, self.vtcm_bytes, self.cache_bytes, self.vocabulary, len(self.lists)]
        parts = [np.array(head, "<u4")]
        for item in self.lists:
            words = binary(item.commands).astype("<u4")
            parts += [np.array([item.tokens, len(words)], "<u4"), words]
        return b"".join(part.tobytes() for part in parts)

    def write(self, path: Path) -> None:
        path.write_bytes(self.to_bytes())

    def __str__(self) -> str:
        """The text form: one command a line."""
        lines = [f"vtcm_bytes={self.vtcm_bytes} cache_bytes={self.cache_bytes} vocabulary={self.vocabulary}"]
        for item in self.lists:
            lines += ["", f"tokens={item.tokens}", *map(str, item.commands)]
        return "\n".join(lines) + "\n"


def read(path: Path) -> OpList:
    """An op list from its binary file, without the names of values. Raises `ArtifactError`."""
    data = path.read_bytes()
    if len(data) % 4 or len(data) < 24:
        raise ArtifactError(f"{path} is cut off: {len(data)} bytes")
    words = np.frombuffer(data, "<u4").tolist()
    if words[:2] != [MAGIC, VERSION]:
        raise ArtifactError(f"{path} is no op list of version {VERSION}")
    ops, at = OpList(*words[2:5]), 6
    for _ in range(words[5]):
        tokens, count = (*words[at : at + 2], 0, 0)[:2]
        at += 2 + count
        if at > len(words):
            raise ArtifactError(f"{path} is cut off: {len(data)} bytes")
        ops.lists.append(CommandList(tokens, list(_commands(words[at - count : at], path))))
    return ops


def _commands(words: list[int], path: Path) -> Iterator[Command]:
    at = 0
    while at < len(words):
        kind = _KINDS.get(words[at])
        names = FIELDS.get(kind or "", ())
        count = len(HEADER) + len(names) + len(WIDE.intersection(names))
        if kind is None or words[at + 1 : at + 2] != [count] or at + count > len(words):
            raise ArtifactError(f"{path}: no command at word {at} of a list")
        out, values = words[at + 2], iter(words[at + 3 : at + count])
        fields = {
            name: next(values) | next(values) << 32 if name in WIDE else _signed(next(values))
            for name in names
        }
        yield Command(kind, out, fields)
        at += count


def _signed(word: int) -> int:
    return word - (word >> 31 << 32)
