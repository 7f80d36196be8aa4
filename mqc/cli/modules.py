"""Reading what arguments of the command line stand for: modules, token ids."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mqc.cli.common import standard_input
from mqc.errors import InputError, IRError

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

    from mqc.arrays import Array
    from mqc.ir.weight_store import WeightStore


def read_module(path: Path, random_weights: bool = False) -> tuple[ModuleOp, WeightStore]:
    """A module and its weights: of a program, a dump, a folder of dumps (its last), or of `-`.

    `-` reads the text from standard input, and weights from this folder.

    Args:
        random_weights: give weights that no file holds random values by name.

    Raises `IRError` or `ArtifactError` for what does not verify, is missing, or was altered.
    """
    from mqc.analysis.ir_text import parse_file, parse_module
    from mqc.analysis.random_weights import fill_random
    from mqc.compiler.dump import dump_files, folder_weights
    from mqc.ir.module import weight_refs
    from mqc.runtime.program import Program

    if is_program(path):
        program = Program.load(path)
        return program.module, program.weights
    if os.path.isdir(path):
        path = dump_files(path)[-1]
    module = parse_module(standard_input(IRError), "-") if str(path) == "-" else parse_file(path)
    weights = folder_weights(path.parent)
    if random_weights:
        fill_random(module, weights)
    for ref in weight_refs(module):
        if ref not in weights:
            raise IRError(
                f"{path}: weight {ref.key.data} is in no .safetensors file beside it; "
                "mqc opt, ir run and ir reduce take --random-weights"
            )
        weights[ref]
    return module, weights


def is_program(path: Path) -> bool:
    """Whether a path is the folder of a compiled program."""
    return os.path.isfile(path / "manifest.json")


def folder_of(path: Path) -> Path:
    """The folder that holds what belongs to a module: a folder itself, or that of a file."""
    return path if os.path.isdir(path) else path.parent


def token_ids(text: str) -> Array:
    """Token ids `[tokens]` separated by commas."""
    import numpy as np

    try:
        return np.array([int(part) for part in text.split(",")])
    except ValueError as error:
        raise InputError(f"--ids takes integers separated by commas, got {text!r}") from error
