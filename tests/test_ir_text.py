"""IR text: random modules round-trip; damaged text is refused, never a crash."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings

from mqc.analysis.ir_text import parse_module, print_module
from mqc.analysis.verification import verify_module
from mqc.debugging.ir_diff import diff
from mqc.errors import IRError
from tests.random_ir import Drawn, modules, random_module

_SETTINGS = settings(max_examples=150)


@_SETTINGS
@given(modules())
def test_random_modules_verify_and_round_trip(drawn: Drawn) -> None:
    module = drawn.module
    verify_module(module)
    text = print_module(module)
    again = parse_module(text)
    assert print_module(again) == text
    assert [c for c in diff(module, again) if c.kind == "changed" and c.value == "module"] == []


@_SETTINGS
@given(modules())
def test_cloning_changes_nothing(drawn: Drawn) -> None:
    module = drawn.module
    assert print_module(module.clone()) == print_module(module)
    assert diff(module, module.clone()) == []


def mutate(text: str, rng: random.Random) -> str:
    """Delete, replace, repeat or move a piece of text, or a whole line."""
    place, length = rng.randrange(len(text)), rng.randrange(1, 30)
    kind = rng.randrange(6)
    if kind == 0:
        return text[:place] + text[place + length :]
    if kind == 1:
        return text[:place] + rng.choice('%"{}<>()[]:,=x0-9.!#@\\\n\t\0é') + text[place + 1 :]
    if kind == 2:
        return text[:place] + text[place : place + length] + text[place:]
    if kind == 3:
        other = rng.randrange(len(text))
        return text[:place] + text[other : other + length] + text[place + length :]
    lines = text.split("\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    if kind == 4:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        del lines[i]
    return "\n".join(lines)


def attack(text: str, count: int, seed: int) -> int:
    """How many of `count` mutations are refused; any other error than `IRError` passes through."""
    rng, refused = random.Random(seed), 0
    for _ in range(count):
        mutated = text
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            mutated = mutate(mutated, rng)
        try:
            parse_module(mutated, "mutated.mlir")
        except IRError as error:
            refused += 1
            assert str(error).startswith("mutated.mlir:"), error
    return refused


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """One valid module of each level, from a fixed seed."""
    return [print_module(random_module(level, 5, 1).module) for level in ("llm", "quant", "int")]


def test_mutated_text_is_refused_with_its_place(texts: list[str]) -> None:
    assert sum(attack(text, 150, seed) for seed, text in enumerate(texts)) > 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_ten_thousand_mutations(texts: list[str], seed: int) -> None:
    refused = sum(attack(text, 834, 10 * seed + i) for i, text in enumerate(texts))
    assert refused > 1500


def test_located_errors(texts: list[str]) -> None:
    """A parse error names line and column; a verify error names op and value."""
    lines = texts[2].split("\n")
    broken = "\n".join([*lines[:3], lines[3].replace("=", "=?", 1), *lines[4:]])
    with pytest.raises(IRError, match=r"mutated.mlir:4:\d+"):
        parse_module(broken, "mutated.mlir")
    line = next(i for i, text in enumerate(lines) if "int.embedding" in text)
    wrong = np.array(lines, object)
    wrong[line] = wrong[line].replace("zero_point = ", "zero_point = 99999")
    with pytest.raises(IRError, match=r"int.embedding %\S+: zero_point in the range of the result"):
        parse_module("\n".join(wrong), "mutated.mlir")


@pytest.mark.parametrize("kind", ["i646316220679", "si99999", "tensor<4xui646316220679>"])
def test_an_integer_type_of_many_bits_is_refused_at_once(kind: str) -> None:
    text = f"builtin.module attributes {{a = 1 : {kind}}} {{\n}}\n"
    with pytest.raises(IRError, match=r"t:1: s?u?i\d+ has more bits"):
        parse_module(text, "t")


def test_names_may_look_like_types() -> None:
    text = '"builtin.module"() ({\n  %maxi12345 = "test.op"() {i = "i99999"} : () -> i32\n}) : () -> ()\n'
    with pytest.raises(IRError, match="not registered"):
        parse_module(text, "t")
