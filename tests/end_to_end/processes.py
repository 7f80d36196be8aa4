"""The command line, and other programs, as processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from mqc.cli.progress import memory


def command(*arguments: object) -> dict[str, Any]:
    """What an `mqc` command prints with `--json`."""
    run = subprocess.run(
        [sys.executable, "-m", "mqc", *map(str, arguments), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def peak_gib(module: str, *arguments: object) -> float:
    """Run `python -m module`; its largest RssAnon, looked at every 50 ms: memory but for mapped files, which
    the system can take back."""
    running = subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)])
    peak = 0
    while running.poll() is None:
        peak = max(peak, memory(running.pid))
        time.sleep(0.05)
    assert running.returncode == 0
    return peak / 2**30
