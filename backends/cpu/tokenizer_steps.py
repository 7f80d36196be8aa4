"""Normalizer, pre-tokenizer and decoder of a `tokenizer.json`, as steps that the C tokenizer carries out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tokenizers import pre_tokenizers

from mqc.backends.cpu.tokenizer_pattern import Program
from mqc.backends.cpu.tokenizer_unicode import NormalForm, isolated, normal_form
from mqc.errors import TargetError

#: As `tokenizer.h` numbers them.
REPLACE, PREPEND, SPLIT, NORMALIZE = range(4)
ALWAYS, MISSING, MISSING_FIRST = range(3)
BEHAVIOURS = {"Isolated": 0, "Removed": 1, "MergedWithPrevious": 2, "MergedWithNext": 3, "Contiguous": 4}
TEXT, LEFT_OUT, BYTE = range(3)
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
#: GPT-2's, which `ByteLevel` has built in.
_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")

Spec = dict[str, Any]


def unsupported(part: str, what: str, known: str) -> TargetError:
    """The error for a part of `tokenizer.json` that has no form in C."""
    return TargetError(f"tokenizer.json: {part}: {what} has no form in C; supported are {known}")


@dataclass
class Steps:
    """Steps: operation, x, y, z. literals: texts by number. form: tables, if texts are normalized.

    normalizer: how many steps stand before added tokens are looked for. byte_level: the last step makes bytes
    of pieces.
    """

    program: Program
    steps: list[tuple[int, int, int, int]] = field(default_factory=list)
    literals: list[str] = field(default_factory=list)
    normalizer: int = 0
    form: NormalForm | None = None
    byte_level: bool = False

    def literal(self, text: str) -> int:
        """The number of a text."""
        if text not in self.literals:
            self.literals.append(text)
        return self.literals.index(text)

    def add_normalizer(self, spec: Spec | None) -> None:
        """Raises `TargetError` for what is not supported."""
        forms = set[str]()
        for part in _flat(spec, "normalizers"):
            kind = part["type"]
            if kind in _FORMS:
                forms.add(kind)
                self.form = normal_form(kind)
                self._step(NORMALIZE, kind[-1] == "C")
            elif kind == "Prepend":
                self._step(PREPEND, self.literal(part["prepend"]), ALWAYS)
            elif kind == "Replace" and part["pattern"].get("String"):
                found, put = part["pattern"]["String"], part["content"]
                self._step(REPLACE, self.literal(found), self.literal(put))
            else:
                known = f"{', '.join(_FORMS)}, Prepend, and Replace of a text"
                raise unsupported("normalizer", kind, known)
        if len(forms) > 1:
            raise unsupported("normalizer", "more than one normal form", "one of them")
        self.normalizer = len(self.steps)

    def add_pre_tokenizer(self, spec: Spec | None) -> None:
        """Raises `TargetError` for what is not supported."""
        for part in _flat(spec, "pretokenizers"):
            kind = part["type"]
            if self.byte_level:
                raise unsupported("pre_tokenizer", f"{kind} behind ByteLevel", "ByteLevel as the last one")
            if kind == "ByteLevel":
                self._byte_level(part)
            elif kind == "Metaspace":
                self._metaspace(part)
            elif kind == "Split":
                source = part["pattern"]
                add = self.program.add if "Regex" in source else self.program.add_text
                (text,) = source.values()
                begin = add(text)
                self._step(SPLIT, begin, BEHAVIOURS[part["behavior"]], part["invert"])
            elif kind == "Digits":
                behaviour = "Isolated" if part["individual_digits"] else "Contiguous"
                self._split_at("digits", pre_tokenizers.Digits(True), behaviour)
            elif kind == "Punctuation":
                self._split_at("punctuation", pre_tokenizers.Punctuation("isolated"), part["behavior"])
            else:
                raise unsupported(
                    "pre_tokenizer", kind, "Split, ByteLevel, Metaspace, Digits and Punctuation"
                )

    def _step(self, operation: int, x: int, y: int = 0, z: int = 0) -> None:
        self.steps.append((operation, x, y, z))

    def _split_at(self, name: str, splitter: Any, behaviour: str) -> None:
        number = self.program.classes.number(name, lambda: isolated(splitter))
        self._step(SPLIT, self.program.add_set(number), BEHAVIOURS[behaviour])

    def _byte_level(self, part: Spec) -> None:
        if part["add_prefix_space"]:
            self._step(PREPEND, self.literal(" "), MISSING)
        if part["use_regex"]:
            self._step(SPLIT, self.program.add(_BYTE_LEVEL), BEHAVIOURS["Isolated"])
        self.byte_level = True

    def _metaspace(self, part: Spec) -> None:
        sign, scheme = self.literal(part["replacement"]), part["prepend_scheme"]
        self._step(REPLACE, self.literal(" "), sign)
        if scheme != "never":
            self._step(PREPEND, sign, MISSING if scheme == "always" else MISSING_FIRST)
        if part["split"]:
            self._step(SPLIT, self.program.add_text(part["replacement"]), BEHAVIOURS["MergedWithNext"])


def _flat(spec: Spec | None, parts: str) -> Iterator[Spec]:
    """Parts of sequences, in order."""
    if spec is None:
        return
    if spec["type"] == "Sequence":
        for part in spec[parts]:
            yield from _flat(part, parts)
    else:
        yield spec


# ---- bytes as characters


def byte_characters() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}


def bytes_of(token: str, characters: dict[str, int]) -> bytes | None:
    """The bytes that a token's characters stand for; None if one stands for none."""
    numbers = [characters.get(c, -1) for c in token]
    return None if -1 in numbers else bytes(numbers)


# ---- decoding


@dataclass(frozen=True)
class Decoder:
    """What tokens decode to.

    byte_text: tokens are bytes, which together are text. strip: how many spaces are taken from the front of a
    text. byte_tokens: `<0x41>` is a byte. replaced: texts in tokens, and what is put in their place.
    """

    byte_text: bool
    strip: int = 0
    byte_tokens: bool = False
    replaced: tuple[tuple[str, str], ...] = ()

    def text(self, token: str, characters: dict[str, int]) -> tuple[int, bytes]:
        """The kind of a token, and what it decodes to."""
        if self.byte_text:
            found = bytes_of(token, characters)
            return TEXT, token.encode() if found is None else found
        for text, other in self.replaced:
            token = token.replace(text, other)
        number = _BYTE_TOKEN.fullmatch(token) if self.byte_tokens else None
        return (BYTE, bytes([int(number[1], 16)])) if number else (TEXT, token.encode())


def decoder(spec: Spec | None) -> Decoder:
    """How a tokenizer decodes. Raises `TargetError` for what is not supported."""
    parts = list(_flat(spec, "decoders"))
    if [p["type"] for p in parts] == ["ByteLevel"]:
        return Decoder(byte_text=True)
    rest = list(parts)
    replaced = []
    while rest and rest[0]["type"] == "Replace" and rest[0]["pattern"].get("String"):
        part = rest.pop(0)
        replaced.append((part["pattern"]["String"], part["content"]))
    byte_tokens = bool(rest) and rest[0]["type"] == "ByteFallback"
    rest = rest[byte_tokens:]
    if rest and rest[0]["type"] == "Fuse":
        rest = rest[1:]
        last = rest[0] if rest else {}
        if last.get("type") == "Strip" and (last["content"], last["stop"]) == (" ", 0):
            return _checked(Decoder(False, last["start"], byte_tokens, tuple(replaced)), rest[1:])
    elif not parts:
        rest = [{"type": "none"}]
    return _checked(Decoder(False, 0, byte_tokens, tuple(replaced)), rest)


def _checked(found: Decoder, rest: list[Spec]) -> Decoder:
    if rest:
        known = (
            "ByteLevel, or Replace of texts, ByteFallback, Fuse and Strip of spaces in front, in this order"
        )
        raise unsupported("decoder", rest[0]["type"], known)
    return found
