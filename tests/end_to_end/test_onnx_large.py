"""A model over 2 GB, the limit of one protobuf message: its weights are external data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mqc.backends.onnx.engine import OnnxEngine
from mqc.backends.onnx.files import write
from mqc.dialects import int_ops
from mqc.ir.op import s32, tensor, u8
from mqc.runtime.oracle import OracleEngine
from tests.backends.op_cases import ROWS, Lab
from tests.compiled import lower_for_onnx

pytestmark = pytest.mark.slow

WIDTH, LAYERS = 16384, 9


def test_over_2_gb(tmp_path: Path) -> None:
    lab = Lab(0)
    value = lab.activation(u8, WIDTH)
    matrix = lab.rng.integers(-128, 128, (WIDTH, WIDTH), dtype=np.int8)
    for i in range(LAYERS):
        acc = lab.add(
            int_ops.LinearOp, [value], tensor(s32, WIDTH), weight=lab.weight(np.roll(matrix, i, 1), np.int8),
            weight_bits=8, bias=lab.weight(np.arange(WIDTH) * 50, np.int32), x_zero=128, acc_shift=0,
        )  # fmt: skip
        value = lab.requant(acc, u8, 21)
    acc = lab.add(
        int_ops.LinearOp, [value], tensor(s32, ROWS), weight=lab.weight(matrix[:ROWS], np.int8),
        weight_bits=8, bias=lab.weight(np.zeros(ROWS), np.int32), x_zero=128, acc_shift=0,
    )  # fmt: skip
    module = lab.give(acc, lab.weight(np.full(ROWS, 2**30), np.int32), -1)
    lower_for_onnx(lab.ctx, module)
    ids = np.arange(4, dtype=np.int32)
    want = OracleEngine(module, lab.ctx.weights).forward(ids)
    assert len(np.unique(want)) > 30
    (path,) = write(module, lab.ctx.weights, tmp_path, "integer")
    assert (tmp_path / "weights.bin").stat().st_size > 2 << 30
    assert path.stat().st_size < 1 << 20
    engine = OnnxEngine(module, lab.ctx.weights, style="integer")
    assert (engine.forward(ids) == want).all()
