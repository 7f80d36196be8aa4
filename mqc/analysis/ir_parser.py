"""A parser of IR text that takes what mqc prints in a few steps, and leaves the rest to xDSL's."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from xdsl.dialects.builtin import StringAttr, TensorType
from xdsl.ir import Attribute, TypeAttribute
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError, VerifyException
from xdsl.utils.mlir_lexer import MLIRTokenKind

from mqc.ir.op import WeightAttr

# Printable ASCII without quotes and escapes: it says what it is.
_STRING = r'"[ !#-\[\]-~]*"'
_TYPE = r"!?[A-Za-z][\w.]*(?:<[^<>()\n]*>)?"
_TYPES = rf"(?:{_TYPE}(?:, {_TYPE})*)?"
_SIGNATURE = re.compile(rf"\({_TYPES}\) -> (?:{_TYPE}|\({_TYPES}\))(?=\n)")
_WEIGHT = rf"#mqc\.weight<(?P<key>{_STRING}), (?P<hash>{_STRING}), (?P<type>tensor<[\w?]+>)>"
_OTHER = rf"{_STRING}|-?[0-9][0-9.e+-]*(?: : [a-z]+[0-9]+)?|!?[a-z][\w.]*<[^<>\n]*>|\[[-0-9: ,iu]*\]"
_ENTRY = re.compile(rf"(?P<name>[A-Za-z_][\w.$]*) = (?P<value>{_WEIGHT}|{_OTHER})(?=, |\}})")


class _Another(Exception):
    """The text is not as mqc prints it."""


class CachingParser(Parser):
    """xDSL's parser, but for dictionaries of attributes and types of functions in the form that mqc prints.

    Of these a regular expression finds the parts, and a part whose text was there before is the attribute
    that it was. All else xDSL's own methods parse, and what is wrong: they say where.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._seen: dict[str, Any] = {}

    def parse_optional_attr_dict(self) -> dict[str, Attribute]:
        start = self.pos
        if self._current_token.kind == MLIRTokenKind.L_BRACE:
            with suppress(_Another, ParseError, VerifyException):
                return self._printed_dictionary(start + 1)
            self._resume_from(start)
        return super().parse_optional_attr_dict()

    def parse_optional_type(self) -> TypeAttribute | None:
        if self._current_token.kind == MLIRTokenKind.L_PAREN:
            match = _SIGNATURE.match(self.lexer.input.content, self.pos)
            if match is not None:
                with suppress(_Another):
                    kind: TypeAttribute = self._once(match[0], self.pos, super().parse_optional_type)
                    self._resume_from(match.end())
                    return kind
                self._resume_from(match.start())
        return super().parse_optional_type()

    def _printed_dictionary(self, position: int) -> dict[str, Attribute]:
        """The attributes of a dictionary whose first entry begins at a position, which the parser goes past.

        Raises `_Another` if something in it has another form, or a name stands twice.
        """
        text = self.lexer.input.content
        found: dict[str, Attribute] = {}
        while True:
            entry = _ENTRY.match(text, position)
            if entry is None or entry["name"] in found:
                raise _Another
            found[entry["name"]] = self._weight(entry) if entry["key"] else self._value(entry)
            position = entry.end()
            if text[position] == "}":
                self._resume_from(position + 1)
                return found
            position += 2

    def _value(self, entry: re.Match[str]) -> Attribute:
        return self._once(entry["value"], entry.start("value"), super().parse_attribute)

    def _weight(self, entry: re.Match[str]) -> Attribute:
        kind: TensorType = self._once(entry["type"], entry.start("type"), super().parse_type)
        return WeightAttr(StringAttr(entry["key"][1:-1]), StringAttr(entry["hash"][1:-1]), kind)

    def _once(self, text: str, start: int, parse: Callable[[], Any]) -> Any:
        """What stands at a position and has some text. Raises `_Another` if that is not all that it has."""
        if text not in self._seen:
            self._resume_from(start)
            value, end = parse(), start + len(text)
            if self.pos < end or self.lexer.input.content[end : self.pos].strip():
                raise _Another
            self._seen[text] = value
        return self._seen[text]
