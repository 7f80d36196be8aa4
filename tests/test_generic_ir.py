"""IR text in MLIR's generic form: read back as it was, and by upstream's mlir-opt."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from mqc.analysis.ir_text import parse_file, parse_module, print_module
from mqc.compiler.dump import write_module
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import Recipe
from tests.compiled import imported
from tests.in_process import mqc
from tests.models import tiny_model

GOLDEN = sorted((Path(__file__).parent / "filecheck").glob("*/*.mlir"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_generic_text_is_the_same_module(path: Path) -> None:
    module = parse_file(path)
    generic = print_module(module, generic=True)
    assert generic.startswith('"builtin.module"()')
    assert print_module(parse_module(generic)) == print_module(module)


@pytest.mark.mlir
@pytest.mark.parametrize("backend", ["cpu", "npu"])
def test_mlir_opt_reads_generic_text(backend: str, tmp_path: Path) -> None:
    """Of every pass, with all levels of the IR; mlir-opt prints the ops that were there."""
    ctx, module = imported(tiny_model("gemma3_text"))
    for p in Recipe(prefix=(9,)).pipeline(backend).passes:
        Pipeline([p]).run(ctx, module)
        text = print_module(module, generic=True)
        assert _ops(_mlir_opt(text)) == _ops(text), p.name
    write_module(tmp_path / "last.mlir", module, ctx.weights)
    done = mqc("opt", tmp_path / "last.mlir", "--generic", "-o", tmp_path / "generic.mlir")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "generic.mlir").read_text()
    assert written.startswith('"builtin.module"()')
    assert print_module(parse_module(written)) == print_module(parse_file(tmp_path / "last.mlir"))
    with pytest.raises(AssertionError, match=r"Dialect .* not found"):
        _mlir_opt(print_module(module))


def _mlir_opt(text: str) -> str:
    command = ["mlir-opt-19", "--allow-unregistered-dialect", "--mlir-print-op-generic"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _ops(text: str) -> Counter[str]:
    """Ops of generic text by name."""
    return Counter(re.findall(r'^ *(?:%.* = )?"([\w.]+)"\(', text, re.MULTILINE))
