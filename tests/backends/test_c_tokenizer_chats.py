"""Compiled chat templates give the ids of Jinja, or say why they are not compiled."""

from __future__ import annotations

import ctypes
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqc.backends.cpu.tokenizer_tables import tokenizer_tables
from mqc.errors import InputError
from mqc.runtime.tokenizer import TEMPLATE, Tokenizer
from tests.backends import c_tokenizer as c
from tests.backends.c_tokenizer import CTokenizer, Refused
from tests.backends.tokenizer_families import CONTROL, files

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_REFUSAL = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
)
#: As published templates do it.
REGULAR = {
    "plain": CHATML,
    "default system": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
    ),
    "trims": "{{ bos_token }}" + CHATML.replace("m['content']", "m['content'] | trim"),
    "trims at the right": CHATML.replace("m['content']", "m['content'].rstrip()"),
    "system in the first turn": (
        "{{ bos_token }}{% set ns = namespace(system='') %}{% set rest = messages %}"
        "{% if messages[0].role == 'system' %}{% set ns.system = messages[0].content + '\n\n' %}"
        "{% set rest = messages[1:] %}{% endif %}"
        "{% for m in rest %}" + _REFUSAL + "{% if m.role == 'assistant' %}<|im_start|>model\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ ns.system if loop.first else '' }}{% endif %}"
        "{{ m.content | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
    ),
    "instructions": (
        "{% if messages[0].role == 'system' %}"
        "{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}" + _REFUSAL + "{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
}
#: Those that write the system message with the first one of the user. By itself they leave it out.
BEGINNINGS = ("system in the first turn", "instructions")
IRREGULAR = {
    "": "the tokenizer has no default chat template",
    "{% if": "the template is no Jinja",
    "{{ strftime_now('%d') }}" + CHATML: "the template writes the date",
    "{{ raise_exception('no') }}": "the template refuses conversations of texts",
    CHATML.replace(
        "m['content']", "(m['content'] if m['content'] else 'nothing')"
    ): "depends on the contents",
    CHATML.replace("m['content']", "m['content'] | upper"): "depends on the contents",
    CHATML.replace("<|im_start|>{{", "{{ loop.index }}<|im_start|>{{"): "depends on more than these two",
    CHATML.replace(
        "{{ m['content'] }}", "{{ m['content'] if loop.index < 3 else '' }}"
    ): "does not write all",
}
#: Writes the last answer in another way, and takes reasoning out of the others.
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set content = m.content %}"
    "{% if m.role == 'assistant' %}{% set content = content.split('</think>')[-1] %}"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{% endif %}{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTENTS = st.lists(
    st.sampled_from([*CONTROL, "<s>", " ", "\n", "the cat", "Who?", "\u00a0", "\x1f", "\U000f0000", "é"])
    | st.text(max_size=4),
    max_size=5,
).map("".join)
ROLES = ("system", "user", "assistant")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return c.build(tmp_path_factory.mktemp("tokenizer"))


@cache
def made(family: str, name: str) -> tuple[bytes, Tokenizer]:
    given_files = files(family) | {TEMPLATE: REGULAR[name]}
    return tokenizer_tables(given_files), Tokenizer(given_files)


def jinja(theirs: Tokenizer, messages: list[dict[str, str]], **options: bool) -> list[int] | None:
    try:
        return theirs.chat(messages, **options)
    except InputError:
        return None


@pytest.mark.parametrize(
    ("family", "name"),
    [*(("gpt2", name) for name in REGULAR), *((f, n) for f in ("llama2", "mistral") for n in BEGINNINGS)],
)
@settings(max_examples=60)
@given(data=st.data())
def test_conversations(library: ctypes.CDLL, family: str, name: str, data: st.DataObject) -> None:
    """Control tokens in contents are text, or tokens if that is asked for."""
    tables, theirs = made(family, name)
    ours = CTokenizer(library, tables)
    assert ours.reason is None
    first = data.draw(st.sampled_from(ROLES))
    turns = data.draw(st.integers(0, 3))
    roles = [first, *(["user", "assistant"] if first != "user" else ["assistant", "user"]) * turns]
    messages = [{"role": role, "content": data.draw(CONTENTS)} for role in roles]
    for flags, options in (
        (c.GENERATION_PROMPT, {}),
        (0, {"add_generation_prompt": False}),
        (c.GENERATION_PROMPT | c.PARSE_SPECIAL, {"parse_special": True}),
    ):
        want = jinja(theirs, messages, **options)
        if want is None or (roles == ["system"] and name in BEGINNINGS):
            with pytest.raises(Refused) as error:
                ours.chat(messages, flags)
            assert error.value.status == c.ARGUMENT
            continue
        assert ours.chat(messages, flags) == want


@pytest.mark.parametrize("template", IRREGULAR)
def test_irregular_templates(library: ctypes.CDLL, template: str) -> None:
    given_files = files("gpt2") | ({TEMPLATE: template} if template else {})
    ours = CTokenizer(library, tokenizer_tables(given_files))
    assert IRREGULAR[template] in (ours.reason or "")
    with pytest.raises(Refused) as error:
        ours.chat([{"role": "user", "content": "a"}])
    assert error.value.status == c.UNSUPPORTED


def test_reasoning_that_a_template_takes_away(library: ctypes.CDLL) -> None:
    """Contents that hold some are refused, and so are conversations that end with the assistant."""
    given_files = files("gpt2") | {TEMPLATE: REASONING}
    ours, theirs = CTokenizer(library, tokenizer_tables(given_files)), Tokenizer(given_files)
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": f"<think>the {role}"} for role in roles]
    assert ours.chat(messages) == theirs.chat(messages)
    for wrong, status in (
        (messages[:3], c.ARGUMENT),
        ([*messages, {"role": "user", "content": "a</think>b"}], c.UNSUPPORTED),
    ):
        with pytest.raises(Refused) as error:
            ours.chat(wrong)
        assert error.value.status == status


def test_roles_that_are_refused(library: ctypes.CDLL) -> None:
    """An unknown role, none at all, and a system message that is not the first."""
    ours = CTokenizer(library, made("gpt2", "plain")[0])
    for roles in (["tool"], [], ["user", "system"]):
        with pytest.raises(Refused) as error:
            ours.chat([{"role": role, "content": "a"} for role in roles])
        assert error.value.status == c.ARGUMENT


def test_start_tokens_come_once(library: ctypes.CDLL) -> None:
    """A prefix that begins with them has those that the template writes."""
    given_files = files("llama2") | {TEMPLATE: REGULAR["trims"]}
    theirs = Tokenizer(given_files)
    prefix = [*theirs.start, 40]
    message = [{"role": "user", "content": "the cat"}]
    whole, behind = (
        CTokenizer(library, tokenizer_tables(given_files, p)).chat(message) for p in ((), prefix)
    )
    assert whole == theirs.chat(message) == list(theirs.start) + behind
    assert behind == theirs.behind(prefix).chat(message)
