"""Elementwise functions of one value, as expressions that an attribute can hold: `mul(x, sigmoid(x))`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Functions by name, as torch has them, and how many arguments they take.
FUNCTIONS = {
    **dict.fromkeys(
        ("abs", "erf", "exp", "expm1", "gelu", "log", "log1p", "neg", "relu", "sigmoid", "silu", "softplus",
         "sqrt", "tanh"), 1,
    ),
    **dict.fromkeys(("add", "div", "ge", "gt", "le", "lt", "maximum", "minimum", "mul", "pow", "sub"), 2),
    "where": 3,
}  # fmt: skip

_OF_NETWORKS = {"gelu", "relu", "silu", "softplus"}
#: Most calls in an expression, those of a part each time that it stands there.
MOST_CALLS = 100
_TOKEN = re.compile(r"\s*(?:(?P<number>-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)|(?P<name>[a-z][a-z0-9]*)|(.))")


@dataclass(frozen=True)
class Call:
    """A function of expressions: the value itself, `x`; numbers; and calls.

    Raises `ValueError` if there is no such function, it takes another number of arguments, or there are more
    than `MOST_CALLS`.
    """

    name: str
    arguments: tuple[Argument, ...]

    def __post_init__(self) -> None:
        if self.name not in FUNCTIONS:
            raise ValueError(f"there is no function {self.name!r}; there are {', '.join(FUNCTIONS)}")
        if len(self.arguments) != FUNCTIONS[self.name]:
            raise ValueError(f"{self.name} takes {FUNCTIONS[self.name]} arguments, not {len(self.arguments)}")
        if self.calls > MOST_CALLS:
            raise ValueError(f"makes more than {MOST_CALLS} steps of one elementwise function")

    @cached_property
    def calls(self) -> int:
        """How many there are in it, itself included."""
        return 1 + sum(a.calls for a in self.arguments if isinstance(a, Call))

    def __str__(self) -> str:
        return f"{self.name}({', '.join(str(a) for a in self.arguments)})"


#: An expression: the value itself, "x"; a number; or a call.
Argument = str | float | Call


def evaluate(expression: Argument, x: torch.Tensor) -> torch.Tensor:
    """An expression for the values of a tensor, of its shape and dtype."""
    import torch  # programs, which hold expressions, open without it

    match expression:
        case str():
            return x
        case Call(name, arguments):
            function = getattr(torch.nn.functional if name in _OF_NETWORKS else torch, name)
            result: torch.Tensor = function(*(evaluate(a, x) for a in arguments))
            return result
    return torch.full_like(x, expression)


@lru_cache(1024)
def parse(text: str) -> Argument:
    """The expression that a text is. Raises `ValueError`."""
    tokens = [m for m in _TOKEN.finditer(text) if m[0].strip()]
    position = calls = 0

    def take(wanted: str) -> None:
        nonlocal position
        if position == len(tokens) or tokens[position][0].strip() != wanted:
            raise ValueError(f"{text!r} is no expression: {wanted!r} is missing")
        position += 1

    def expression() -> Argument:
        nonlocal position, calls
        if position == len(tokens):
            raise ValueError(f"{text!r} is no expression: it ends too early")
        token = tokens[position]
        position += 1
        if token["number"] is not None:
            number = float(token["number"])
            if math.isinf(number):
                raise ValueError(f"{token['number']} is too large a number")
            return number
        if token["name"] == "x":
            return "x"
        if token["name"] is None:
            raise ValueError(f"{text!r} is no expression: {token[0].strip()!r} is not expected")
        calls += 1
        if calls > MOST_CALLS:  # before they are nested as deep
            raise ValueError(f"{text[:50]!r}… is an expression of more than {MOST_CALLS} calls")
        take("(")
        arguments: list[Any] = [expression()]
        while position < len(tokens) and tokens[position][0].strip() == ",":
            position += 1
            arguments.append(expression())
        take(")")
        return Call(token["name"], tuple(arguments))

    found = expression()
    if position != len(tokens):
        raise ValueError(f"{text!r} is no expression: {tokens[position][0].strip()!r} is not expected")
    return found
