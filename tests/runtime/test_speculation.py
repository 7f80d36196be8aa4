"""Drafts: what they are, and that nothing but the number of steps depends on them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqc.runtime.program import Program
from mqc.runtime.sampling import Sampling
from mqc.runtime.session import Session
from mqc.runtime.speculation import MOST, Drafts, Lookup
from tests.compiled import lower_for_cpu
from tests.runtime.conftest import byte_tokenizer, compiled
from tests.runtime.test_sessions import same_cache

SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.7, seed=1),
    Sampling(temperature=1.5, seed=2, top_p=0.9),
    Sampling(repetition_penalty=1.3),
    Sampling(temperature=1, seed=3, repetition_penalty=0.8, min_p=0.05),
)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 9))
def test_a_draft_is_what_followed_the_same_tokens_last(tokens: list[int], most: int) -> None:
    expected: list[int] = []
    for length in (4, 3, 2):
        run = tokens[-length:]
        earlier = [n for n in range(len(tokens) - length) if tokens[n : n + length] == run]
        if len(run) == length and earlier:
            expected = tokens[earlier[-1] + length :][:most]
            break
    assert Lookup(tokens).draft(most) == expected


@given(st.lists(st.tuples(st.floats(1e-4, 1), st.integers(0, MOST), st.integers(0, MOST)), max_size=200))
def test_lengths_stay_within_bounds(steps: list[tuple[float, int, int]]) -> None:
    drafts = Drafts()
    for seconds, draft, right in steps:
        length = drafts.length()
        assert 0 <= length <= MOST
        drafts.took(seconds, min(draft, length), min(right, draft, length))


def test_drafts_that_do_not_pay_become_rare() -> None:
    """Of an engine that takes as long for a token of a draft as for any other."""
    drafts, tried = Drafts(), 0
    for _ in range(1000):
        length = drafts.length()
        tried += length > 0
        drafts.took(0.01 * (1 + length), length, 0)
    assert 0 < tried < 60
    tried = 0
    for _ in range(300):  # and come back when they do
        length = drafts.length()
        tried += length
        drafts.took(0.011, length, length)
    assert tried > 300


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Drafts of every length, whatever they cost. Gives the lengths, and how many of each were right."""
    seen: list[tuple[int, int]] = []
    choose = random.Random(0)
    monkeypatch.setattr(Drafts, "length", lambda self: choose.randint(0, MOST))
    monkeypatch.setattr(Drafts, "took", lambda self, seconds, draft, right: seen.append((draft, right)))
    yield seen


@pytest.fixture(scope="module")
def ending() -> Program:
    """With an end token that it may choose."""
    return compiled("cpu-int8", lower_for_cpu, byte_tokenizer(), context=320)


def plain(session: Session, *arguments: Any) -> list[int]:
    """What a session gives without drafts."""
    session.speculates = False
    return list(session.complete(*arguments))


def test_two_hundred_prompts_give_the_same_tokens(ending: Program, eager: list[tuple[int, int]]) -> None:
    session, alone = ending.session(), ending.session()
    choose = random.Random(1)
    for number in range(200):
        part = [choose.randrange(1, 64) for _ in range(choose.randint(1, 6))]
        prompt = (part * 4)[: choose.randint(1, 20)]
        most = choose.randint(1, 40)
        sampling = SAMPLINGS[number % len(SAMPLINGS)]
        expected = plain(alone, prompt, most, sampling, [part[0]])
        assert list(session.complete(prompt, most, sampling, [part[0]])) == expected
        same_cache(session, ending)
    lengths = {draft for draft, _ in eager}
    assert lengths == set(range(MOST + 1))
    assert {right for _, right in eager} >= {0, 1, 2}
    assert any(0 < right < draft for draft, right in eager)


def test_a_full_context_is_filled(ending: Program, eager: list[tuple[int, int]]) -> None:
    session, alone = ending.session(), ending.session()
    prompt = [5, 6, 7, 8] * ((session.room - 40) // 4)
    most = session.room - len(prompt) + 1
    sampling = Sampling(temperature=0.3, seed=1)
    assert list(session.complete(prompt, most, sampling)) == plain(alone, prompt, most, sampling)
    assert any(draft for draft, _ in eager)


@pytest.mark.parametrize("taken", range(1, 12))
def test_a_turn_that_is_left_leaves_nothing(
    ending: Program, eager: list[tuple[int, int]], taken: int
) -> None:
    """However many tokens were chosen ahead: what is saved, copied or goes on is as without drafts."""
    prompt = [9, 10, 11, 12] * 6
    whole = list(ending.session().complete(prompt, 16))
    session = ending.session()
    tokens = session.complete(prompt, 16)
    given = [next(tokens) for _ in range(taken)]
    assert given == whole[:taken] and session.tokens == prompt + given
    copy = session.fork()
    same_cache(copy, ending)
    assert list(tokens) == whole[taken:]  # the copy took nothing away
    assert list(copy.generate_tokens([3, 4], 4)) == list(
        ending.session().complete(prompt + given + [3, 4], 4)
    )
    other = session.complete(prompt, 16)
    for _ in range(taken):
        next(other)
    session.rewind(len(prompt) + taken - 1)
    same_cache(session, ending)
    assert list(session.generate_tokens([3], 4)) == list(
        ending.session().complete([*prompt, *given[:-1], 3], 4)
    )


def test_drafts_save_steps(ending: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that repeats itself takes fewer steps than it has tokens."""
    monkeypatch.setattr(Drafts, "length", lambda self: MOST)
    session = ending.session()
    calls = []
    forward = session.engine.forward

    def counted(ids: np.ndarray, rows: int | None = None) -> np.ndarray:
        calls.append(len(ids))
        return forward(ids, rows)

    monkeypatch.setattr(session.engine, "forward", counted)
    tokens = list(session.complete([7, 8, 9, 10] * 8, 200))
    assert len(calls) < len(tokens) * 2 // 3
    assert max(calls[1:]) == MOST + 1
