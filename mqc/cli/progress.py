"""How far a command is, on stderr: bars on a terminal, lines in a file or a pipe."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mqc.cli.text import printable

#: Called with what is being done, a remark behind a colon, and the share of it that is done.
Report = Callable[[str, float], None]

#: Seconds between two lines on the same step.
_EVERY = 30.0


def memory(process: int | str = "self") -> int:
    """Bytes of a process that the system cannot take back: RssAnon. Mapped weights do not count. Where a
    system does not tell, the peak of all that is resident of this process."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return sum(1024 * int(kb) for kb in re.findall(r"RssAnon:\s+(\d+) kB", status))


@contextmanager
def bars(console: Console) -> Iterator[Report]:
    """A bar for each step."""
    text = TextColumn("{task.description:<24}", markup=False)
    with Progress(text, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=console) as display:
        tasks: dict[str, Any] = {}

        def report(message: str, share: float) -> None:
            step = message.partition(":")[0]
            if step not in tasks:
                tasks[step] = display.add_task(printable(step), total=1.0)
            display.update(tasks[step], completed=share, description=printable(message))

        yield report


@contextmanager
def lines(write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """A line when a step ends, and every 30 s in between: share done, time left, and memory."""
    begun = told = clock()
    step, message, share = "", "", 0.0

    def line(state: str) -> None:
        write(f"{message}: {state}, memory {memory() / 2**30:.1f} GiB")

    def end() -> None:
        if step:
            line(f"done in {clock() - begun:.1f} s")

    def report(new: str, done: float) -> None:
        nonlocal begun, told, step, message, share
        now = clock()
        if new.partition(":")[0] != step:
            end()
            step, begun, told = new.partition(":")[0], now, now
        message, share = new, done
        if now - told >= _EVERY:
            told, passed = now, now - begun
            left = f", about {passed / share - passed:.0f} s left" if share > 0 else ""
            line(f"{share:.0%} in {passed:.0f} s{left}")

    try:
        yield report
    except BaseException:
        if step:
            line(f"ended at {share:.0%} after {clock() - begun:.1f} s")
        raise
    end()
