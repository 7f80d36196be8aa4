"""SmolLM2 compiled once, for all tests that look at the result."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from xdsl.dialects.builtin import ModuleOp

import mqc
from mqc.analysis.context import CompilerContext
from mqc.calibration import Calibration
from mqc.compiler.dump import CALIBRATION, read_dump
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import Recipe
from mqc.ir.weight_store import WeightStore
from tests.end_to_end.processes import command, peak_gib

#: Windows of 512 tokens of the test text on which programs and the float model are compared.
WINDOWS = 10


@dataclass(frozen=True)
class Compiled:
    """A program on disk, the dumps of its compilation, and hashes of the logits of `IDS` after each pass.

    peak_gib: the most memory that the compilation had.
    """

    path: Path
    dumps: Path
    logits: dict[str, str]
    peak_gib: float

    def program(self) -> mqc.Program:
        return mqc.load(self.path)

    def dump(self, name: str) -> Path:
        """The dump of a pass."""
        return next(self.dumps.glob(f"*-{name}.mlir"))

    def after(self, dump: Path, passes: str, target: str = "cpu-int8") -> mqc.Program:
        """A program from a dump, taken through other passes."""
        module, weights = read_dump(dump)
        ctx = CompilerContext(weights, Calibration.load(self.dumps / CALIBRATION))
        Pipeline.parse(passes).run(ctx, module)
        return self.with_module(module, ctx.weights, target)

    def with_module(self, module: ModuleOp, weights: WeightStore, target: str = "cpu-int8") -> mqc.Program:
        like = self.program()
        return mqc.Program(module, weights, like.tokenizer, {**like.manifest, "target": target})


def passes_after(name: str, recipe: Recipe) -> str:
    """The pipeline of a recipe from behind a pass on."""
    steps = list(recipe.pipeline("cpu"))
    return str(Pipeline(tuple(steps[[p.name for p in steps].index(name) + 1 :])))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Compiled by the process that comes first; the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder, peak = root / "smollm2", root / "smollm2" / "peak"
    with FileLock(root / "smollm2.lock"):
        if not peak.exists():
            folder.mkdir(exist_ok=True)
            peak.write_text(str(peak_gib("tests.end_to_end.compile_demo", folder)))
    logits = json.loads((folder / "logits.json").read_text())
    return Compiled(folder / "cpu.mqc", folder / "ir", logits, float(peak.read_text()))


def beside_float(program: mqc.Program, folder: Path, windows: int) -> dict[str, Any]:
    """What `mqc eval` says of a program and the float model.

    Another order of summation, as other machines have, moves `int_kl` by a few percent of itself. Of
    `int_ratio` it moves the excess over 1 by half, where that is small.
    """
    program.save(folder)
    return command("eval", folder, "--windows", windows)
