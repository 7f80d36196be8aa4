"""Commands of mqc in this process: without the seconds that a new one takes to import torch."""

from __future__ import annotations

import io
import sys
from subprocess import CompletedProcess
from typing import Any

import pytest

from mqc.cli import main


def mqc(*arguments: object, text: str | bytes = "") -> CompletedProcess[str]:
    """Run `mqc ARGUMENTS` with `text` on its standard input."""
    words = ["mqc", *map(str, arguments)]
    given = io.TextIOWrapper(io.BytesIO(text if isinstance(text, bytes) else text.encode()), "utf-8")
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    status: Any = 0
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"argv": words, "stdin": given, "stdout": out,
                            "stderr": err, "unraisablehook": sys.unraisablehook}.items():  # fmt: skip
            patch.setattr(sys, name, value)
        try:
            main()
        except SystemExit as done:
            status = done.code or 0
    return CompletedProcess(words, status, *(s.buffer.getvalue().decode() for s in (out, err)))  # type: ignore[attr-defined]
