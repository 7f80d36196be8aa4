"""The command line as a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def command(*arguments: object) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "mqc", *map(str, arguments), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def compile_demo(output: Path, *options: object) -> float:
    """`mqc compile demo`; the most memory it had in GiB, to half a second before its end.

    `ru_maxrss` of a child would include what this process had when it was forked.
    """
    compiling = subprocess.Popen(
        [sys.executable, "-m", "mqc", "compile", "demo", "-o", output, *map(str, options)]
    )
    peak = 0
    while compiling.poll() is None:
        status = Path(f"/proc/{compiling.pid}/status").read_text()
        peak = max([peak, *map(int, re.findall(r"VmHWM:\s+(\d+) kB", status))])
        time.sleep(0.5)
    assert compiling.returncode == 0
    return peak / 2**20
