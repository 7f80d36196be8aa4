"""When each op runs: measured on the CPU, modelled for the NPU, as a trace for Perfetto."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.backend import Span, Timeline
from mqc.backends.cpu.engine import CpuEngine
from mqc.backends.npu.modelled import modelled
from mqc.compiler.recipe import Recipe
from mqc.debugging.chrome_trace import chrome_trace
from mqc.errors import InputError, TargetError
from mqc.ir.module import mqc_ops
from mqc.registry import backend
from tests.compiled import imported, lower_for_cpu, quantized
from tests.in_process import mqc
from tests.models import tiny_model

Compiled = tuple[CompilerContext, ModuleOp]


@pytest.fixture(scope="module")
def on_cpu() -> Compiled:
    ctx, module = quantized(tiny_model("llama"))
    lower_for_cpu(ctx, module)
    return ctx, module


def test_a_timed_program_is_the_same_program(on_cpu: Compiled) -> None:
    ctx, module = on_cpu
    ids = np.arange(3, 20, dtype=np.int32)
    with CpuEngine(module, ctx.weights, 2, timed=True) as timed, CpuEngine(module, ctx.weights, 2) as plain:
        assert np.array_equal(timed.forward(ids), plain.forward(ids))
        marks = timed.marks()
    assert len(marks) == len(timed.ops) + 1
    assert (np.diff(marks.astype(np.int64)) >= 0).all() and marks[0] > 0


def test_every_op_of_every_call_on_the_cpu(on_cpu: Compiled) -> None:
    ctx, module = on_cpu
    (line,) = backend("cpu").timelines(module, ctx.weights, 20, 3, threads=2)
    assert line.measured and line.title.startswith("2 threads")
    calls = [span for span in line.spans if span.kind == "call"]
    assert [call.value for call in calls] == ["prefill_20", "decode", "decode", "decode"]
    run = [op.value_name for op in mqc_ops(module) if "fused_into" not in op.attributes]
    ops = [span for span in line.spans if span.unit == "ops"]
    assert [span.value for span in ops] == run * len(calls)
    assert {"int.linear", "int.attention", "int.rms_norm"} <= {span.kind for span in ops}
    for number, call in enumerate(calls):
        within = ops[number * len(run) : (number + 1) * len(run)]
        assert np.isclose(sum(span.seconds for span in within), call.seconds)
    _check_apart(line.spans)
    with pytest.raises(InputError, match=r"60 \+ 10 tokens do not fit"):
        backend("cpu").timelines(module, ctx.weights, 60, 10)


def test_an_npu_s_units_at_work() -> None:
    """In every call the DMA queue and the compute units never do two things at once, and end by its end."""
    ctx, module = imported(tiny_model("llama"))
    Recipe(prefix=(9,)).pipeline("npu").run(ctx, module)
    lines = backend("npu").timelines(module, ctx.weights, 20, 2)
    figures = modelled(module, 20, 2)
    assert [line.title for line in lines] == [chip.chip for chip in figures]
    for line, chip in zip(lines, figures, strict=True):
        assert not line.measured
        _check_apart(line.spans)
        compute = [span for span in line.spans if span.unit in ("HVX", "matrix unit", "waiting for DMA")]
        _check_apart([_computing(span) for span in compute])
        functions = [span for span in line.spans if span.kind == "function"]
        assert [f.value for f in functions][-2:] == ["decode", "decode"]
        prompt = sum(f.seconds for f in functions[:-2])
        assert np.isclose(20 / prompt, chip.prefill.tokens_per_s)
        busy = sum(span.seconds for span in compute)
        assert busy <= sum(f.seconds for f in functions) * (1 + 1e-9)
        assert {"htp.dma_load", "htp.fully_connected"} <= {span.kind for span in line.spans}


def test_the_trace_is_as_perfetto_reads_it() -> None:
    spans = [
        Span("DMA", "w", "htp.dma_load", 1e-6, 2e-6, {"bytes": 3}),
        Span("HVX", "y", "htp.add", 0, 1e-6, {}),
    ]
    found = chrome_trace([Timeline("chip", False, spans), Timeline("2 threads", True, spans[:1])])
    text = json.loads(json.dumps(found))
    complete = [event for event in text["traceEvents"] if event["ph"] == "X"]
    assert complete[0] == {
        "name": "w", "cat": "htp.dma_load", "ph": "X", "pid": 1, "tid": 1, "ts": 1.0, "dur": 2.0,
        "args": {"op": "htp.dma_load", "bytes": 3},
    }  # fmt: skip
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in text["traceEvents"]
        if event["name"].endswith("_name")
    }
    assert names == {(1, 0): "chip, modelled", (1, 1): "DMA", (1, 2): "HVX",
                     (2, 0): "2 threads, measured", (2, 1): "DMA"}  # fmt: skip


def test_by_the_command_line(saved: Path, tmp_path: Path) -> None:
    done = mqc("debug", "trace", saved, "-o", tmp_path / "t.json", "--prompt-tokens", 8, "--json")
    assert done.returncode == 0, done.stderr
    time = json.loads(done.stdout)["time"]
    assert all(row["measured"] and row["seconds"] >= 0 for row in time)
    assert {row["kind"] for row in time} >= {"prefill_8", "decode", "int.linear"}
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) > 100
    with pytest.raises(TargetError, match="has no time line"):
        backend("onnx").timelines(None, None, 1, 1)  # type: ignore[arg-type]


def _computing(span: Span) -> Span:
    return Span("compute", span.value, span.kind, span.begin, span.seconds, span.facts)


def _check_apart(spans: Sequence[Span]) -> None:
    """Spans of a unit do not overlap."""
    for unit in {span.unit for span in spans}:
        mine = sorted((span for span in spans if span.unit == unit), key=lambda span: span.begin)
        assert all(a.begin + a.seconds <= b.begin + 1e-12 for a, b in pairwise(mine)), unit
