"""Processes that share out the integers of a model: the result of one, in half of its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CASES: list[dict[str, Any]] = [
    {"architecture": "llama", "method": "end-to-end"},
    {"architecture": "gpt2", "method": "end-to-end", "memory": 0},
    {"architecture": "opt", "method": "layer-wise"},
]
LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 24}
#: Learns integers in each case; writes how they changed, and how much the memory of the process grew.
WORKER = """
import gc, json, os, sys, threading, time
from pathlib import Path
import numpy as np
import torch._dynamo  # FSDP2 imports it at first use, whatever the size of the model
from mqc.cli.progress import memory
from mqc.compiler.pass_manager import Pipeline
from mqc.ir.module import mqc_ops
from mqc.ir.spill import return_freed_memory
from mqc.passes.learn_ranges import LearnRanges
from tests.compiled import imported
from tests.models import tiny_model

PASSES = "fold-norm,observe-ranges{method=minmax},assign-precision,"
PASSES += "quantize-weights{bits=4 rounding=nearest keep_reference=true}"

def run(case):
    ctx, module = imported(tiny_model(case.pop("architecture"), **case.pop("sizes", {})))
    Pipeline.parse(PASSES).run(ctx, module)
    linears = [op for op in mqc_ops(module) if op.name == "llm.linear"]
    before = [ctx.weights[op.weight].astype(int) for op in linears]
    gc.collect()
    return_freed_memory()
    start = most = memory()
    done = threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.005):
            most = max(most, memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    rates = {"lr_rounding": 0.05, "lr_weights": 0.001, "lr_biases": 0.001}
    LearnRanges(**{"steps": 6, "samples": 4, "length": 32, "batch": 4, **rates, **case}).run(ctx, module)
    done.set()
    watcher.join()
    changes = [ctx.weights[op.weight] - b for op, b in zip(linears, before)]
    return most - start, np.concatenate([c.ravel() for c in changes])

folder, cases = sys.argv[1:]
for number, case in enumerate(json.loads(cases)):
    grown, changes = run(case)
    np.savez(Path(folder, f"{os.environ.get('RANK', 'alone')}-{number}"), memory=grown, changes=changes)
"""


def learned(folder: Path, cases: list[dict[str, Any]], processes: int) -> list[list[dict[str, Any]]]:
    """What each process wrote, case by case."""
    script = folder / "worker.py"
    script.write_text(WORKER)
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    run = subprocess.run(
        [sys.executable, *(launch if processes > 1 else ()), script, folder, json.dumps(cases)],
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    names = range(processes) if processes > 1 else ["alone"]
    return [[dict(np.load(folder / f"{name}-{i}.npz")) for i in range(len(cases))] for name in names]


@pytest.mark.slow
def test_two_processes_learn_the_integers_of_one(tmp_path: Path) -> None:
    """But for sums of gradients in another order, which decide whether a few integers are others."""
    two = learned(tmp_path, CASES, processes=2)
    (alone,) = learned(tmp_path, CASES, processes=1)
    for one, first, second in zip(alone, *two, strict=True):
        np.testing.assert_array_equal(first["changes"], second["changes"])
        changed = np.count_nonzero(one["changes"])
        assert changed > one["changes"].size / 40
        assert np.count_nonzero(one["changes"] != first["changes"]) < changed / 5


@pytest.mark.slow
def test_two_processes_have_half_of_the_memory_each(tmp_path: Path) -> None:
    """Of what learning takes beside the process that has compiled so far: 60 % at most."""
    cases: list[dict[str, Any]] = [{"architecture": "llama", "sizes": LARGE, "memory": 0, "steps": 1}]
    ((alone,),) = learned(tmp_path, cases, processes=1)
    for (made,) in learned(tmp_path, cases, processes=2):
        assert made["memory"] <= 0.6 * alone["memory"]
