"""Regular expressions of pre-tokenizers, compiled for the matcher in `runtime/tokenizer_pattern.c`.

A pattern is parsed into characters of sets, sequences, alternatives and repetitions. What a set holds is
asked from the library (`tokenizer_unicode.py`), so that it is Oniguruma's. Backtracking is Oniguruma's too:
the first alternative that leads to a match, and repetitions as long as possible.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise

from mqc.backends.cpu.tokenizer_unicode import Classes
from mqc.errors import TargetError

#: As `tokenizer.h` numbers them.
MATCH, CLASS, SPLIT, JUMP, SKIP, SKIP_ONE, AHEAD, LINE_END = range(8)
_MOST_INSTRUCTIONS, _MOST_MEMOS, _MOST_GROUPS = 4096, 1024, 50
_ESCAPED = {"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v"}
#: Letters that Oniguruma, if case does not matter, also finds as one character.
_LIGATURES = ("ss", "st", "ff", "fi", "fl")
_KNOWN = (
    "supported are sets of characters, groups (?:) and (?i:), alternatives, the quantifiers ? * + {n,m}, "
    "possessive ?+ *+ ++ of one character, (?=) and (?!) of one character, and $"
)


@dataclass(frozen=True)
class Set:
    """One character. letter: what it is, if case does not matter and it is one letter."""

    number: int
    letter: str = ""


@dataclass(frozen=True)
class Ahead:
    number: int
    negative: bool


@dataclass(frozen=True)
class LineEnd:
    pass


@dataclass(frozen=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Alternatives:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    body: Node
    least: int
    most: int | None
    possessive: bool = False


Node = Set | Ahead | LineEnd | Sequence | Alternatives | Repeat


@dataclass
class Program:
    """Instructions of all patterns: operation, x, y, memo. memos: how many there are."""

    classes: Classes
    code: list[tuple[int, int, int, int]] = field(default_factory=list)
    memos: int = 0

    def add(self, pattern: str) -> int:
        """Compile a regular expression. Gives the instruction at which it begins.

        Raises `TargetError` for what is not supported.
        """
        return self._add(_Parser(pattern, self.classes).parse(), pattern)

    def add_text(self, text: str) -> int:
        """Compile a text that matches itself."""
        if not text:
            raise TargetError("tokenizer.json: a pattern of a pre-tokenizer is empty")
        return self._add(Sequence(tuple(Set(self.classes.literal(c)) for c in text)), text)

    def add_set(self, number: int) -> int:
        """Compile a pattern that matches one character of a set."""
        return self._add(Set(number), "")

    def _add(self, tree: Node, pattern: str) -> int:
        if _may_be_empty(tree):
            raise _refused(pattern, "it matches an empty text")
        begin = len(self.code)
        self._emit(tree, pattern)
        self._put(MATCH, pattern)
        return begin

    def _put(self, operation: int, pattern: str, x: int = 0, y: int = 0) -> int:
        memo = self.memos if operation in (SPLIT, SKIP) else 0
        self.memos += operation in (SPLIT, SKIP)
        self.code.append((operation, x, y, memo))
        if len(self.code) > _MOST_INSTRUCTIONS or self.memos > _MOST_MEMOS:
            raise _refused(pattern, "it is too large")
        return len(self.code) - 1

    def _aim(self, place: int, x: int, y: int = 0) -> None:
        operation, _, _, memo = self.code[place]
        self.code[place] = operation, x, y, memo

    def _emit(self, node: Node, pattern: str) -> None:
        if isinstance(node, Set):
            self._put(CLASS, pattern, node.number)
        elif isinstance(node, Ahead):
            self._put(AHEAD, pattern, node.number, node.negative)
        elif isinstance(node, LineEnd):
            self._put(LINE_END, pattern, self.classes.literal("\n"))
        elif isinstance(node, Sequence):
            for part in node.parts:
                self._emit(part, pattern)
        elif isinstance(node, Alternatives):
            self._alternatives(node, pattern)
        else:
            self._repeat(node, pattern)

    def _alternatives(self, node: Alternatives, pattern: str) -> None:
        ends = []
        for part in node.parts[:-1]:
            split = self._put(SPLIT, pattern)
            self._emit(part, pattern)
            ends.append(self._put(JUMP, pattern))
            self._aim(split, split + 1, len(self.code))
        self._emit(node.parts[-1], pattern)
        for end in ends:
            self._aim(end, len(self.code))

    def _repeat(self, node: Repeat, pattern: str) -> None:
        for _ in range(node.least):
            self._emit(node.body, pattern)
        if node.possessive:
            assert isinstance(node.body, Set)
            self._put(SKIP if node.most is None else SKIP_ONE, pattern, node.body.number)
            return
        splits = []
        for _ in range(1 if node.most is None else node.most - node.least):
            splits.append(self._put(SPLIT, pattern))
            self._emit(node.body, pattern)
        if node.most is None:
            self._put(JUMP, pattern, splits[0])
        for split in splits:
            self._aim(split, split + 1, len(self.code))


def _refused(pattern: str, why: str) -> TargetError:
    return TargetError(
        f"tokenizer.json: pre_tokenizer: the pattern {pattern!r} cannot be compiled: {why}; {_KNOWN}"
    )


def _may_be_empty(node: Node) -> bool:
    if isinstance(node, Sequence):
        return all(map(_may_be_empty, node.parts))
    if isinstance(node, Alternatives):
        return any(map(_may_be_empty, node.parts))
    if isinstance(node, Repeat):
        return node.least == 0 or _may_be_empty(node.body)
    return not isinstance(node, Set)


class _Parser:
    def __init__(self, pattern: str, classes: Classes) -> None:
        self.pattern, self.classes, self.at = pattern, classes, 0
        self.any_case, self.depth = False, 0

    def parse(self) -> Node:
        tree = self._alternatives()
        if self.at < len(self.pattern):
            raise self._refused("a parenthesis is closed that was not opened")
        return tree

    def _refused(self, why: str) -> TargetError:
        return _refused(self.pattern, f"{why} (at character {self.at})")

    def _take(self, text: str) -> bool:
        there = self.pattern.startswith(text, self.at)
        self.at += len(text) * there
        return there

    def _alternatives(self) -> Node:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else Alternatives(tuple(parts))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            parts.append(self._quantified(self._atom()))
        letters = [part.letter if isinstance(part, Set) else "" for part in parts]
        if any((a + b).lower() in _LIGATURES for a, b in pairwise(letters)):
            raise self._refused("letters that are also one character, where case does not matter")
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _quantified(self, node: Node) -> Node:
        while self.at < len(self.pattern) and self.pattern[self.at] in "?*+{":
            sign = self.pattern[self.at]
            interval = re.compile(r"\{(\d*)(,?)(\d*)\}").match(self.pattern, self.at)
            if sign == "{":
                if interval is None or not any(interval.group(1, 3)):
                    raise self._refused("a brace that is no quantifier")
                low, comma, high = interval.groups()
                least, most = int(low or 0), int(high) if high else None if comma else int(low)
                self.at = interval.end()
            else:
                least, most = int(sign == "+"), 1 if sign == "?" else None
                self.at += 1
            if self._take("?"):
                raise self._refused("a quantifier for as few as possible")
            # Behind an interval a plus is a quantifier of its own.
            possessive = sign != "{" and self._take("+")
            if isinstance(node, Ahead | LineEnd) or (most is not None and (most < least or most > 1000)):
                raise self._refused("what a quantifier says")
            if possessive and not isinstance(node, Set):
                raise self._refused("a possessive quantifier of more than one character")
            if (most is None or most > 1) and _may_be_empty(node):
                raise self._refused("a repetition of what may be empty")
            node = Repeat(node, least, most, possessive)
        return node

    def _atom(self) -> Node:
        begin, sign = self.at, self.pattern[self.at]
        if sign == "(":
            return self._group()
        if sign == "[":
            return self._set(self._bracket())
        self.at += 1
        if sign == "$":
            return LineEnd()
        if sign == ".":
            return self._set(".")
        if sign in "^?*+{":
            raise self._refused(f"{sign!r} in this place")
        if sign != "\\":
            return self._letter(sign)
        escaped = self.pattern[self.at : self.at + 1]
        self.at += 1
        if escaped in ("p", "P"):
            end = self.pattern.find("}", self.at)
            if self.pattern[self.at : self.at + 1] != "{" or end < 0:
                raise self._refused("a property without braces")
            self.at = end + 1
            return self._set(self.pattern[begin : self.at])
        if escaped and escaped in "sSdDwWhH":
            return self._set(self.pattern[begin : self.at])
        if escaped in _ESCAPED:
            return self._letter(_ESCAPED[escaped])
        if not escaped or escaped.isalnum() or not escaped.isascii():
            raise self._refused(f"the escape \\{escaped}")
        return self._letter(escaped)

    def _group(self) -> Node:
        for sign, negative in (("(?!", True), ("(?=", False)):
            if self._take(sign):
                inner = self._alternatives()
                if not isinstance(inner, Set):
                    raise self._refused("a look ahead at more than one character")
                self._close()
                return Ahead(inner.number, negative)
        outer = self.any_case
        if self._take("(?i:"):
            self.any_case = True
        elif not self._take("(?:"):
            self._take("(")
            if self._take("?"):
                raise self._refused("this kind of group")
        self.depth += 1
        if self.depth > _MOST_GROUPS:
            raise self._refused("too many groups in one another")
        inner = self._alternatives()
        self._close()
        self.any_case, self.depth = outer, self.depth - 1
        # By itself, so that letters inside and outside are not taken for neighbours.
        return Sequence((inner,)) if isinstance(inner, Set) else inner

    def _close(self) -> None:
        if not self._take(")"):
            raise self._refused("a parenthesis is not closed")

    def _bracket(self) -> str:
        """A set in brackets, in which others may stand."""
        begin, depth = self.at, 0
        while self.at < len(self.pattern):
            sign = self.pattern[self.at]
            self.at += 1 + (sign == "\\")
            depth += (sign == "[") - (sign == "]")
            if not depth:
                found = self.pattern[begin : self.at]
                if found in ("[]", "[^]") or found.startswith(("[]", "[^]")):
                    raise self._refused("a set that begins with ]")
                return found
        raise self._refused("a bracket is not closed")

    def _set(self, source: str) -> Set:
        if self.any_case and not re.fullmatch(r"\[[A-Za-z0-9' -]+\]", source):
            raise self._refused(f"{source} where case does not matter")
        try:
            return Set(self.classes.pattern(f"(?i:{source})" if self.any_case else source))
        except TargetError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise self._refused(f"{source} is no set of characters: {error}") from error

    def _letter(self, letter: str) -> Set:
        if not self.any_case or not letter.isalpha():
            return Set(self.classes.literal(letter))
        if not letter.isascii():
            raise self._refused(f"{letter!r} where case does not matter")
        return Set(self.classes.pattern(f"(?i:{letter})"), letter)
