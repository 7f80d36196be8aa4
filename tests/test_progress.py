"""What a log file says of a command's progress."""

from __future__ import annotations

import re

import pytest

from mqc.cli.progress import lines


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def told(said: list[str]) -> list[str]:
    assert all(re.search(r", memory \d+\.\d GiB$", line) for line in said)
    return [line.rpartition(", memory")[0] for line in said]


def test_a_line_when_a_step_ends_and_every_half_minute() -> None:
    clock, said = Clock(), list[str]()
    with lines(said.append, clock) as report:
        for second, message, share in (
            (0, "a", 0.0), (2, "a", 1.0), (2, "b", 0.0), (31, "b: loss 3", 0.1), (33, "b: loss 2", 0.2),
            (62, "b: loss 2", 0.4), (63, "b: loss 1", 0.5), (64, "b: loss 1", 1.0), (64, "c", 0.0),
            (200, "c", 0.0),
        ):  # fmt: skip
            clock.now = second
            report(message, share)
        clock.now = 201
    assert told(said) == [
        "a: done in 2.0 s",
        "b: loss 2: 20% in 31 s, about 124 s left",
        "b: loss 1: 50% in 61 s, about 61 s left",
        "b: loss 1: done in 62.0 s",
        "c: 0% in 136 s",
        "c: done in 137.0 s",
    ]


def test_what_failed_is_named() -> None:
    clock, said = Clock(), list[str]()
    with pytest.raises(KeyboardInterrupt), lines(said.append, clock) as report:
        report("a", 0.25)
        clock.now = 3
        raise KeyboardInterrupt
    assert told(said) == ["a: ended at 25% after 3.0 s"]


def test_nothing_is_said_of_nothing() -> None:
    said: list[str] = []
    with lines(said.append):
        pass
    assert said == []
