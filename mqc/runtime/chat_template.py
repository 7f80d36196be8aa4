"""Chat templates: Jinja text from outside, run in a sandbox and with a bound on its work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from types import CodeType
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mqc.errors import InputError

#: Most passes through loops, largest number, and longest text or list, in one rendering.
_LOOPS, _NUMBER, _LENGTH = 1_000_000, 10**9, 10_000_000


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    special_tokens: Mapping[str, str],
    variables: Mapping[str, Any],
) -> str:
    """The text of a conversation, ready for the assistant's turn, as transformers' `apply_chat_template`.

    Args:
        special_tokens: texts that templates know by name, such as `bos_token`.
        variables: what else the template takes, such as `tools` and `enable_thinking`.

    Raises `InputError` if the template refuses the messages, reaches for Python objects, or works too long.
    """
    environment = _Environment()
    known = {"tools": None, "documents": None, "add_generation_prompt": True}
    try:
        compiled = Template.from_code(environment, _code(template), environment.make_globals(None))
        pieces = compiled.generate(
            **known | dict(special_tokens) | dict(variables) | {"messages": [dict(m) for m in messages]}
        )
        parts, length = [], 0
        for piece in pieces:
            length += len(piece)
            if length > _LENGTH:
                raise TemplateError("its text is too long")
            parts.append(piece)
    except Exception as error:  # a template can raise anything: 1 / 0, 1 + "a", too long a range
        raise InputError(f"the chat template refused the messages: {error}") from error
    return "".join(parts)


class _Environment(ImmutableSandboxedEnvironment):
    """What transformers gives to templates; loops count down `budget`."""

    intercepted_binops = frozenset(["+", "-", "*", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        self.budget = _LOOPS
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.filters |= {"tojson": _to_json, "mqc_counted": self._counted, "mqc_short": _short}

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.budget -= 1
            if self.budget < 0:
                raise TemplateError(f"its loops do not end within {_LOOPS:,} steps")
            yield value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [
            x if isinstance(x, int) else len(x) for x in (left, right) if isinstance(x, int | str | list)
        ]
        if operator == "**" and (max(map(abs, sizes), default=0) > 64):
            raise TemplateError("its numbers are too large")
        if operator == "*" and len(sizes) == 2 and abs(sizes[0] * sizes[1]) > _LENGTH:
            raise TemplateError("its texts or numbers are too large")
        return _short(super().call_binop(context, operator, left, right))


@lru_cache(maxsize=16)
def _code(template: str) -> CodeType:
    """A template with its bounds as Python code, which does not depend on the environment object."""
    environment = _Environment()
    tree = environment.parse(template)
    _bound(tree)
    return environment.compile(tree)


def _bound(tree: nodes.Template) -> None:
    """Let loops count, and check lengths where texts are joined and numbers where they are written."""
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "mqc_counted", [], [], None, None)
    for block in tree.find_all(nodes.Assign):
        block.node = nodes.Filter(block.node, "mqc_short", [], [], None, None)
    for constant in tree.find_all(nodes.Const):
        _short(constant.value)


def _short(value: Any) -> Any:
    """A value, if it is no larger than a template may make one."""
    if isinstance(value, int) and not -_NUMBER <= value <= _NUMBER:
        raise TemplateError("its numbers are too large")
    if isinstance(value, str | list | tuple | dict) and len(value) > _LENGTH:
        raise TemplateError("its texts are too long")
    return value


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As Jinja's own filter, but without HTML escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training: its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
