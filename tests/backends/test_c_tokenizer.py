"""The C tokenizer gives the ids and texts of the Python one, which are the library's."""

from __future__ import annotations

import ctypes
import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from transformers import AutoTokenizer

from mqc.backends.cpu.tokenizer_tables import tokenizer_tables
from mqc.data import code, questions, text
from mqc.errors import TargetError
from mqc.frontend.sources import locate
from mqc.runtime.tokenizer import GENERATION, TOKENIZER, Tokenizer
from tests.backends import c_tokenizer as c
from tests.backends.c_tokenizer import CTokenizer, Refused
from tests.backends.tokenizer_families import CONTROL, FAMILIES, files


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return c.build(tmp_path_factory.mktemp("tokenizer"))


@cache
def tables(name: str) -> bytes:
    return tokenizer_tables(files(name))


@cache
def reference(name: str) -> Tokenizer:
    return Tokenizer(files(name))


#: What patterns, normal forms and decoders tell apart.
PIECES = [
    *CONTROL, "<s>", "<unk>", "<|end|>", "<pad>", "<tool>", "cat", "Dog é", "<0x41>", "▁", " ", "  ", "\n",
    "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", "\x1c", "\x00", "'s", "'S", "'ſ", "'LL", "don't",
    "ﬆ", "ß", "\u212a", "ǅ", "ab", "1", "23", "4567", "٣", "①", "²", "the", " The", "HTTPServer", "日本",
    "カナ", "한국", "\u1100\u1161\u11a8", "\u0301", "\u0323\u0301", "e\u0301", "\u212b", "ﬁ", "ﷺ",
    "\u0345", "\u0334", "!!", "...", "/", "_", "🎉", "👨\u200d👩", "\ufeff", "\u200b", "\ufffd",
]  # fmt: skip
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.text(max_size=6),
        st.builds(
            str.__mul__, st.sampled_from([" ", "\n", "a", "A", "1", "=", "\u0301"]), st.integers(1, 70)
        ),
    ),
    max_size=8,
).map("".join)


def same(ours: CTokenizer, theirs: Tokenizer, given_text: str) -> None:
    """Ids with control tokens and without, start tokens, and texts of the ids."""
    ids = theirs.encode(given_text, start=False)
    assert ours.encode(given_text) == ids
    assert ours.encode(given_text, c.PARSE_SPECIAL | c.ADD_START) == theirs.encode(given_text)
    plain = theirs._without_control.encode(given_text, add_special_tokens=False).ids
    assert ours.encode(given_text, 0) == plain
    for found in (ids, plain):
        assert ours.decode(found) == theirs.decode(found)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=40)
@given(given_text=TEXTS)
def test_texts(library: ctypes.CDLL, name: str, given_text: str) -> None:
    same(CTokenizer(library, tables(name)), reference(name), given_text)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_character(library: ctypes.CDLL, name: str) -> None:
    """Between letters, digits, spaces and newlines; 400 in one text, so that it ends soon."""
    ours, theirs = CTokenizer(library, tables(name)), reference(name)
    characters = [chr(i) for i in (*range(0xD800), *range(0xE000, 0x30000, 5), *range(0xE0000, 0x110000, 97))]
    for begin in range(0, len(characters), 400):
        joined = "".join(f"a{one}1{one} {one}\n" for one in characters[begin : begin + 400])
        assert ours.encode(joined) == theirs.encode(joined, start=False)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=40)
@given(data=st.data())
def test_ids_in_any_order(library: ctypes.CDLL, name: str, data: st.DataObject) -> None:
    """Texts that the model invents: parts of characters, control tokens, ids that the tokenizer lacks."""
    ours, theirs = CTokenizer(library, tables(name)), reference(name)
    size = theirs._tokenizer.get_vocab_size()
    known = [
        theirs._tokenizer.token_to_id(f"<0x{byte:02X}>") or byte
        for byte in (0x41, 0xE2, 0x82, 0xAC, 0xF0, 0xFF)
    ]
    ids = data.draw(
        st.lists(st.integers(0, size + 3) | st.sampled_from(known) | st.integers(3, 300), max_size=12)
    )
    assert ours.decode(ids) == theirs.decode(ids)
    pieces = ours.stream(ids)
    assert [piece for piece in pieces if piece] == list(theirs.decode_stream(ids))


@pytest.mark.slow
def test_packaged_text_with_smollm2(library: ctypes.CDLL) -> None:
    place = locate("demo")
    theirs = Tokenizer.from_huggingface(AutoTokenizer.from_pretrained(place.name, **place.options))
    ours = CTokenizer(library, tokenizer_tables(theirs.files))
    asked = "\n".join(f"{q} {a}" for part in ("calibration", "test") for q, a in questions(part))
    for whole in (text("calibration"), text("test"), code("calibration"), code("test"), asked):
        ids = theirs.encode(whole, start=False)
        assert ours.encode(whole) == ids
        assert ours.decode(ids) == whole
    message = [{"role": "user", "content": "What is the capital of France?"}]
    assert ours.chat(message) == theirs.chat(message)


@pytest.mark.parametrize("name", FAMILIES)
def test_packaged_text(library: ctypes.CDLL, name: str) -> None:
    ours, theirs = CTokenizer(library, tables(name)), reference(name)
    for whole in (text("test")[:100_000], code("test")[:50_000]):
        assert ours.encode(whole) == theirs.encode(whole, start=False)


def test_ends_and_start(library: ctypes.CDLL) -> None:
    given_files = files("llama2") | {GENERATION: json.dumps({"eos_token_id": [7, 100_000]})}
    theirs = Tokenizer(given_files)
    ours = CTokenizer(library, tokenizer_tables(given_files))
    assert [i for i in range(-1, 100_010) if ours.ends(i)] == sorted(theirs.ends)
    behind = CTokenizer(library, tokenizer_tables(given_files, prefix=[*theirs.start, 9]))
    assert behind.encode("a", c.ADD_START) == ours.encode("a", 0)


@pytest.mark.parametrize(
    "damaged",
    [
        b"\x80",
        b"a\xc3",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe2\x82",
        b"\xff",
        b"\xf0\x8f\x80\x80",
    ],
)
def test_text_that_is_no_utf8(library: ctypes.CDLL, damaged: bytes) -> None:
    ours = CTokenizer(library, tables("gpt2"))
    with pytest.raises(Refused) as error:
        ours.encode(damaged)
    assert error.value.status == c.ARGUMENT


def test_room(library: ctypes.CDLL) -> None:
    """Too little room: what fits is there, and how much is needed."""
    ours = CTokenizer(library, tables("gpt2"))
    ids = ours.encode("the cat of the house")
    count, room = ctypes.c_size_t(), (ctypes.c_int32 * 3)()
    status = library.mqc_tokenizer_encode(
        ours.handle, b"the cat of the house", 20, 1, room, 3, ctypes.byref(count)
    )
    assert (status, count.value, room[:]) == (c.FULL, len(ids), ids[:3])
    with pytest.raises(Refused) as error:
        ours.encode("a", 64)
    assert error.value.status == c.ARGUMENT


def changed(**parts: Any) -> dict[str, str]:
    """GPT-2's tokenizer with other parts; a dictionary is put into what is there."""
    spec = json.loads(files("gpt2")[TOKENIZER])
    for name, part in parts.items():
        spec[name] = {**spec[name], **part} if isinstance(part, dict) and "type" not in part else part
    return {TOKENIZER: json.dumps(spec)}


def part_of(made: Any) -> Any:
    """The JSON of a normalizer, pre-tokenizer or decoder."""
    return json.loads(made.__getstate__())


def split(pattern: str) -> Any:
    return part_of(pre_tokenizers.Split(Regex(pattern), "isolated"))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"normalizer": part_of(normalizers.Lowercase())},
            "normalizer: Lowercase has no form in C; supported are NFC",
        ),
        ({"normalizer": part_of(normalizers.Replace(Regex("a"), "b"))}, "normalizer: Replace"),
        ({"pre_tokenizer": part_of(pre_tokenizers.BertPreTokenizer())}, "pre_tokenizer: BertPreTokenizer"),
        ({"decoder": part_of(decoders.WordPiece())}, "decoder: WordPiece"),
        ({"decoder": None}, "decoder: none"),
        ({"model": {"dropout": 0.5}}, "model: dropout 0.5"),
        ({"model": {"unk_token": "<none>"}}, "model: unk_token '<none>', which is no token"),
        ({"pre_tokenizer": split(r"a+?")}, "as few as possible .at character 3"),
        ({"pre_tokenizer": split(r"a|(?<=b)c")}, "this kind of group"),
        ({"pre_tokenizer": split(r"(?!ab)c")}, "a look ahead at more than one character"),
        ({"pre_tokenizer": split(r"(?:ab)++")}, "a possessive quantifier of more than one character"),
        ({"pre_tokenizer": split(r"(?:a*b?)*c")}, "a repetition of what may be empty"),
        ({"pre_tokenizer": split(r"a*")}, "it matches an empty text"),
        ({"pre_tokenizer": split(r"(?i:st)")}, "letters that are also one character"),
        ({"pre_tokenizer": split(r"(?i:\p{L})")}, "where case does not matter"),
        ({"pre_tokenizer": split(r"\bword")}, r"the escape \\b"),
        ({"pre_tokenizer": split(r"a{900}{900}")}, "it is too large"),
        ({"pre_tokenizer": split(r"a(?:){99}")}, "a repetition of what may be empty"),
        ({"pre_tokenizer": split("(" * 60 + "a" + ")" * 60)}, "too many groups in one another"),
        (
            {"pre_tokenizer": split("".join(map(chr, range(0x100, 0x300))))},
            "more than 256 sets of characters",
        ),
    ],
)
def test_what_has_no_form_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        tokenizer_tables(changed(**parts))


def test_other_models_and_added_tokens_are_refused() -> None:
    with pytest.raises(TargetError, match="model: WordLevel has no form in C; supported are BPE"):
        tokenizer_tables({TOKENIZER: RawTokenizer(models.WordLevel({"a": 0})).to_str()})
    raw = RawTokenizer.from_str(files("gpt2")[TOKENIZER])
    raw.add_tokens([AddedToken("word", single_word=True)])
    with pytest.raises(TargetError, match="added_tokens: single_word of 'word'"):
        tokenizer_tables({TOKENIZER: raw.to_str()})
    raw = RawTokenizer.from_str(files("gpt2")[TOKENIZER])
    raw.enable_truncation(8)
    with pytest.raises(TargetError, match="truncation"):
        tokenizer_tables({TOKENIZER: raw.to_str()})
