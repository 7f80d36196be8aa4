"""Threads on one program and on two get right numbers or a clear error; nothing hangs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import mqc
from mqc.backends.cpu import CpuEngine
from mqc.errors import InputError
from mqc.runtime.program import Program

PROMPTS = [list(range(3, 43)), list(range(20, 60)), [5, 1, 7]]


@pytest.mark.parametrize("same", [True, False], ids=["one program", "two programs"])
def test_logits_are_right_in_threads(saved: Path, same: bool) -> None:
    first = mqc.load(saved).configure(threads=2)
    programs = [first, first if same else mqc.load(saved).configure(threads=2)]
    want = [first.integer_logits(ids) for ids in PROMPTS]

    def work(k: int) -> bool:
        got = programs[k % 2].integer_logits(PROMPTS[k % 3])
        return np.array_equal(got, want[k % 3])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(60), timeout=120))


def test_an_engine_is_for_one_thread_at_a_time(program: Program) -> None:
    """Either the right logits, or an error that says what to do; the engine works on."""
    engine = CpuEngine(program.module, program.weights, threads=2)
    want = engine.forward(np.array(PROMPTS[2], np.int32))

    def work(_: int) -> str:
        try:
            engine.reset()
            engine.forward(np.array(PROMPTS[0], np.int32))
        except InputError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(4) as pool:
        said = set(pool.map(work, range(200), timeout=120))
    assert all(not text or "another thread" in text or "context" in text for text in said)
    engine.reset()
    assert np.array_equal(engine.forward(np.array(PROMPTS[2], np.int32)), want)
    engine.close()


def test_a_sequence_that_another_thread_cut_off_says_so(program: Program) -> None:
    tokens = program.generate_tokens(PROMPTS[2], 20)
    next(tokens)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(program.integer_logits, PROMPTS[0]).result(60)
    with pytest.raises(InputError, match="another sequence was started"):
        next(tokens)
