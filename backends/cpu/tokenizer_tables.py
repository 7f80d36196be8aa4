"""The tables that the C tokenizer reads (`runtime/tokenizer.h`), from the files of a tokenizer."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from mqc.backends.cpu.tokenizer_pattern import Program
from mqc.backends.cpu.tokenizer_steps import (
    LEFT_OUT,
    Decoder,
    Steps,
    byte_characters,
    bytes_of,
    decoder,
    unsupported,
)
from mqc.backends.cpu.tokenizer_template import FROM, ROLES, TO, Irregular, Template, compile_template
from mqc.backends.cpu.tokenizer_unicode import Classes, NormalForm, python_spaces
from mqc.errors import TargetError
from mqc.runtime.tokenizer import TOKENIZER, Tokenizer

_MAGIC, _VERSION = b"mqctoken", 1
_EMPTY = 0xFFFFFFFF
_SPECIAL, _LEFT, _RIGHT = 1, 2, 4


def tokenizer_tables(files: Mapping[str, str], prefix: Sequence[int] = ()) -> bytes:
    """Contents of `tokenizer.bin`.

    Args:
        files: a tokenizer's files, as `Tokenizer` takes them.
        prefix: the token ids of the program's prefix. Start tokens that it begins with are not added again.

    A chat template that cannot be compiled is no error: the tables say why. Raises `ArtifactError` for files
    that are no tokenizer, and `TargetError` for a tokenizer that has no form in C: it names the part of
    `tokenizer.json` and what is supported.
    """
    tokenizer = Tokenizer(files).behind(prefix)
    raw = tokenizers.Tokenizer.from_str(files[TOKENIZER])
    spec = json.loads(raw.to_str())
    model = _checked_model(spec)
    steps = Steps(Program(Classes()))
    steps.add_normalizer(spec["normalizer"])
    steps.add_pre_tokenizer(spec["pre_tokenizer"])
    spaces = steps.program.classes.pattern(r"\s")
    trimmed = steps.program.classes.number("python spaces", python_spaces)
    template, reason = _template(tokenizer)
    joints = [
        steps.literal(template.joints[a, b]) if template and (a, b) in template.joints else -1
        for a in FROM
        for b in TO
    ]
    decoding = decoder(spec["decoder"])
    texts, kinds = _texts(raw, model["vocab"], decoding)
    unknown = model["vocab"].get(model["unk_token"], -1)
    behind = tokenizer.encode("a", start=False)[-1:]
    settings = [
        len(texts), steps.byte_level, model["ignore_merges"], model["fuse_unk"], unknown, *(behind or [-1]),
        decoding.byte_text, decoding.strip, steps.normalizer, spaces, trimmed, steps.program.memos,
        template is not None,
    ]  # fmt: skip
    return _file(
        [
            _s32(settings),
            *_strings(texts),
            bytes(kinds),
            *_symbols(model, steps.byte_level),
            *_merges(model),
            *_added(raw, normalized=False),
            *_added(raw, normalized=True),
            *_control(tokenizer),
            _s32(np.array(steps.steps)),
            *_strings([text.encode() for text in steps.literals]),
            _s32(np.array(steps.program.code)),
            *(table.tobytes() for table in steps.program.classes.tables()),
            *_normal_form(steps.form),
            _s32(tokenizer.start),
            _s32(tokenizer.in_front),
            _s32(sorted(tokenizer.ends)),
            _s32(joints),
            _s32([template.trims[role] if template else 0 for role in ROLES]),
            *_strings([text.encode() for text in template.watched] if template else []),
            reason.encode() + b"\0",
        ]
    )


def _template(tokenizer: Tokenizer) -> tuple[Template | None, str]:
    try:
        return compile_template(tokenizer), ""
    except Irregular as reason:
        return None, str(reason).replace("\0", " ")


def _checked_model(spec: dict[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = spec["model"]
    if model["type"] != "BPE":
        raise unsupported("model", model["type"], "BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[name]:
            raise unsupported("model", f"{name} {model[name]!r}", "models without it")
    for name in ("truncation", "padding"):
        if spec[name] is not None:
            raise unsupported(name, "this", "tokenizers that leave texts as long as they are")
    if model["unk_token"] is not None and model["unk_token"] not in model["vocab"]:
        raise unsupported("model", f"unk_token {model['unk_token']!r}, which is no token,", "tokens and null")
    if len(set(model["vocab"].values())) < len(model["vocab"]):
        raise unsupported("model", "a vocabulary in which two tokens have one id", "different ids")
    return model


# ---- vocabulary


def _texts(
    raw: tokenizers.Tokenizer, vocabulary: dict[str, int], decoding: Decoder
) -> tuple[list[bytes], list[int]]:
    """What ids decode to, and of which kind it is."""
    added = raw.get_added_tokens_decoder()
    # Of an added token that is normalized this is the normalized text. The library then may not know that it
    # is special, so it is asked.
    tokens = {number: raw.id_to_token(number) for number in {*vocabulary.values(), *added}}
    left_out = {n for n, token in added.items() if token.special and not raw.decode([n])}
    characters = byte_characters()
    texts, kinds = [], []
    for number in range(max(tokens, default=-1) + 1):
        token = None if number in left_out else tokens.get(number)
        kind, text = (LEFT_OUT, b"") if token is None else decoding.text(token, characters)
        texts.append(text)
        kinds.append(kind)
    return texts, kinds


def _symbols(model: dict[str, Any], byte_level: bool) -> list[bytes]:
    """Ids of bytes, and a table of tokens by text: of characters, or of all if pieces may be tokens."""
    vocabulary: dict[str, int] = model["vocab"]
    byte_ids, keys = [-1] * 256, dict[bytes, int]()
    characters = byte_characters()
    if byte_level:
        for character, number in characters.items():
            byte_ids[number] = vocabulary.get(character, -1)
        if -1 in byte_ids and model["byte_fallback"]:
            raise unsupported("model", "byte_fallback where bytes are characters", "one of both")
    elif model["byte_fallback"]:
        byte_ids = [vocabulary.get(f"<0x{number:02X}>", -1) for number in range(256)]
    for token, number in vocabulary.items():
        key = bytes_of(token, characters) if byte_level else token.encode()
        if key is not None and (model["ignore_merges"] or (len(token) == 1 and not byte_level)):
            keys[key] = number
    hashes = np.array([_hash(key) for key in keys], np.uint32)
    return [_s32(byte_ids), *_strings(list(keys)), _s32(list(keys.values())), _slots(hashes)]


def _merges(model: dict[str, Any]) -> list[bytes]:
    """Pairs and what they become, by rank, and a table of pairs."""
    vocabulary: dict[str, int] = model["vocab"]
    merges = [(vocabulary[a], vocabulary[b], vocabulary[a + b]) for a, b in model["merges"]]
    rows = np.array(merges, np.int32).reshape(-1, 3)
    pairs = rows[:, 0].astype(np.uint64) << np.uint64(32) | rows[:, 1].astype(np.uint64)
    last = {pair: rank for rank, pair in enumerate(pairs.tolist())}
    hashes = (pairs * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    return [rows.tobytes(), _slots(hashes.astype(np.uint32), sorted(last.values()))]


def _hash(data: bytes) -> int:
    """As `hash_bytes` in `tokenizer.h`."""
    found = 2166136261
    for byte in data:
        found = (found ^ byte) * 16777619 & 0xFFFFFFFF
    return found ^ found >> 15


def _slots(hashes: npt.NDArray[np.uint32], numbers: Iterable[int] | None = None) -> bytes:
    """A hash table of numbers, at most half full: a number stands in the first free slot from its hash on."""
    size = 4
    while size < 2 * len(hashes):
        size *= 2
    table = [_EMPTY] * size
    starts = (hashes & np.uint32(size - 1)).tolist()
    for number in range(len(starts)) if numbers is None else numbers:
        slot = starts[number]
        while table[slot] != _EMPTY:
            slot = (slot + 1) % size
        table[slot] = number
    return np.array(table, np.uint32).tobytes()


# ---- added tokens


def _added(raw: tokenizers.Tokenizer, normalized: bool) -> list[bytes]:
    """Added tokens that are found before texts are normalized, or after it, as their texts are then."""
    found: dict[bytes, tuple[int, int]] = {}
    for number, token in sorted(raw.get_added_tokens_decoder().items(), key=lambda item: not item[1].special):
        if token.single_word:
            raise unsupported("added_tokens", f"single_word of {token.content!r}", "tokens without it")
        if token.normalized != normalized:
            continue
        text = token.content
        if normalized and raw.normalizer is not None:
            text = raw.normalizer.normalize_str(text)
        if not text:
            raise unsupported("added_tokens", f"{token.content!r}, which is empty", "texts")
        flags = _SPECIAL * token.special | _LEFT * token.lstrip | _RIGHT * token.rstrip
        found.setdefault(text.encode(), (number, flags))
    return _sorted(found)


def _control(tokenizer: Tokenizer) -> list[bytes]:
    """Control tokens with their ranks by length."""
    ids = {text: number for number, text in tokenizer.control.items()}
    ranked = sorted(ids, key=len, reverse=True)
    return _sorted({text.encode(): (ids[text], rank) for rank, text in enumerate(ranked) if text})


def _sorted(found: dict[bytes, tuple[int, int]]) -> list[bytes]:
    texts = sorted(found)
    return [*_strings(texts), _s32([found[t][0] for t in texts]), _s32([found[t][1] for t in texts])]


def _normal_form(form: NormalForm | None) -> list[bytes]:
    if form is None:
        return [b""] * 4
    orders = [(code, order, 0) for code, order in sorted(form.orders.items())]
    texts = [[ord(c) for c in text] for _, text in sorted(form.decompositions.items())]
    begins = [0, *accumulate(map(len, texts))]
    entries = [(c, b, len(t)) for c, b, t in zip(sorted(form.decompositions), begins, texts, strict=False)]
    pairs = [(*pair, made) for pair, made in sorted(form.compositions.items())]
    return [
        _s32(np.array(orders)),
        _s32(np.array(entries)),
        _s32([code for text in texts for code in text]),
        _s32(np.array(pairs)),
    ]


# ---- file


def _s32(values: Any) -> bytes:
    return np.array(values, np.int64).astype(np.int32).tobytes()


def _strings(texts: list[bytes]) -> list[bytes]:
    return [_s32([0, *accumulate(map(len, texts))]), b"".join(texts)]


def _file(sections: list[bytes]) -> bytes:
    """Header and sections, each at a multiple of 8 bytes."""
    place = 24 + 8 * len(sections)
    places, parts = b"", []
    for section in sections:
        padding = -place % 8
        place += padding
        places += struct.pack("<II", place, len(section))
        parts += [b"\0" * padding, section]
        place += len(section)
    rest = places + b"".join(parts)
    if place >= 1 << 31:
        raise TargetError("the tables of the tokenizer are larger than 2 GiB")
    return _MAGIC + struct.pack("<IIII", _VERSION, len(sections), place, zlib.crc32(rest)) + rest
