"""An exported program as an app has it: how fast it opens, tokenizes and generates.

    python benchmarks/c_library.py PROGRAM

Builds the shared library that `mqc export` writes, in a temporary folder, with CMake. The peers, in the same
run, are the `tokenizers` library, on one thread, and the engine that Python uses. Prints a Markdown table;
medians of five.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from ctypes import byref, c_int32, c_size_t, c_void_p
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import mqc
from mqc.backend import thread_count
from mqc.data import text as packaged_text

PROMPT, NEW, RUNS = 512, 64, 5


class Options(ctypes.Structure):
    """`mqc_model_options`."""

    _fields_ = [("size", c_size_t), ("flags", ctypes.c_uint), ("isa", c_void_p), ("allocator", c_void_p)]


def build(folder: Path, project: Path) -> ctypes.CDLL:
    made = folder / "build"
    for command in (
        ["cmake", "-S", project, "-B", made, "-DBUILD_SHARED_LIBS=ON"],
        ["cmake", "--build", made, "--parallel", "2"],
    ):
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    library = ctypes.CDLL(str(made / "libmqc.so"))
    library.mqc_model_tokenizer.restype = c_void_p
    return library


def median(work: Callable[[], Any]) -> float:
    """Seconds."""
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main(path: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    program = mqc.load(path)
    with tempfile.TemporaryDirectory() as parent:
        project = Path(parent) / "project"
        program.export(project)
        library = build(Path(parent), project)
        where = str(project / "model").encode()
        rows = [*opening(library, where)]
        model = c_void_p()
        done(library.mqc_model_open(where, None, byref(model), None, c_size_t(0)))
        rows += [tokenizing(library, model, program), *generating(library, model, program)]
    print("| | C library | peer |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def done(status: int) -> None:
    assert status == 0, f"status {status}"


def opening(library: ctypes.CDLL, where: bytes) -> list[tuple[str, str, str]]:
    def once(flags: int) -> None:
        model, options = c_void_p(), Options(ctypes.sizeof(Options), flags, None, None)
        done(library.mqc_model_open(where, byref(options), byref(model), None, c_size_t(0)))
        done(library.mqc_model_close(model))

    hashed, skipped = median(partial(once, 0)), median(partial(once, 1))
    return [("open, all hashed", f"{hashed:.3f} s", ""), ("open, MQC_SKIP_HASH", f"{skipped:.3f} s", "")]


def tokenizing(library: ctypes.CDLL, model: c_void_p, program: Any) -> tuple[str, str, str]:
    data = packaged_text("test").encode()
    tokenizer, count = c_void_p(library.mqc_model_tokenizer(model)), c_size_t()
    ids = (c_int32 * len(data))()

    def encode() -> None:
        length = c_size_t(len(data))
        done(library.mqc_tokenizer_encode(tokenizer, data, length, 0, ids, length, byref(count)))

    ours, theirs = median(encode), median(lambda: program.tokenizer.encode(data.decode(), start=False))
    assert ids[: count.value] == program.tokenizer.encode(data.decode(), start=False)
    return "tokenize WikiText-2", *(f"{len(data) / seconds / 1e6:.1f} MB/s" for seconds in (ours, theirs))


def generating(library: ctypes.CDLL, model: c_void_p, program: Any) -> list[tuple[str, str, str]]:
    prompt = np.random.default_rng(0).integers(0, 1000, PROMPT).astype(np.int32)
    session, token = c_void_p(), c_int32()
    done(library.mqc_session_open(model, thread_count(None), byref(session)))
    engine = program.engine()
    found: dict[str, list[list[float]]] = {"prefill of 512": [[], []], "decode": [[], []]}

    def note(side: int, start: float, middle: float, end: float) -> None:
        found["prefill of 512"][side].append(PROMPT / (middle - start))
        found["decode"][side].append(NEW / (end - middle))

    for _ in range(RUNS):
        done(library.mqc_session_rewind(session, c_size_t(0)))
        start = time.perf_counter()
        done(library.mqc_session_prefill(session, c_void_p(prompt.ctypes.data), c_size_t(PROMPT), None, None))
        middle = time.perf_counter()
        for _ in range(NEW + 1):  # the last one that is chosen is not run
            done(library.mqc_session_next(session, byref(token)))
        note(0, start, middle, time.perf_counter())
        engine.reset()
        start = time.perf_counter()
        logits = engine.forward(prompt, rows=1)
        middle = time.perf_counter()
        for _ in range(NEW):
            logits = engine.forward(np.array([logits[-1].argmax()], np.int32), rows=1)
        note(1, start, middle, time.perf_counter())
    library.mqc_session_close(session)
    return [
        (name, *(f"{statistics.median(rates):.1f} tok/s" for rates in sides)) for name, sides in found.items()
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
