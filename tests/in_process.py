"""Commands of mqc in this process: without the seconds that a new one takes to import torch."""

from __future__ import annotations

import io
import sys
from subprocess import CompletedProcess
from typing import Any

import pytest

from mqc.cli import main


def mqc(*arguments: object, text: str = "") -> CompletedProcess[str]:
    """Run `mqc ARGUMENTS` with `text` on its standard input."""
    out, err, given = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(3))
    given.write(text)
    given.seek(0)
    status: Any = 0
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"argv": ["mqc", *map(str, arguments)], "stdin": given, "stdout": out,
                            "stderr": err, "unraisablehook": sys.unraisablehook}.items():  # fmt: skip
            patch.setattr(sys, name, value)
        try:
            main()
        except SystemExit as done:
            status = done.code or 0
    return CompletedProcess(sys.argv, status, *(s.buffer.getvalue().decode() for s in (out, err)))  # type: ignore[attr-defined]
