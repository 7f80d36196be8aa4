"""Dumps of the real model: replayed bit for bit, and a planted fault found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp

import mqc
from mqc.dialects.int_ops import RequantOp
from mqc.dump import dump_files, read_dump, write_module
from mqc.evaluation import evaluate
from mqc.instruments import Instrument
from mqc.ir import CompilerContext, mqc_ops
from mqc.ir_text import print_module
from mqc.verification import verify_fully
from mqc.weight_store import content_hash

pytestmark = pytest.mark.slow

IDS = np.array([1, 504, 3575, 282, 4649, 314, 260, 28, 9690, 4093, 198, 2])


class Compilation(Instrument):
    """The logits at each point of the compilation."""

    def __init__(self) -> None:
        self.logits: dict[str, str] = {}

    def after(self, number: int, p: mqc.Pass, ctx: CompilerContext, module: ModuleOp) -> None:
        self.logits[f"{number:02d}-{p.name}"] = content_hash(evaluate(module, ctx.weights, IDS))


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("dump")
    watching = Compilation()
    mqc.compile("demo", dump_ir=folder, instruments=[watching])
    return folder, watching.logits


def test_every_dump_replays_the_compilation(dumps: tuple[Path, dict[str, str]]) -> None:
    folder, logits = dumps
    files = dump_files(folder)
    assert [path.stem for path in files] == ["00-import", *logits]
    for path in files:
        module, weights = read_dump(path)
        assert print_module(module) == path.read_text()
        assert path.stat().st_size < 1_000_000
        verify_fully(module, weights)
        replayed = content_hash(evaluate(module, weights, IDS))
        assert path.stem == "00-import" or replayed == logits[path.stem]
        named = [op for op in mqc_ops(module) if op.value_name.startswith("layers.11.mlp.down_proj")]
        assert named and all(str(op.attributes["loc"]).startswith('"modeling_llama.py:') for op in named)


def test_a_planted_fault_is_named_in_one_command(dumps: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, _ = dumps
    module, weights = read_dump(folder / "11-plan-memory.mlir")
    name = "layers.17.self_attn.o_proj"
    op = next(op for op in mqc_ops(module) if op.value_name == name)
    assert isinstance(op, RequantOp)
    op.properties["shift"] = weights.add(f"{name}.shift", weights[op.shift] - 1)
    write_module(tmp_path / "faulty.mlir", module, weights)
    for reference in ("06-observe-ranges", "11-plan-memory"):
        done = subprocess.run(
            [sys.executable, "-m", "mqc", "debug", "compare", folder / f"{reference}.mlir",
             tmp_path / "faulty.mlir", "--json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["first_bad"] == found["worst"] == name
