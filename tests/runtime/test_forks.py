"""A forked process has an engine's memory and none of its threads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import numpy as np

from mqc.backends.cpu import CpuEngine
from mqc.errors import MqcError
from mqc.runtime.program import Program

PROMPT = list(range(3, 43))


def in_a_fork(work: Callable[[], object]) -> str:
    """What `work` gives in a forked process, as text, or its error; `hangs` if nothing comes in a minute."""

    def send() -> None:
        try:
            told.send(str(work()))
        except MqcError as error:
            told.send(str(error))

    context = multiprocessing.get_context("fork")
    hear, told = context.Pipe(duplex=False)
    child = context.Process(target=send)
    child.start()
    told.close()
    try:
        return str(hear.recv()) if hear.poll(60) else "hangs"
    except EOFError:
        return "died"
    finally:
        child.kill()
        child.join()


def test_a_fork_has_no_threads_of_an_engine(program: Program) -> None:
    """Closed and collected there it ends nothing here, and nobody waits for threads that are not there."""
    engine = CpuEngine(program.module, program.weights, threads=2)
    ids = np.array(PROMPT, np.int32)
    want = engine.forward(ids)
    assert in_a_fork(engine.close) == "None"
    assert in_a_fork(engine.__del__) == "None"
    assert "open one in each process" in in_a_fork(engine.reset)
    assert "open one in each process" in in_a_fork(lambda: engine.forward(ids))
    engine.reset()
    assert np.array_equal(engine.forward(ids), want)
    engine.close()


def test_a_program_runs_on_in_a_fork(program: Program) -> None:
    want = program.integer_logits(PROMPT)
    assert in_a_fork(lambda: np.array_equal(program.integer_logits(PROMPT), want)) == "True"
    assert np.array_equal(program.integer_logits(PROMPT), want)
