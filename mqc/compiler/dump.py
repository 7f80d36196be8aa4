"""Dumps: the IR after each pass, with the weights it refers to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.ir_text import parse_file, print_module
from mqc.compiler.instruments import Instrument
from mqc.errors import IRError, StorageError
from mqc.files import replacing, write_text
from mqc.ir.module import weight_refs
from mqc.ir.op import WeightAttr
from mqc.ir.weight_store import WeightStore
from mqc.pass_base import Pass

#: Files of a dump folder beside the modules and the tokenizer's: windows, the recipe.
CALIBRATION = "calibration.safetensors"
RECIPE = "recipe.toml"


class Dump(Instrument):
    """Writes `NN-pass-name.mlir` after each pass, and new weights in `NN-pass-name.safetensors`.

    A tensor is written once, with the first module that refers to it. `start` writes what the
    pipeline was given as `00-import.mlir`, and what tools need that read dumps: the calibration
    windows and the recipe.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: set[str] = set()
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot create the dump folder {folder}: {error}") from error

    def start(self, ctx: CompilerContext, module: ModuleOp, texts: Mapping[str, str]) -> None:
        """Write the imported module, the calibration windows, and `texts` by file name."""
        self.write("00-import", ctx, module)
        if ctx.calibration is not None:
            ctx.calibration.save(self.folder / CALIBRATION)
        for name, text in texts.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            write_text(self.folder / name, text)

    def after(self, number: int, p: Pass, ctx: CompilerContext, module: ModuleOp, modified: bool) -> None:
        self.write(f"{number:02d}-{p.name}", ctx, module)

    def write(self, stem: str, ctx: CompilerContext, module: ModuleOp) -> None:
        """Write a module under a name. Raises `StorageError`."""
        refs = {str(ref): ref for ref in weight_refs(module) if str(ref) not in self._written}
        write_module(self.folder / f"{stem}.mlir", module, ctx.weights, refs.values())
        self._written.update(refs)


def write_module(
    path: Path,
    module: ModuleOp,
    weights: WeightStore,
    refs: Iterable[WeightAttr] | None = None,
    generic: bool = False,
) -> None:
    """Write IR text, and beside it a `.safetensors` file of the tensors `refs`, all by default.

    generic: as for `print_module`. Each file appears whole or not at all. Raises `StorageError`.
    """
    wanted = list(weight_refs(module) if refs is None else refs)
    if wanted:
        with replacing(path.with_suffix(".safetensors")) as partial:
            weights.save(partial, wanted)
    write_text(path, print_module(module, generic))


def read_dump(path: Path) -> tuple[ModuleOp, WeightStore]:
    """Module and weights of one dump, the weights memory-mapped from the files of its folder.

    Raises `IRError` if the text does not parse or verify, `ArtifactError` if a weight is missing.
    """
    module = parse_file(path)
    weights = folder_weights(path.parent)
    for ref in weight_refs(module):
        weights[ref]
    return module, weights


def folder_weights(folder: Path) -> WeightStore:
    """The tensors of all weight files of a folder, memory-mapped."""
    weights = WeightStore()
    for file in sorted(folder.glob("*.safetensors")):
        if file.name != CALIBRATION:
            weights.update(WeightStore.load(file))
    return weights


def dump_files(folder: Path) -> list[Path]:
    """The dumps of a folder, in the order of the passes. Raises `IRError` if there are none."""
    files = sorted(folder.glob("[0-9][0-9]-*.mlir"))
    if not files:
        raise IRError(f"{folder} holds no dumps (NN-pass-name.mlir); write them with --dump-ir")
    return files
