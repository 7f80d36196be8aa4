"""The parser of what mqc prints agrees with xDSL's, on any text."""

from __future__ import annotations

import random

import pytest
from xdsl.ir import Attribute
from xdsl.parser import Parser

from mqc.analysis import ir_text
from mqc.analysis.ir_text import parse_module, print_module
from mqc.errors import IRError
from tests.random_ir import random_module
from tests.test_ir_text import mutate

LEVELS = ("llm", "quant", "int")


def parsed(text: str) -> str:
    """The module that a text is, or the error."""
    try:
        return print_module(parse_module(text))
    except IRError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_printed_needs_no_other_parser(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = print_module(random_module(level, 5, 1).module)
    others: list[int] = []
    real = Parser.parse_optional_attr_dict

    def counted(self: Parser) -> dict[str, Attribute]:
        rest = text[self.pos : text.index("\n", self.pos)]
        if rest.startswith("{") and "\\" not in rest:  # escapes are xDSL's to read
            others.append(self.pos)
        return real(self)

    monkeypatch.setattr(Parser, "parse_optional_attr_dict", counted)
    assert parsed(text) == text
    assert not others


@pytest.mark.parametrize("level", LEVELS)
def test_damaged_text_gives_the_same_module_or_error(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(level)
    text = print_module(random_module(level, 4, 1).module)
    damaged = [mutate(text, rng) for _ in range(100)]
    found = [parsed(each) for each in damaged]
    monkeypatch.setattr(ir_text, "CachingParser", Parser)
    assert found == [parsed(each) for each in damaged]
    assert 30 < sum(each.startswith("refused") for each in found) < 100
