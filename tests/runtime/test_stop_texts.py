"""Stop texts of any length, however the text comes in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mqc.runtime.stop_texts import split_stops, until_stop
from tests.runtime.conftest import byte_tokenizer, letter_tokenizer

TEXTS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def first_stop(text: str, stops: list[str]) -> str:
    """The definition: the shortest beginning that ends in stop texts, without the longest of them."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(TEXTS, STOPS, st.lists(st.integers(0, 12), max_size=6))
def test_a_text_ends_where_a_stop_text_is_whole(text: str, stops: list[str], places: list[int]) -> None:
    assert "".join(until_stop(cut(text, places), stops)) == first_stop(text, stops)


@given(TEXTS, STOPS)
def test_no_more_is_held_back_than_must_be(text: str, stops: list[str]) -> None:
    """What is not given out before the next piece may be the beginning of a stop text."""
    given_out: list[str] = []
    known = ""

    def pieces() -> Iterator[str]:
        nonlocal known
        yield text
        known = "".join(given_out)
        yield "c"

    for piece in until_stop(pieces(), stops):
        given_out.append(piece)
    if first_stop(text, stops) == text and not any(text.endswith(stop) for stop in stops):
        held = text.removeprefix(known)
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_control_token_is_its_id() -> None:
    assert split_stops(byte_tokenizer(), ["ab", 7, "<eos>"]) == ([7], ["ab", "<eos>"])
    assert split_stops(byte_tokenizer(), "ab") == ([], ["ab"])
    tokenizer = letter_tokenizer()
    tokenizer.control = {5: "<end>"}  # type: ignore[misc]
    assert split_stops(tokenizer, ["<end>", "<en"]) == ([5], ["<en"])
