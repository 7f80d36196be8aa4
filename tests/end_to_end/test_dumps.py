"""Dumps of the real model: replayed bit for bit, and a planted fault found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mqc.analysis.evaluation import evaluate
from mqc.analysis.ir_text import print_module
from mqc.analysis.verification import verify_fully
from mqc.compiler.dump import dump_files, read_dump, write_module
from mqc.dialects.int_ops import RequantOp
from mqc.ir.module import mqc_ops
from mqc.ir.weight_store import content_hash
from tests.end_to_end.compile_demo import IDS
from tests.end_to_end.conftest import Compiled

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smollm2")]


def test_every_dump_replays_the_compilation(compiled: Compiled) -> None:
    files = dump_files(compiled.dumps)
    assert [path.stem for path in files] == ["00-import", *compiled.logits]
    for path in files:
        module, weights = read_dump(path)
        assert print_module(module) == path.read_text()
        assert path.stat().st_size < 1_000_000
        verify_fully(module, weights)
        replayed = content_hash(evaluate(module, weights, IDS))
        assert path.stem == "00-import" or replayed == compiled.logits[path.stem]
        named = [op for op in mqc_ops(module) if op.value_name.startswith("layers.11.mlp.down_proj")]
        assert named and all(str(op.attributes["loc"]).startswith('"modeling_llama.py:') for op in named)


def test_a_planted_fault_is_named_in_one_command(compiled: Compiled, tmp_path: Path) -> None:
    module, weights = read_dump(dump_files(compiled.dumps)[-1])
    name = "layers.17.self_attn.o_proj"
    op = next(op for op in mqc_ops(module) if op.value_name == name)
    assert isinstance(op, RequantOp)
    op.properties["shift"] = weights.add(f"{name}.shift", weights[op.shift] - 1)
    write_module(tmp_path / "faulty.mlir", module, weights)
    for reference in ("06-observe-ranges", dump_files(compiled.dumps)[-1].stem):
        done = subprocess.run(
            [sys.executable, "-m", "mqc", "debug", "compare", compiled.dumps / f"{reference}.mlir",
             tmp_path / "faulty.mlir", "--json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["first_bad"] == found["worst"] == name
