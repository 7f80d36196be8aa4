"""Text to token ids and back, from a `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import tokenizers
from jinja2 import TemplateError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mqc.errors import ArtifactError, InputError

Message = dict[str, str]


class Tokenizer:
    """Wraps the `tokenizers` library, and the chat template.

    Args:
        text: contents of a `tokenizer.json`.
        config: `bos`, `eos` (token ids or None), `bos_token`, `eos_token` (their texts),
            `chat_template` (Jinja text or None).

    Raises `ArtifactError` if the text is no tokenizer.
    """

    def __init__(self, text: str, config: dict[str, Any]) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ArtifactError(f"tokenizer.json is not a tokenizer: {error}") from error
        self._text, self._config = text, config
        self.eos: int | None = config.get("eos")
        self.bos: int | None = config.get("bos")

    @classmethod
    def from_huggingface(cls, tokenizer: Any) -> Tokenizer:
        """From a fast tokenizer of transformers. Raises `InputError` for a slow one."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(
                f"{type(tokenizer).__name__} has no tokenizer.json form; load it with use_fast=True"
            )
        template = getattr(tokenizer, "chat_template", None)
        return cls(
            backend.to_str(),
            {
                "bos": tokenizer.bos_token_id,
                "eos": tokenizer.eos_token_id,
                "bos_token": tokenizer.bos_token or "",
                "eos_token": tokenizer.eos_token or "",
                "chat_template": template if isinstance(template, str) else None,
            },
        )

    def to_json(self) -> str:
        """Everything, as the text of one JSON object."""
        return json.dumps({"config": self._config, "tokenizer": json.loads(self._text)})

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Inverse of `to_json`. Raises `ArtifactError`."""
        try:
            data = json.loads(text)
            return cls(json.dumps(data["tokenizer"]), dict(data["config"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"the tokenizer file is malformed: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; no special token is added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Pieces of text as ids arrive; a piece is held back until its characters are whole."""
        seen: list[int] = []
        done = 0  # ids whose text was given out
        base = 0  # where decoding starts, so that a long text is not decoded again and again
        for token in ids:
            seen.append(token)
            before = self.decode(seen[base:done])
            after = self.decode(seen[base:])
            if not after.endswith("\ufffd") and len(after) > len(before):
                yield after[len(before) :]
                base, done = done, len(seen)
        rest = self.decode(seen[base:])[len(self.decode(seen[base:done])) :]
        if rest:
            yield rest

    def chat(self, messages: str | Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn.

        A plain string is one message of the user. The template runs in a sandbox: it cannot reach
        Python objects. Raises `InputError` if there is no template or it refuses the messages.
        """
        template = self._config.get("chat_template")
        if not template:
            raise InputError("the tokenizer has no chat template; give a plain prompt instead")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = _to_json
        try:
            text = environment.from_string(template).render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=True,
                bos_token=self._config.get("bos_token", ""),
                eos_token=self._config.get("eos_token", ""),
            )
        except Exception as error:  # a template can raise anything: 1 / 0, 1 + "a", too long a range
            raise InputError(f"the chat template refused the messages: {error}") from error
        return self.encode(text)


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

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
