"""Prompts, chats and answers are tokenized as transformers does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mqc.errors import ArtifactError, InputError
from mqc.runtime.tokenizer import CONFIG, GENERATION, TEMPLATE, TOKENIZER, Tokenizer
from tests.runtime.conftest import byte_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["the cat of the house was in a hat", "this is that and an answer is here, 1 2 3"] * 20
CONTROL = ["<|im_start|>", "<|im_end|>"]


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: every byte is a character, nothing in front of a text."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>", *CONTROL], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    raw.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|end|>", eos_token="<|end|>")


def sentence_piece() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces are ▁, unknown characters bytes, `<s>` in front of every text."""
    raw = RawTokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *CONTROL, *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {"bytes": byte_level, "pieces": sentence_piece}
MADE = {name: make() for name, make in KINDS.items()}
texts = st.lists(
    st.one_of(st.sampled_from([*CONTROL, "<s>", " ", "the", "\n", "a hat"]), st.text(max_size=8)), max_size=6
).map("".join)


@pytest.fixture(params=KINDS)
def theirs(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    tokenizer = KINDS[request.param]()
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100)
@given(text=texts)
def test_texts_have_the_ids_of_transformers(kind: str, text: str) -> None:
    theirs = MADE[kind]
    ours = Tokenizer.from_huggingface(theirs)
    assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.encode(text, start=False) == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(text=st.text(max_size=20))
def test_chats_have_the_ids_of_transformers(kind: str, text: str) -> None:
    theirs = MADE[kind]
    theirs.chat_template = CHATML
    messages = [{"role": "system", "content": "this is"}, {"role": "user", "content": text}]
    want = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert Tokenizer.from_huggingface(theirs).chat(messages) == want


@settings(max_examples=100)
@given(text=texts)
def test_control_tokens_in_messages_are_text(text: str) -> None:
    """The template's own remain the only ones; decoded, the message is as it was typed."""
    theirs = MADE["bytes"]
    theirs.chat_template = CHATML
    ours = Tokenizer.from_huggingface(theirs)
    ids = ours.chat(text)
    control = theirs.convert_tokens_to_ids(CONTROL)
    assert [i for i in ids if i in control] == [control[0], control[1], control[0]]
    first = ids.index(control[1])
    assert theirs.decode(ids[1:first]) == f"user\n{text}"
    parsed = ours.chat(text, parse_special=True)
    want = theirs.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    assert parsed == want["input_ids"]


def test_what_follows_a_prompt_keeps_its_space(theirs: PreTrainedTokenizerFast) -> None:
    whole, head = (theirs(t, add_special_tokens=False)["input_ids"] for t in ("the cat of", "the cat"))
    ours = Tokenizer.from_huggingface(theirs)
    assert "the cat" + "".join(ours.decode_stream(whole[len(head) :])) == "the cat of"


def test_start_tokens_come_once(theirs: PreTrainedTokenizerFast) -> None:
    """In front of prompts and chats, from the tokenizer, the template or the prefix."""
    theirs.chat_template = "{{ bos_token }}" + CHATML
    ours = Tokenizer.from_huggingface(theirs)
    start = list(ours.start)
    assert start == theirs("")["input_ids"]
    bare = ours.encode("the", start=False)
    assert ours.encode("the") == start + bare
    assert ours.chat("the").count(theirs.bos_token_id) == 1
    if start:
        behind = ours.behind([*start, 300])
        assert behind.encode("the") == bare
        assert start + behind.chat("the") == ours.chat("the")
        assert behind.behind([300]).encode("the") == start + bare


def test_named_templates(theirs: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    theirs.chat_template = {"default": CHATML, "tool_use": "{{ tools | length }} tools" + CHATML}
    ours = Tokenizer.from_huggingface(theirs)
    message = [{"role": "user", "content": "the"}]
    for name, tools in ((None, None), (None, [{"type": "function"}]), ("tool_use", [])):
        want = theirs.apply_chat_template(
            message, chat_template=name, tools=tools, add_generation_prompt=True, tokenize=False
        )
        assert ours.chat("the", template=name, tools=tools) == ours.encode(want, start=False)
    with pytest.raises(InputError, match="'rag'; it has default, tool_use"):
        ours.chat("the", template="rag")


def test_templates_find_special_tokens_and_variables(theirs: PreTrainedTokenizerFast) -> None:
    theirs.pad_token = "<|im_end|>"
    theirs.chat_template = "{{ pad_token }}{% if enable_thinking %}the cat{% endif %}"
    ours = Tokenizer.from_huggingface(theirs)
    assert ours.chat("x") == [theirs.pad_token_id]
    assert ours.chat("x", enable_thinking=True) == ours.encode("<|im_end|>the cat", start=False)


def test_the_files_are_those_of_transformers(theirs: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    theirs.chat_template = {"default": CHATML, "tool_use": "tools" + CHATML}
    ours = Tokenizer.from_huggingface(theirs, {"eos_token_id": [0, 2], "do_sample": True, "top_p": 0.5})
    for name, text in ours.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("the cat")["input_ids"] == ours.encode("the cat")
    assert again.chat_template == theirs.chat_template and again.eos_token == theirs.eos_token
    read = Tokenizer.read(tmp_path)
    assert read.files == ours.files and read.ends == {0, 2, theirs.eos_token_id}


def test_no_valid_unicode() -> None:
    with pytest.raises(InputError, match="Unicode"):
        Tokenizer.from_huggingface(MADE["bytes"]).encode("caf\udce9")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (CONFIG, '{"bos_token": "\\ud800"}'),
        (GENERATION, '{"x": ["\\udfff"]}'),
        (TEMPLATE, "\ud800"),
        (TOKENIZER, byte_tokenizer().files[TOKENIZER].replace("<eos>", "\\ud800")),
    ],
)
def test_files_that_are_no_unicode(name: str, text: str) -> None:
    """Such a text could be neither encoded nor saved."""
    with pytest.raises(ArtifactError, match=name):
        Tokenizer(byte_tokenizer().files | {name: text})


@pytest.mark.parametrize(
    "model",
    [models.BPE({"a": 0}, [], unk_token="<u>"), models.WordLevel({"a": 0}), models.Unigram([("a", 0.0)])],
)
def test_text_that_a_tokenizer_has_no_tokens_for(model: models.Model) -> None:
    tokenizer = Tokenizer({TOKENIZER: RawTokenizer(model).to_str(), TEMPLATE: CHATML})
    assert tokenizer.encode("a") == [0]
    for call in (tokenizer.encode, tokenizer.chat):
        with pytest.raises(InputError, match="the tokenizer cannot encode the text: "):
            call("b")
