"""Compile SmolLM2 in a process of its own: `python -m tests.end_to_end.compile_demo FOLDER [npu]`.

Writes `cpu.mqc`, its dumps `ir` and `logits.json`; with `npu` `npu.mqc`, from these dumps.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from xdsl.dialects.builtin import ModuleOp

import mqc
from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import evaluate
from mqc.compiler.dump import read_dump
from mqc.compiler.instruments import Instrument
from mqc.compiler.pass_manager import Pipeline
from mqc.ir.weight_store import content_hash

IDS = np.array([1, 504, 3575, 282, 4649, 314, 260, 28, 9690, 4093, 198, 2])
NPU = 'choose-kernels{backend="npu"},lower-to-htp,tile-htp,allocate-vtcm'


class LogitsAfterEachPass(Instrument):
    """Hashes of the logits of `IDS` at each point of the compilation."""

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}

    def after(self, number: int, p: mqc.Pass, ctx: CompilerContext, module: ModuleOp, modified: bool) -> None:
        self.hashes[f"{number:02d}-{p.name}"] = content_hash(evaluate(module, ctx.weights, IDS))


def for_cpu(folder: Path) -> None:
    watching = LogitsAfterEachPass()
    mqc.compile("demo", dump_ir=folder / "ir", instruments=[watching]).save(folder / "cpu.mqc")
    (folder / "logits.json").write_text(json.dumps(watching.hashes))


def for_npu(folder: Path) -> None:
    module, weights = read_dump(next((folder / "ir").glob("*-lower-to-int.mlir")))
    ctx = CompilerContext(weights)
    Pipeline.parse(NPU).run(ctx, module)
    cpu = mqc.load(folder / "cpu.mqc")
    manifest = {**cpu.manifest, "target": "npu-int8"}
    mqc.Program(module, ctx.weights, cpu.tokenizer, manifest).save(folder / "npu.mqc")


if __name__ == "__main__":
    (for_npu if "npu" in sys.argv else for_cpu)(Path(sys.argv[1]))
