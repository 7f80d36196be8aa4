"""Every op of the strict form in ONNX Runtime equals the oracle, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from mqc.backends.onnx.engine import OnnxEngine
from mqc.backends.onnx.files import write
from mqc.runtime.oracle import OracleEngine
from tests.backends.op_cases import CASES, Lab, check_engine
from tests.backends.routed_cases import ROUTED_CASES
from tests.compiled import lower_for_onnx

#: ONNX element types that are no integers.
FLOATS = {
    onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16,
}  # fmt: skip

ALL_CASES = CASES | ROUTED_CASES


@pytest.mark.parametrize("case", ALL_CASES)
def test_op_equals_the_oracle(case: str) -> None:
    seen: set[int] = set()
    for seed in range(3):
        lab = Lab(seed)
        module = ALL_CASES[case](lab)
        lower_for_onnx(lab.ctx, module)
        ids = lab.rng.integers(0, 31, 33).astype(np.int32)
        want = OracleEngine(module, lab.ctx.weights).forward(ids)
        check_engine(OnnxEngine(module, lab.ctx.weights, style="integer", threads=1), ids, want)
        seen |= set(want.reshape(-1).tolist())
    assert len(seen) > 30, "everything saturates: the case says nothing"


@pytest.mark.parametrize("case", ALL_CASES)
def test_no_float_and_no_op_outside_the_standard(case: str, tmp_path: Path) -> None:
    lab = Lab(0)
    module = ALL_CASES[case](lab)
    lower_for_onnx(lab.ctx, module)
    (path,) = write(module, lab.ctx.weights, tmp_path, "integer")
    graph = onnx.load(path, load_external_data=False).graph
    kinds = {info.type.tensor_type.elem_type for info in (*graph.value_info, *graph.input, *graph.output)}
    assert not kinds & FLOATS
    assert not {tensor.data_type for tensor in graph.initializer} & FLOATS
    assert not {node.domain for node in graph.node} - {"", "ai.onnx"}
    assert len(graph.value_info) >= len(graph.node) - len(graph.output), "shapes are inferred"
