"""SmolLM2 for the NPU: compiled, scheduled and run, beside the CPU program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mqc
from mqc.analysis.htp_schedule import buffers, check_schedule, lower_bound
from mqc.analysis.proofs import check_accumulators
from mqc.backends.npu.engine import NpuEngine
from mqc.data import text
from mqc.ir.module import static_functions
from mqc.ir.op import plain
from tests.end_to_end.compile_demo import NPU
from tests.end_to_end.conftest import Compiled
from tests.end_to_end.processes import command, peak_gib

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smollm2")]

CPU = 'choose-kernels{backend="cpu"},plan-memory'


@pytest.fixture(scope="module")
def folder(compiled: Compiled) -> Path:
    """A program as it is saved, from the dumps of the compilation for the CPU."""
    peak = peak_gib("tests.end_to_end.compile_demo", compiled.path.parent, "npu")
    assert 0.3 < peak < 3, f"compilation took {peak:.2f} GiB"
    return compiled.path.parent / "npu.mqc"


@pytest.fixture(scope="module")
def npu(folder: Path) -> mqc.Program:
    return mqc.load(folder)


@pytest.fixture(scope="module")
def ids(npu: mqc.Program) -> Any:
    return np.array(npu.tokenizer.encode(text("test")[:4000])[:140], np.int32)


def test_logits_equal_the_cpu_programs(compiled: Compiled, npu: mqc.Program, ids: Any) -> None:
    """The second half of the 140 tokens runs padded and token by token."""
    cpu = compiled.program()
    assert (npu.integer_logits(ids) == cpu.integer_logits(ids)).all()
    assert npu.generate("What is the capital of France?", 8, chat=True) == "The capital of France is Paris."


@pytest.mark.hexagon
def test_hvx_code_equals_the_oracle(npu: mqc.Program, ids: Any) -> None:
    """30 layers as machine code: a padded prompt and a decoded token."""
    engine = NpuEngine(npu.module, npu.weights, "qemu")
    got = np.concatenate([engine.forward(ids[:40]), engine.forward(ids[40:41])])
    engine.close()
    assert (got == npu.integer_logits(ids[:41], "oracle")).all()


def test_allocation_is_close_to_the_bound(npu: mqc.Program) -> None:
    used = check_schedule(npu.module)
    assert set(used) == {"prefill_128", "decode"}, "without a prefix there is nothing to initialize"
    for name, function in static_functions(npu.module).items():
        assert used[name] == plain(function.attributes["vtcm_peak"])
        assert used[name] <= 1.1 * lower_bound(buffers(function)), name
        assert used[name] <= 8 << 20


@pytest.mark.hexagon
def test_four_bit_weights_in_groups(compiled: Compiled, npu: mqc.Program, ids: Any) -> None:
    tail = "quantize-weights{bits=4 group=64},lower-to-int,"
    w4 = compiled.after(compiled.dump("assign-precision"), tail + NPU, "npu-int8")
    cpu = compiled.after(compiled.dump("assign-precision"), tail + CPU)
    want = cpu.integer_logits(ids[:64])
    assert (w4.integer_logits(ids[:64]) == want).all()
    assert w4.size_bytes < 0.75 * npu.size_bytes
    assert check_accumulators(w4.module, w4.weights) > 100_000
    engine = NpuEngine(w4.module, w4.weights, "qemu")
    assert (engine.forward(ids[:2]) == want[:2]).all()
    engine.close()


def test_the_folder_is_what_a_phone_needs(folder: Path) -> None:
    path = folder
    files = set(json.loads((path / "manifest.json").read_text())["files"])
    for name in (
        "README.md", "program.oplist", "program.txt", "weights.safetensors", "hvx/linear.c", "hvx/linear.o",
        "onnx/prefill_128.onnx", "onnx/decode.onnx", "onnx/decode.1.0.0.encodings",
        "onnx/decode_ctx.onnx", "onnx/decode_ctx_qnn.bin", "onnx/initial_cache.safetensors",
    ):  # fmt: skip
        assert name in files and (path / name).stat().st_size > 0, name
    assert "- nothing" in (path / "README.md").read_text()


def test_bench_is_labelled_as_modelled(folder: Path) -> None:
    data = command("bench", folder)
    assert "modelled" in json.dumps(data)
