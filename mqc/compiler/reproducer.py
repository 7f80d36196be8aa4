"""Reproducers: the module that a pass failed on, and the command that makes it fail again."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.compiler.dump import CALIBRATION, write_module
from mqc.errors import StorageError
from mqc.pass_base import Pass

#: Name of the file.
REPRODUCER = "reproducer.mlir"


def reproducer_folder() -> Path:
    """The folder in the temporary one for what this process writes."""
    return Path(tempfile.gettempdir()) / f"mqc-reproducer-{os.getpid()}"


def write_reproducer(
    folder: Path, module: ModuleOp, ctx: CompilerContext, failed: Pass, verify_each: bool
) -> str:
    """Write `reproducer.mlir` with its weights and calibration windows; return the command to run.

    Raises `StorageError`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create {folder} for a reproducer: {error}") from error
    path = folder / REPRODUCER
    write_module(path, module, ctx.weights)
    if ctx.calibration is not None:
        ctx.calibration.save(folder / CALIBRATION)
    words = ["mqc", "opt", str(path), "--passes", str(failed.spec())]
    return shlex.join([*words, "--verify-each"] if verify_each else words)
