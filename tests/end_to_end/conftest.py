"""SmolLM2 compiled for the CPU once, for all tests that look at the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp

import mqc
from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import evaluate
from mqc.compiler.instruments import Instrument
from mqc.ir.weight_store import content_hash

IDS = np.array([1, 504, 3575, 282, 4649, 314, 260, 28, 9690, 4093, 198, 2])


class LogitsAfterEachPass(Instrument):
    """Hashes of the logits of `IDS` at each point of the compilation."""

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}

    def after(self, number: int, p: mqc.Pass, ctx: CompilerContext, module: ModuleOp, modified: bool) -> None:
        self.hashes[f"{number:02d}-{p.name}"] = content_hash(evaluate(module, ctx.weights, IDS))


@dataclass(frozen=True)
class Compiled:
    """A program on disk, the dumps of its compilation, and hashes of the logits of `IDS` after each pass."""

    path: Path
    dumps: Path
    logits: dict[str, str]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("smollm2")
    watching = LogitsAfterEachPass()
    program = mqc.compile("demo", dump_ir=folder / "ir", instruments=[watching])
    program.save(folder / "cpu.mqc")
    return Compiled(folder / "cpu.mqc", folder / "ir", watching.hashes)
