"""Every op on the CPU equals the oracle, bit for bit: all builds, one and two threads."""

from __future__ import annotations

import numpy as np
import pytest

from mqc.backends.cpu import CpuEngine
from mqc.backends.cpu.build import supported_isas
from mqc.runtime.oracle import OracleEngine
from tests.backends.op_cases import CASES, Lab, check_engine
from tests.backends.recurrent_cases import RECURRENT_CASES
from tests.backends.routed_cases import ROUTED_CASES
from tests.compiled import lower_for_cpu

ALL_CASES = CASES | ROUTED_CASES | RECURRENT_CASES


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("case", ALL_CASES)
def test_op_equals_the_oracle(case: str, isa: str) -> None:
    seen: set[int] = set()
    for seed in range(3):
        lab = Lab(seed)
        module = ALL_CASES[case](lab)
        module.verify()
        lower_for_cpu(lab.ctx, module)
        ids = lab.rng.integers(0, 31, 33).astype(np.int32)
        want = OracleEngine(module, lab.ctx.weights).forward(ids)
        for threads in (1, 2):
            with CpuEngine(module, lab.ctx.weights, threads=threads, isa=isa) as engine:
                check_engine(engine, ids, want)
        seen |= set(want.reshape(-1).tolist())
    assert len(seen) > 30, "everything saturates: the case says nothing"
