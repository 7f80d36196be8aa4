"""Every op at level `htp` equals the oracle, bit for bit: by its semantics in NumPy, and as HVX code."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.verification import verify_module
from mqc.backends.npu.engine import NpuEngine
from mqc.dialects import int_ops
from mqc.dialects.int_ops import LutOp
from mqc.errors import IRError, TargetError
from mqc.ir.module import mqc_ops
from mqc.ir.op import s32, tensor, u8, u16
from mqc.runtime.oracle import OracleEngine
from tests.backends.op_cases import CASES, Lab, check_engine
from tests.compiled import lower_for_npu


def lowered(lab: Lab, module: ModuleOp) -> ModuleOp:
    """Through small tiles, so that every product and the logits come in several."""
    lower_for_npu(lab.ctx, module, tile=4096)
    return module


@pytest.mark.parametrize("simulator", ["numpy", pytest.param("qemu", marks=pytest.mark.hexagon)])
@pytest.mark.parametrize("case", CASES)
def test_op_equals_the_oracle(case: str, simulator: str) -> None:
    seen: set[int] = set()
    for seed in range(3):
        lab = Lab(seed)
        module = CASES[case](lab)
        ids = lab.rng.integers(0, 31, 33).astype(np.int32)
        want = OracleEngine(module, lab.ctx.weights).forward(ids)
        engine = NpuEngine(lowered(lab, module), lab.ctx.weights, simulator)
        check_engine(engine, ids, want)
        engine.close()
        # @main reads the records that the functions read
        assert (OracleEngine(module, lab.ctx.weights).forward(ids) == want).all()
        seen |= set(want.reshape(-1).tolist())
    assert len(seen) > 30, "everything saturates: the case says nothing"


def test_a_constraint_that_does_not_hold_is_named() -> None:
    lab = Lab(0)
    acc = lab.add(
        int_ops.MulOp, [lab.activation(u16, 8), lab.activation(u16, 8)], tensor(s32, 8), a_zero=0,
        b_zero=0, acc_shift=9,
    )  # fmt: skip
    module = lab.finish(lab.requant(acc, u8, 20))
    message = (
        r"int.requant %v becomes htp.element_wise_multiply, whose constraint does not hold: "
        r"acc_shift in \[0, 8\] does not hold"
    )
    with pytest.raises(TargetError, match=message):
        lowered(lab, module)


def test_knots_that_would_leave_s32_are_refused() -> None:
    lab = Lab(0)
    module = CASES["lut-u16-u8"](lab)
    op = next(op for op in mqc_ops(module) if isinstance(op, LutOp))
    table = lab.ctx.weights[op.table].copy()
    table[0] = 1 << 22
    op.properties["table"] = lab.weight(table, np.int32)
    with pytest.raises(TargetError, match="knots of 2\\^22 or more"):
        lowered(lab, module)


def test_an_accumulator_that_two_ops_read_is_refused() -> None:
    lab = Lab(0)
    acc = lab.add(
        int_ops.MulOp, [lab.activation(u8, 8), lab.activation(u8, 8)], tensor(s32, 8), a_zero=0,
        b_zero=0, acc_shift=0,
    )  # fmt: skip
    lab.requant(acc, u8, 16)
    module = lab.finish(lab.requant(acc, u8, 16))
    with pytest.raises(TargetError, match="must be followed by one int\\.requant alone"):
        lowered(lab, module)


def test_a_sum_that_could_leave_s32_is_refused() -> None:
    """Whatever the sign of its factors."""
    lab = Lab(0)
    value = lab.add(
        int_ops.AddOp, [lab.activation(u16, 8), lab.activation(u16, 8)], tensor(u16, 8), a_zero=0,
        b_zero=0, zero_point=0, a_multiplier=-(2**30), a_shift=-3, b_multiplier=2**30, b_shift=8,
    )  # fmt: skip
    module = lab.finish(value)
    with pytest.raises(IRError, match="a and b at most 64 times"):
        verify_module(module)
