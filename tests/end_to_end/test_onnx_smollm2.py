"""SmolLM2 through ONNX Runtime, OpenVINO and Qualcomm's HTP back end, beside the CPU program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mqc
from mqc.backends.onnx.session import exact_products
from mqc.data import text
from mqc.runtime.perplexity import perplexity, text_windows
from tests.end_to_end.conftest import WINDOWS, Compiled
from tests.models import sqnr

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smollm2")]

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def programs(compiled: Compiled) -> tuple[mqc.Program, mqc.Program]:
    """The CPU program, and the ONNX program from the same `int` module."""
    return compiled.program(), compiled.after(
        compiled.dump("lower-to-int"), 'choose-kernels{backend="onnx"}', "onnx-int8"
    )


@pytest.fixture(scope="module")
def cpu_perplexity(programs: tuple[mqc.Program, mqc.Program]) -> float:
    return programs[0].perplexity(text("test"), WINDOWS)


def test_strict_form_equals_the_cpu_program(programs: tuple[mqc.Program, mqc.Program]) -> None:
    cpu, onnx = programs
    onnx.configure(style="integer")
    for window in text_windows(cpu.tokenizer.encode(text("test")), 512, 2):
        ids = window.tolist()
        assert (onnx.integer_logits(ids) == cpu.integer_logits(ids)).all()
    assert onnx.generate(QUESTION, 20, chat=True) == cpu.generate(QUESTION, 20, chat=True)


def test_qdq_form(programs: tuple[mqc.Program, mqc.Program], cpu_perplexity: float) -> None:
    """Near the CPU program, not equal to it: it rounds otherwise. So does what it says word by word."""
    cpu, onnx = programs
    onnx.configure(style="qdq")
    assert onnx.perplexity(text("test"), WINDOWS) == pytest.approx(cpu_perplexity, rel=0.005)
    ids = np.array(onnx.tokenizer.encode(text("test"))[:140], np.int32)
    engine = onnx.engine()
    engine.reset()
    got = np.concatenate([engine.forward(part) for part in np.split(ids, range(100, 140))])
    want = cpu.integer_logits(ids)
    assert sqnr(got[:100], want[:100]) > 20
    assert sqnr(got[100:], want[100:]) > 20


def test_openvino(programs: tuple[mqc.Program, mqc.Program], cpu_perplexity: float, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    from safetensors.numpy import load_file

    onnx = programs[1]
    onnx.export(tmp_path / "files")
    # On CPUs with bfloat16 OpenVINO would keep the float tensors in that.
    exact: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if exact_products():
        exact["LP_TRANSFORMS_MODE"] = False  # its u8 × s8 products would saturate
    model = openvino.Core().compile_model(tmp_path / "files" / "model.onnx", "CPU", exact)
    cache, start = load_file(tmp_path / "files" / "initial_cache.safetensors"), len(onnx.prefix)

    def logits(ids: Any) -> Any:
        rows = np.arange(len(ids))
        feeds = {"input_ids": ids.astype(np.int64), "position_ids": rows + start, "logit_rows": rows}
        return model({**feeds, **cache})["logits"]

    windows = text_windows(onnx.tokenizer.encode(text("test")), 512, WINDOWS)
    assert perplexity(logits, windows) == pytest.approx(cpu_perplexity, rel=0.01)


def test_the_whole_model_on_htp(programs: tuple[mqc.Program, mqc.Program]) -> None:
    """All nodes run on HTP (a fall back to the CPU is an error), as near to the CPU program as on the CPU.

    The prompt takes 32 tokens at once and five one by one. 23.0 dB were measured, and 23.0 dB on the CPU.
    """
    pytest.importorskip("onnxruntime_qnn")
    cpu, onnx = programs
    ids = cpu.tokenizer.chat(QUESTION)
    assert len(ids) == 37
    want = cpu.logits(ids)
    onnx.configure(style="qdq")
    on_cpu = sqnr(onnx.logits(ids), want)
    onnx.configure(style="qdq", runtime="npu", tokens=(32, 1), context=128, provider="QNNExecutionProvider")
    assert sqnr(onnx.logits(ids), want) > on_cpu - 3 > 15
