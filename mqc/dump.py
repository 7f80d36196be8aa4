"""Dumps: the IR after each pass, with the weights it refers to."""

from __future__ import annotations

import os
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp

from mqc.errors import IRError, StorageError
from mqc.ir import CompilerContext, weight_refs
from mqc.ir_text import parse_module, print_module, read_text
from mqc.pass_base import Pass
from mqc.weight_store import WeightStore


class Dump:
    """Writes `NN-pass-name.mlir` after each pass, and new weights in `NN-pass-name.safetensors`.

    A tensor is written once, with the first module that refers to it.
    """

    def __init__(self, folder: Path, ctx: CompilerContext) -> None:
        self.folder, self.ctx = folder, ctx
        self._written: set[str] = set()
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot create the dump folder {folder}: {error}") from error

    def write(self, stem: str, module: ModuleOp) -> None:
        """Write a module under a name. Raises `StorageError`."""
        refs = {str(ref): ref for ref in weight_refs(module) if str(ref) not in self._written}
        try:
            (self.folder / f"{stem}.mlir").write_text(print_module(module), encoding="utf-8")
            if refs:
                self.ctx.weights.save(self.folder / f"{stem}.safetensors", refs.values())
        except OSError as error:
            raise StorageError(f"cannot write the dump {self.folder / stem}: {error}") from error
        self._written.update(refs)

    def after(self, number: int, p: Pass, module: ModuleOp) -> None:
        """Callback for `Pipeline.run`."""
        self.write(f"{number:02d}-{p.name}", module)


def read_dump(path: Path) -> tuple[ModuleOp, WeightStore]:
    """Module and weights of one dump, the weights memory-mapped from the files of its folder.

    Raises `IRError` if the text does not parse or verify, `ArtifactError` if a weight is missing.
    """
    module = parse_module(read_text(path), str(path))
    files = sorted(path.parent.glob("*.safetensors"))
    if not files:
        raise IRError(f"{path.parent} holds no weights (*.safetensors) for {path.name}")
    weights = WeightStore()
    for file in files:
        weights.update(WeightStore.load(file))
    for ref in weight_refs(module):
        weights[ref]
    return module, weights
