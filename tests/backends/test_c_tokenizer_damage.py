"""Damaged tables are refused or harmless, memory may run out, and long texts do not take for ever."""

from __future__ import annotations

import ctypes
import math
import random
import struct
import zlib
from functools import cache

import pytest

from mqc.backends.cpu.tokenizer_tables import tokenizer_tables
from mqc.runtime.tokenizer import TEMPLATE
from tests.backends import c_tokenizer as c
from tests.backends.c_tokenizer import Allocator, CTokenizer, Refused
from tests.backends.test_c_tokenizer_chats import REASONING
from tests.backends.tokenizer_families import CONTROL, files

HEADER, PLACE = 24, 8
TEXT = "The cat's <|im_end|> 1234 é e\u0301 \u1100\u1161 ﬁ 日本 Dog é<pad>  \n\n  DON'T 🎉 \u0301\u0323"
CHAT = [{"role": "assistant", "content": "<s>a"}, {"role": "user", "content": f" {TEXT} "}]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return c.build(tmp_path_factory.mktemp("tokenizer"))


@cache
def tables(name: str) -> bytes:
    return tokenizer_tables(files(name) | {TEMPLATE: REASONING})


def use(ours: CTokenizer) -> None:
    """Whatever it answers."""
    for flags in (0, c.PARSE_SPECIAL | c.ADD_START):
        ours.encode(TEXT, flags)
    ours.decode([*range(-2, 400), 2**31 - 1])
    ours.stream([*range(250, 300)])
    try:
        ours.chat(CHAT)
    except Refused as refused:
        assert refused.status in (c.ARGUMENT, c.UNSUPPORTED)


def repaired(data: bytearray) -> bytes:
    """With the size and the checksum that the contents have."""
    data[16:24] = struct.pack("<II", len(data), zlib.crc32(data[HEADER:]))
    return bytes(data)


def sections(data: bytes) -> list[tuple[int, int]]:
    (count,) = struct.unpack_from("<I", data, 12)
    return [struct.unpack_from("<II", data, HEADER + PLACE * i) for i in range(count)]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few words of one section, or of the places of sections, are others; or the end is missing."""
    made = bytearray(data)
    places = [(begin, size) for begin, size in sections(data) if size >= 4]
    begin, size = chance.choice([*places, (HEADER, PLACE * len(places))])
    for _ in range(chance.randint(1, 3)):
        at = begin + chance.randrange(size // 4) * 4
        (old,) = struct.unpack_from("<I", made, at)
        new = chance.choice(
            [0, 1, 2**31 - 1, 2**32 - 1, old ^ 1 << chance.randrange(32), old + 1, old - 1, old + 8]
        )
        struct.pack_into("<I", made, at, new & 0xFFFFFFFF)
    if chance.random() < 0.05:
        del made[chance.randrange(len(made)) :]
    return repaired(made) if len(made) >= HEADER else bytes(made)


@pytest.mark.parametrize(
    "name", ["punctuation", "llama3", "deepseek coder", "llama2", "metaspace", "unknown"]
)
def test_damaged_tables(library: ctypes.CDLL, name: str) -> None:
    chance, opened = random.Random(1), 0
    for _ in range(250):
        try:
            ours = CTokenizer(library, mutated(tables(name), chance))
        except Refused as refused:
            assert refused.status == c.DAMAGED
            continue
        opened += 1
        use(ours)
    assert 40 < opened < 220, "both kinds were met"


def test_every_altered_byte_is_found(library: ctypes.CDLL) -> None:
    """By the checksum, whether its value would do or not; and every missing end."""
    chance = random.Random(2)
    whole = tables("gpt2")
    CTokenizer(library, whole)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        for data in (bytes(damaged), whole[: chance.randrange(len(whole))]):
            with pytest.raises(Refused) as error:
                CTokenizer(library, data)
            assert error.value.status == c.DAMAGED


@pytest.mark.parametrize("name", ["punctuation", "llama2", "metaspace"])
def test_memory_that_runs_out(library: ctypes.CDLL, name: str) -> None:
    """At each of the requests in turn. All memory is given back, and only once."""
    blocks: dict[int, ctypes.Array[ctypes.c_char]] = {}
    left = 0

    def allocate(_: int | None, size: int) -> int | None:
        nonlocal left
        left -= 1
        if left < 0:
            return None
        block = ctypes.create_string_buffer(size)
        blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def release(_: int | None, address: int) -> None:
        del blocks[address]

    allocator = Allocator(c.ALLOCATE(allocate), c.RELEASE(release), None)
    calls = [
        lambda ours: ours.encode(TEXT),
        lambda ours: ours.decode(range(300)),
        lambda ours: ours.stream(range(250, 300)),
        lambda ours: ours.chat(CHAT),
    ]
    for call in calls:
        want = call(CTokenizer(library, tables(name)))
        for allowed in range(10_000):
            left = 1  # for the tokenizer itself
            ours = CTokenizer(library, tables(name), allocator)
            left = allowed
            try:
                assert call(ours) == want
                break
            except Refused as refused:
                assert refused.status == c.MEMORY
            finally:
                ours.close()
                assert not blocks
        assert allowed > 3


LENGTH = 200_000
LONG = [
    "a", "aA", " ", "\n", " \r\n", "=", "the cat ", "\u0301", "\u0301\u0323", CONTROL[0][:-1], CONTROL[0],
]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt4o", "deepseek coder", "possessive", "punctuation", "llama2", "metaspace"]
)
def test_work_of_long_texts(library: ctypes.CDLL, name: str) -> None:
    """200 kB of one thing, with a digit behind it: n log n steps."""
    ours = CTokenizer(library, tables(name))
    for unit in LONG:
        before = ours.work()
        ours.encode(unit * (LENGTH // len(unit.encode())) + "1")
        assert ours.work() - before < 12 * LENGTH * math.log2(LENGTH), unit
