"""Golden tests: each `.mlir` here is run through its `// PASSES:` line and checked by filecheck.

A weight whose hash is "0" gets random values from its name, so that inputs stay readable.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mqc.analysis.context import CompilerContext
from mqc.analysis.ir_text import parse_module, print_module
from mqc.analysis.random_weights import fill_random
from mqc.calibration import Calibration
from mqc.compiler.pass_manager import Pipeline

HERE = Path(__file__).parent


@pytest.mark.parametrize("path", sorted(HERE.rglob("*.mlir")), ids=lambda p: p.stem)
def test_golden(path: Path) -> None:
    text = path.read_text()
    passes = next(line.split(":", 1)[1] for line in text.splitlines() if line.startswith("// PASSES:"))
    ctx = CompilerContext()
    rng = np.random.default_rng(0)
    ctx.calibration = Calibration(rng.integers(0, 16, (2, 6)))
    module = parse_module(text, str(path))
    fill_random(module, ctx.weights)
    Pipeline.parse(passes.strip()).run(ctx, module)
    check = subprocess.run(
        [sys.executable, "-m", "filecheck", str(path)],
        input=print_module(module), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert check.returncode == 0, check.stdout + check.stderr + print_module(module)


def test_every_pass_has_a_golden_test() -> None:
    from mqc.registry import pass_names

    tested = {p.stem.replace("_", "-") for p in (HERE / "passes").glob("*.mlir")}
    assert tested == set(pass_names())
