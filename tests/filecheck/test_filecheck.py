"""Golden tests: each `.mlir` here is run through its `// PASSES:` line and checked by filecheck.

A weight whose hash is "0" gets random values from its name, so that inputs stay readable.
"""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from xdsl.parser import Parser

from mqc.calibration import Calibration
from mqc.dialects.core import WeightAttr
from mqc.ir import CompilerContext, mqc_ops
from mqc.ir_text import print_module
from mqc.pass_manager import Pipeline
from mqc.weight_store import numpy_dtype

HERE = Path(__file__).parent


def fill_weights(ctx: CompilerContext, text: str):  # type: ignore[no-untyped-def]
    module = Parser(ctx, text).parse_module()
    for op in mqc_ops(module):
        for name, ref in op.properties.items():
            if isinstance(ref, WeightAttr) and ref.hash.data == "0":
                rng = np.random.default_rng(zlib.crc32(ref.key.data.encode()))
                dtype = numpy_dtype(ref.type.get_element_type())
                values = rng.normal(size=ref.shape)
                if dtype.kind in "iu":
                    values = rng.integers(1, 100, ref.shape)
                op.properties[name] = ctx.weights.add(ref.key.data, values.astype(dtype))
    return module


@pytest.mark.parametrize("path", sorted(HERE.rglob("*.mlir")), ids=lambda p: p.stem)
def test_golden(path: Path) -> None:
    text = path.read_text()
    passes = next(line.split(":", 1)[1] for line in text.splitlines() if line.startswith("// PASSES:"))
    ctx = CompilerContext()
    rng = np.random.default_rng(0)
    ctx.calibration = Calibration(rng.integers(0, 16, (2, 6)))
    module = fill_weights(ctx, text)
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
