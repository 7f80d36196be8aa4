"""What the `tokenizers` library takes each code point for, found by asking it.

Oniguruma, Rust and Python follow different versions of Unicode. So tables for C are made from what the
library does with code points, not from Python's `unicodedata`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, normalizers, pre_tokenizers

from mqc.errors import TargetError

Mask = npt.NDArray[np.bool_]

CODE_POINTS = 0x110000
_SURROGATES = range(0xD800, 0xE000)
_HANGUL = range(0xAC00, 0xAC00 + 11172)
#: Planes in which nothing is assigned, or only private characters. There every 64th is asked, and all must be
#: alike: no version of Unicode has properties there.
_UNIFORM = [plane for plane in range(17) if plane not in (0, 1, 2, 3, 14)]
_STEP = 64
_MOST_SETS = 256


@lru_cache(maxsize=1)
def asked() -> tuple[int, ...]:
    """The code points that the library is asked about."""
    planes = [range(p << 16, (p + 1) << 16, _STEP if p in _UNIFORM else 1) for p in range(17)]
    return tuple(code for plane in planes for code in plane if code not in _SURROGATES)


def _filled(found: list[int], what: str) -> Mask:
    """A mask of all code points from those found among `asked`."""
    mask = np.zeros(CODE_POINTS, bool)
    mask[found] = True
    for plane in _UNIFORM:
        there = mask[plane << 16 : (plane + 1) << 16]
        if there[::_STEP].any() and not there[::_STEP].all():
            raise TargetError(
                f"{what} divides plane {plane} of Unicode, in which all characters must be alike"
            )
        there[:] = there[0]
    return mask


@lru_cache(maxsize=64)
def matched(pattern: str) -> Mask:
    """Which code points a pattern for one character matches, by the library's regular expressions."""
    text = "".join(map(chr, asked()))
    others = pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(text)
    left = np.frombuffer("".join(piece for piece, _ in others).encode("utf-32-le"), np.uint32)
    return _filled(sorted(set(asked()) - set(left.tolist())), f"the pattern {pattern!r}")


def isolated(splitter: Any) -> Mask:
    """Which code points a pre-tokenizer makes pieces of their own: `Digits(True)` or `Punctuation`."""
    between = "a"
    pieces = splitter.pre_tokenize_str(between.join(["", *map(chr, asked()), ""]))
    return _filled([ord(p) for p, _ in pieces if len(p) == 1 and p != between], type(splitter).__name__)


def python_spaces() -> Mask:
    """What `str.strip` takes away, and so Jinja's `trim`."""
    return np.array([chr(code).isspace() for code in range(CODE_POINTS)])


# ---- normal forms


@dataclass(frozen=True)
class NormalForm:
    """Tables of one of Unicode's normal forms, without Hangul, which is computed.

    orders: canonical classes other than 0 by code point. decompositions: what code points become.
    compositions: characters by the two that make them.
    """

    orders: dict[int, int]
    decompositions: dict[int, str]
    compositions: dict[tuple[int, int], int]


@lru_cache(maxsize=4)
def normal_form(name: str) -> NormalForm:
    """The tables of `NFC`, `NFD`, `NFKC` or `NFKD`, as the library computes them."""
    codes = [c for c in asked() if c >= 0x80 and c not in _HANGUL]
    canonical = dict(zip(codes, _each(normalizers.NFD(), map(chr, codes)), strict=True))
    final = getattr(normalizers, name[:-1] + "D")()
    decompositions = dict(zip(codes, _each(final, map(chr, codes)), strict=True))
    changed = {code: text for code, text in decompositions.items() if text != chr(code)}
    compositions = (
        _compositions({c: t for c, t in canonical.items() if t != chr(c)}) if name[-1] == "C" else {}
    )
    return NormalForm(_orders([c for c in codes if canonical[c] == chr(c)]), changed, compositions)


def _each(normalizer: Any, texts: Any) -> list[str]:
    """Normal forms of texts, none of which becomes one with a newline."""
    return str(normalizer.normalize_str("\n".join(texts))).split("\n")


def _compositions(decomposed: dict[int, str]) -> dict[tuple[int, int], int]:
    compose = normalizers.NFC()
    codes = [c for c, t in zip(decomposed, _each(compose, map(chr, decomposed)), strict=True) if t == chr(c)]
    fronts = _each(compose, (decomposed[c][:-1] for c in codes))
    return {(ord(front), ord(decomposed[c][-1])): c for c, front in zip(codes, fronts, strict=True)}


def _orders(codes: list[int]) -> dict[int, int]:
    """Canonical classes: a mark goes in front of another if its class is less, and neither is 0."""
    low, high = "\u0334", "\u0345"  # classes 1 and 240
    behind = _swapped([(chr(c), low) for c in codes])
    before = _swapped([(high, chr(c)) for c in codes])
    marks = [chr(c) for c, a, b in zip(codes, behind, before, strict=True) if a or b]
    # One mark of each class. Classes of assigned characters never change.
    known = {unicodedata.combining(m): m for m in marks if unicodedata.combining(m)}
    pairs = [(m, other) for m in marks for other in known.values()]
    greater, less = _swapped(pairs), _swapped([(b, a) for a, b in pairs])
    orders = {}
    for place, mark in enumerate(marks):
        part = slice(place * len(known), (place + 1) * len(known))
        same = [c for c, g, s in zip(known, greater[part], less[part], strict=True) if not g and not s]
        if len(same) != 1:
            raise TargetError(
                f"tokenizer.json: U+{ord(mark):04X} has a canonical class that mqc does not know"
            )
        orders[ord(mark)] = same[0]
    return orders


def _swapped(pairs: list[tuple[str, str]]) -> list[bool]:
    return [
        t != a + b for t, (a, b) in zip(_each(normalizers.NFD(), map("".join, pairs)), pairs, strict=True)
    ]


# ---- kinds of characters


class Classes:
    """Sets of characters that patterns ask for, by number; and the kinds into which they divide all."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._masks: list[Mask] = []

    def number(self, name: str, mask: Callable[[], Mask]) -> int:
        """The number of a set; sets of one name are the same. Raises `TargetError` if there are too many."""
        if name not in self._numbers:
            if len(self._masks) >= _MOST_SETS:
                raise TargetError(
                    f"tokenizer.json: its patterns name more than {_MOST_SETS} sets of characters"
                )
            self._numbers[name] = len(self._masks)
            self._masks.append(mask())
        return self._numbers[name]

    def pattern(self, pattern: str) -> int:
        """The set of what a pattern for one character matches."""
        return self.number(f"pattern {pattern}", lambda: matched(pattern))

    def literal(self, character: str) -> int:
        return self.number(f"literal {character}", lambda: np.arange(CODE_POINTS) == ord(character))

    def tables(self) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Page of each 256 code points [0x1100], kinds by page [pages][256], and bits of kinds [sets][32].

        Raises `TargetError` if there are more than 256 kinds.
        """
        kinds = np.zeros(CODE_POINTS, np.int64)
        for mask in self._masks:
            kinds = kinds * 2 + mask
            if kinds.max() >= 1 << 40:
                kinds = np.unique(kinds, return_inverse=True)[1].reshape(-1)
        _, first, kinds = np.unique(kinds, return_index=True, return_inverse=True)
        if len(first) > 256:
            raise TargetError(
                f"tokenizer.json: its patterns tell {len(first)} kinds of characters apart, not at most 256"
            )
        rows, pages = np.unique(kinds.reshape(-1, 256).astype(np.uint8), axis=0, return_inverse=True)
        members = np.zeros((len(self._masks), 256), bool)
        members[:, : len(first)] = [mask[first] for mask in self._masks]
        bits = np.packbits(members, axis=1, bitorder="little")
        return pages.reshape(-1).astype(np.uint16), rows, bits
