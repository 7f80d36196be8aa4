"""Text to token ids and back, as transformers does it, from the files that Hugging Face tokenizers have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from mqc.errors import ArtifactError, InputError
from mqc.files import json_object, read_text, reason
from mqc.runtime.chat_template import render

Message = Mapping[str, Any]

#: Files of a tokenizer, as transformers writes them; further templates stand in the folder.
TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
GENERATION, TEMPLATES = "generation_config.json", "additional_chat_templates"
#: Characters that no text has, for the texts of control tokens in messages: plane 15, private use.
_PRIVATE = 0xF0000


class Tokenizer:
    """Wraps the `tokenizers` library, chat templates, and how generation ends.

    Args:
        files: contents by file name: `tokenizer.json`, and where there are such `tokenizer_config.json`
            (special tokens by name; `start`: ids that transformers puts in front of a text),
            `chat_template.jinja`, `additional_chat_templates/NAME.jinja`, `generation_config.json`.

    Raises `ArtifactError` if a file is not what its name says.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = dict(files)
        if TOKENIZER not in files:
            raise ArtifactError(f"there is no {TOKENIZER}")
        for name, text in files.items():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ArtifactError(f"{name} is no valid Unicode: {error}") from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(files[TOKENIZER])
        except Exception as error:  # the library raises bare Exception
            raise ArtifactError(f"{TOKENIZER} is not a tokenizer: {error}") from error
        config, self.generation = (_json_object(files, name) for name in (CONFIG, GENERATION))
        self._special = {k: v for k, v in config.items() if k.endswith("_token") and isinstance(v, str)}
        self.bos, self.eos = (self._id(self._special.get(name)) for name in ("bos_token", "eos_token"))
        #: Ids that are put in front of every text, by the tokenizer or by a prefix that begins with them.
        self.in_front = tuple(_ids(config.get("start", []), CONFIG, self._tokenizer.get_vocab_size()))
        #: Ids that the tokenizer puts in front of every text.
        self.start = self.in_front
        stated = self.generation.get("eos_token_id")
        ends = _ids(
            stated if isinstance(stated, list) else [stated] if stated is not None else [], GENERATION
        )
        #: Ids that end an answer.
        self.ends = frozenset([*ends, *([] if self.eos is None else [self.eos])])
        #: Chat templates by name.
        self.templates = {
            "default" if name == TEMPLATE else name.removeprefix(f"{TEMPLATES}/").removesuffix(".jinja"): text
            for name, text in files.items()
            if name.endswith(".jinja")
        }

    @classmethod
    def from_huggingface(cls, tokenizer: Any, generation: Mapping[str, Any] | None = None) -> Tokenizer:
        """From a fast tokenizer of transformers, and a model's `generation_config` as a dictionary.

        Raises `InputError` for a slow tokenizer.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(
                f"{type(tokenizer).__name__} has no tokenizer.json form; load it with use_fast=True"
            )
        special = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "start": start_tokens(tokenizer)}
        files = {TOKENIZER: backend.to_str(), CONFIG: json.dumps(config, indent=2)}
        given = getattr(tokenizer, "chat_template", None)
        templates = given if isinstance(given, dict) else {"default": given} if given else {}
        for name, text in templates.items():
            file = TEMPLATE if name == "default" else f"{TEMPLATES}/{name}.jinja"
            if not is_tokenizer_file(file):
                raise InputError(f"a chat template cannot be named {name!r}")
            files[file] = text
        if generation:
            files[GENERATION] = json.dumps(generation, indent=2, default=str)
        return cls(files)

    @classmethod
    def read(cls, folder: Path, names: Iterable[str] | None = None) -> Tokenizer:
        """From a folder; of its files those with these names, by default all that a tokenizer has.

        Raises `ArtifactError` if one cannot be read.
        """
        try:
            places = (*folder.glob("*"), *folder.glob(f"{TEMPLATES}/*")) if names is None else ()
        except (OSError, ValueError) as error:
            raise ArtifactError(f"cannot read the tokenizer in {folder}: {reason(error)}") from error
        found = filter(is_tokenizer_file, (str(path.relative_to(folder)) for path in places))
        return cls({name: read_text(folder / name, ArtifactError) for name in names or found})

    def behind(self, prefix: Sequence[int]) -> Tokenizer:
        """The tokenizer of texts that stand behind a prefix: start tokens that it begins with are there."""
        other = copy(self)
        there = tuple(prefix[: len(self.in_front)]) == self.in_front
        other.start = () if there else self.in_front
        return other

    @property
    def has_template(self) -> bool:
        """Whether `chat` works."""
        return bool(self.templates)

    @cached_property
    def control(self) -> dict[int, str]:
        """Texts of the special tokens by id."""
        added = self._tokenizer.get_added_tokens_decoder().items()
        return {number: token.content for number, token in added if token.special}

    def control_not_in(self, ids: npt.NDArray[np.int64]) -> list[str]:
        """Texts of the special tokens that are neither among ids nor in front of every text."""
        seen = {*np.unique(ids).tolist(), *self.in_front}
        return [text for number, text in sorted(self.control.items()) if number not in seen]

    # ---- text

    def encode(self, text: str, start: bool = True) -> list[int]:
        """Token ids of a text; with `start`, behind the tokens that begin every sequence.

        Raises `InputError` for text that is no valid Unicode or that the tokenizer has no tokens for.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text is no valid Unicode: {error}") from error
        ids = _encoded(self._tokenizer, text)
        return [*self.start, *ids] if start else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def decode_stream(self, ids: Iterable[int], continues: bool = True) -> Iterator[str]:
        """Pieces of text as ids arrive; a piece is held back until its characters are whole.

        continues: the text follows another one, so that a space in front belongs to it.
        """
        # Behind a letter: decoders drop the space in front of a whole text.
        seen = self.encode("a", start=False)[-1:] if continues else []
        done = len(seen)  # ids whose text was given out
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

    # ---- conversations

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        template: str | None = None,
        parse_special: bool = False,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn.

        Args:
            messages: a plain string is one message of the user.
            template: name of the template; by default `tool_use` if there are tools and such a template,
                else `default`, as transformers chooses.
            parse_special: take the texts of control tokens inside messages for these tokens. By default
                they are text: a user cannot end the own turn by typing `<|im_end|>`.
            variables: what the template takes besides, such as `tools` or `enable_thinking`.

        Raises `InputError` if there is no template or it refuses the messages.
        """
        text = self._template(template, variables.get("tools"))
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        hidden = [] if parse_special else self._typed(messages)
        rendered = render(text, _replaced(messages, hidden), self._special, variables)
        ids = self._encode_around(rendered, hidden) if hidden else self.encode(rendered, start=False)
        # Templates write the start tokens themselves, which a prefix may have already.
        count = len(self.in_front)
        there = not self.start and tuple(ids[:count]) == self.in_front
        return ids[count:] if there else ids

    def _template(self, name: str | None, tools: Any) -> str:
        if not self.templates:
            raise InputError("the tokenizer has no chat template; give a plain prompt instead")
        chosen = name or ("tool_use" if tools and "tool_use" in self.templates else "default")
        if chosen not in self.templates:
            raise InputError(
                f"the tokenizer has no chat template {chosen!r}; it has {', '.join(sorted(self.templates))}"
            )
        return self.templates[chosen]

    @cached_property
    def _control(self) -> list[str]:
        """Texts of special tokens, longest first."""
        return sorted(self.control.values(), key=len, reverse=True)

    @cached_property
    def _without_control(self) -> tokenizers.Tokenizer:
        """The tokenizer, to which the texts of special tokens are text."""
        plain = tokenizers.Tokenizer.from_str(self.files[TOKENIZER])
        plain.encode_special_tokens = True
        return plain

    def _typed(self, messages: Any) -> list[str]:
        """Control tokens whose texts are in messages."""
        content = "\0".join(_strings(messages))
        return [text for text in self._control if text and text in content]

    def _encode_around(self, rendered: str, hidden: list[str]) -> list[int]:
        """Ids of a rendered template, in which private characters stand for what users typed."""
        pieces = re.split("(" + "|".join(map(re.escape, self._control)) + ")", rendered)
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if number % 2:
                ids += [i for i in [self._id(piece)] if i is not None]
            elif piece:
                for k, text in enumerate(hidden):
                    piece = piece.replace(chr(_PRIVATE + k), text)
                ids += _encoded(self._without_control, piece)
        return ids

    def _id(self, text: str | None) -> int | None:
        return None if text is None else self._tokenizer.token_to_id(text)


def _encoded(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"the tokenizer cannot encode the text: {error}") from error
    return ids


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of this name, relative to a folder, is one of a tokenizer's."""
    further = re.fullmatch(rf"{TEMPLATES}/[\w-]+\.jinja", name)
    return name in (TOKENIZER, CONFIG, TEMPLATE, GENERATION) or bool(further)


def start_tokens(tokenizer: Any) -> list[int]:
    """Ids that a transformers tokenizer puts in front of a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    places = [k for k in range(len(whole)) if whole[k : k + len(bare)] == bare]
    return list(whole[: places[0]]) if places else []


def _json_object(files: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        return json_object(files.get(name, "{}"))
    except ValueError as error:
        raise ArtifactError(f"{name} is not a JSON object: {error}") from error


def _ids(values: Any, name: str, vocabulary: int | None = None) -> list[int]:
    """Token ids from a file."""
    good = isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
    if not good or (vocabulary is not None and max(values, default=0) >= vocabulary):
        raise ArtifactError(f"{name} holds {values!r} where token ids belong")
    return list(values)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


def _replaced(value: Any, hidden: list[str]) -> Any:
    """Messages with a private character for each of some texts."""
    if isinstance(value, str):
        for k, text in enumerate(hidden):
            value = value.replace(text, chr(_PRIVATE + k))
        return value
    if isinstance(value, Mapping):
        return {key: _replaced(part, hidden) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(part, hidden) for part in value]
    return value
