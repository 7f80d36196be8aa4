"""Chat templates as literals between the contents of messages.

A template is regular if what stands between two contents depends on the roles on both sides and on nothing
else. It is rendered with marks for contents, to find the literals. Then it is compared with what the literals
give on other conversations: with spaces around contents, empty ones, and texts that the template names.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from jinja2 import Environment, TemplateError, nodes

from mqc.errors import InputError
from mqc.runtime.chat_template import render
from mqc.runtime.tokenizer import CONFIG, Tokenizer

ROLES = ("system", "user", "assistant")
START, END, ANSWER = "start", "end", "answer"
FROM, TO = (*ROLES, START), (*ROLES, END, ANSWER)
_MARK = 0xFF000  # private characters; those of control tokens in messages begin at 0xF0000
_TURNS, _CHECKS = 4, 400
#: Shorter texts are too common in contents to be refused.
_LEAST_WATCHED = 6
#: Where such texts are tried.
_PLACES = [(("system", "user"), 0), (("user",), 0), *((("user", "assistant", "user"), at) for at in (1, 2))]
_PARTS = (" ", "\n", "\n\n", "\t", "a", "Who?", "\u00e9\u4e2d", "\x1f", "\u00a0", "{", "<")

Joints = dict[tuple[str, str], str]
#: Literals around marks by the roles and what stands at the end; None if a mark is missing.
Rendered = dict[tuple[tuple[str, ...], str], list[str] | None]


class Irregular(Exception):
    """Why a template cannot be compiled."""


@dataclass(frozen=True)
class Template:
    """A regular template.

    joints: literals by the roles on both sides. What is not among them, the template refuses or writes
    without a content. trims: by role, whether spaces are taken from the left (1) and the right (2) of a
    content. watched: texts of which the template makes something else; contents with them are refused.
    """

    joints: Joints
    trims: Mapping[str, int]
    watched: Sequence[str] = ()

    def text(self, roles: Sequence[str], contents: Sequence[str], last: str) -> str | None:
        """A conversation; None if it is refused."""
        whole = [self.joints.get(pair) for pair in zip((START, *roles), (*roles, last), strict=True)]
        if None in whole or any(text in content for text in self.watched for content in contents):
            return None
        trimmed = [_trimmed(c, self.trims[role]) for role, c in zip(roles, contents, strict=True)]
        return "".join(str(a) + b for a, b in zip(whole, [*trimmed, ""], strict=True))


def compile_template(tokenizer: Tokenizer) -> Template:
    """The default template of a tokenizer.

    If it is not regular otherwise, conversations that end with the assistant are left out: some templates
    write the last answer in another way. Raises `Irregular`.
    """
    if "default" not in tokenizer.templates:
        raise Irregular("the tokenizer has no default chat template")
    for text in tokenizer.control.values():
        if "\0" in text or any(text in role for role in ROLES):
            raise Irregular(f"the control token {text!r} is part of a role's name")
    renderer = _Renderer(tokenizer, tokenizer.templates["default"])
    orders = list(_role_orders())
    try:
        return _compiled(renderer, orders)
    except Irregular as irregular:
        try:
            return _compiled(renderer, [roles for roles in orders if roles[-1] != "assistant"])
        except Irregular:
            raise irregular from None


def _compiled(renderer: _Renderer, orders: Sequence[tuple[str, ...]]) -> Template:
    """A template of conversations with these orders of roles."""
    rendered: Rendered = {
        (roles, last): renderer.marked(roles, last) for roles in orders for last in (END, ANSWER)
    }
    if not any(rendered.values()):
        raise Irregular("the template refuses conversations of texts")
    template = Template(_joints(rendered), _trims(renderer, rendered))
    for (roles, last), found in rendered.items():
        if not found and template.text(roles, [""] * len(roles), last) is not None:
            raise Irregular(f"the template does not write all contents of the roles {', '.join(roles)}")
    template = _watched(template, renderer)
    _check(template, renderer)
    return template


def _role_orders() -> Iterator[tuple[str, ...]]:
    """Orders of roles; a system message stands first."""
    for count in range(1, _TURNS + 1):
        for roles in product(ROLES, repeat=count):
            if "system" not in roles[1:]:
                yield roles


class _Renderer:
    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        config = json.loads(tokenizer.files.get(CONFIG, "{}"))
        self.special = {k: v for k, v in config.items() if k.endswith("_token") and isinstance(v, str)}
        self.source = source
        self.texts = _texts(source)

    def text(self, roles: Sequence[str], contents: Sequence[str], last: str) -> str | None:
        """What the template writes; None if it refuses."""
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        try:
            return render(self.source, messages, self.special, {"add_generation_prompt": last == ANSWER})
        except InputError:
            return None

    def marked(self, roles: Sequence[str], last: str, spaced: int = -1) -> list[str] | None:
        """Literals around contents, which are marks; one of them has spaces on both sides.

        None if the template refuses or leaves out a content.
        """
        marks = [chr(_MARK + i) for i in range(len(roles))]
        contents = [f" \n{mark}\n " if i == spaced else mark for i, mark in enumerate(marks)]
        text = self.text(roles, contents, last)
        if text is None or [c for c in text if ord(c) >= _MARK] != marks:
            return None
        return re.split("[" + "".join(marks) + "]", text)


def _texts(source: str) -> list[str]:
    """Texts that a template names: conditions on contents, if there are any, look for one of them.

    Raises `Irregular` for a template that writes the date.
    """
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
            re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)
        )
    except TemplateError as error:
        raise Irregular(f"the template is no Jinja: {error}") from error
    if any(name.name == "strftime_now" for name in tree.find_all(nodes.Name)):
        raise Irregular("the template writes the date")
    constants = {c.value for c in tree.find_all(nodes.Const) if isinstance(c.value, str)}
    return sorted(constants - {""})


def _joints(rendered: Rendered) -> Joints:
    joints: Joints = {}
    for (roles, last), literals in rendered.items():
        pairs = zip((START, *roles), (*roles, last), strict=True)
        for pair, literal in zip(pairs, literals or [], strict=False):
            if joints.setdefault(pair, literal) != literal:
                raise Irregular(
                    f"what stands between {pair[0]} and {pair[1]} is {joints[pair]!r} or {literal!r}, "
                    "and depends on more than these two"
                )
    return joints


def _trims(renderer: _Renderer, rendered: Rendered) -> dict[str, int]:
    """Literals around a content stay as they were if spaces around it are taken away."""
    trims = dict.fromkeys(ROLES, 0)
    for role in ROLES:
        known = [(one, literals) for one, literals in rendered.items() if literals and role in one[0]]
        for (roles, last), literals in known[:1]:
            at = roles.index(role)
            spaced = renderer.marked(roles, last, at) or literals
            trims[role] = (spaced[at] == literals[at]) | (spaced[at + 1] == literals[at + 1]) << 1
    return trims


def _trimmed(content: str, trims: int) -> str:
    content = content.lstrip() if trims & 1 else content
    return content.rstrip() if trims & 2 else content


def _watched(template: Template, renderer: _Renderer) -> Template:
    """Refuses contents with texts of which the template makes something else, alone or in front of a tag."""
    texts = sorted((text for text in renderer.texts if len(text.strip()) >= _LEAST_WATCHED), key=len)
    tags = [text for text in texts if text.startswith("<")]
    shapes: list[tuple[str, tuple[str, ...]]] = [
        (text, (text, f"a{text}", f"{text}a", f"a {text} b")) for text in texts
    ]
    shapes += [(a, (a + b, f"{a}a{b}")) for a in tags for b in tags]
    for text, contents in shapes:
        for content, roles in product(
            contents, (("system", "user"), ("user",), ("user", "assistant", "user"))
        ):
            whole = [content if role == roles[-2:][0] else "b" for role in roles]
            if _differs(template, renderer, roles, whole, ANSWER):
                template = replace(template, watched=[*template.watched, text])
                break
    return template


def _differs(
    template: Template, renderer: _Renderer, roles: Sequence[str], contents: Sequence[str], last: str
) -> bool:
    got = template.text(roles, contents, last)
    return got is not None and got != renderer.text(roles, contents, last)


def _check(template: Template, renderer: _Renderer) -> None:
    """Compares with Jinja. Raises `Irregular` where the template gives something else."""
    chance = random.Random(0)
    parts = [*_PARTS, *(text for text in renderer.texts if text not in template.watched)]
    long = [
        ("user", "assistant") * 3,
        ("system", *("user", "assistant") * 2, "user"),
        (*("user", "assistant") * 12, "user"),
    ]
    orders = [*_role_orders(), *long]
    for _ in range(_CHECKS):
        roles = chance.choice(orders)
        contents = ["".join(chance.choices(parts, k=chance.randrange(4))) for _ in roles]
        if _differs(template, renderer, roles, contents, chance.choice((END, ANSWER))):
            raise Irregular(
                f"what the template writes of the roles {', '.join(roles)} with the contents {contents!r} "
                "depends on the contents"
            )
