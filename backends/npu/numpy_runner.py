"""The functions of an `htp` program, evaluated in NumPy op by op."""

from __future__ import annotations

from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.evaluation import Evaluation
from mqc.arrays import Array
from mqc.backend import Ids, Logits
from mqc.backends.npu.runner import Observer, Runner, finals
from mqc.ir.module import static_functions
from mqc.ir.op import MqcOp
from mqc.ir.weight_store import WeightStore


class NumpyRunner(Runner):
    """The semantics that the ops declare. Time per token grows with the weights, as eight-byte floats."""

    def __init__(self, module: ModuleOp, weights: WeightStore) -> None:
        self._functions = {
            name: Evaluation(module, weights, function) for name, function in static_functions(module).items()
        }
        self._module = module
        self._state: dict[str, Any] = {}
        for evaluation in self._functions.values():
            evaluation.state = self._state

    def run(
        self, name: str, position: int, ids: Ids, first: int, count: int, observe: Observer | None = None
    ) -> Logits:
        evaluation = self._functions[name]
        evaluation.position = position
        names: dict[MqcOp, str] = {}
        if observe is not None:
            names = {op: value for value, op in finals(self._module, name).items()}

        def note(op: MqcOp, value: Array) -> None:
            if observe is not None and op in names:
                observe(names[op], value)

        logits = evaluation.run(ids, np.arange(position, position + len(ids)), note)
        return np.empty((0, 0), np.int32) if logits is None else logits[first : first + count]

    def begin(self, clear: bool) -> None:
        if clear:
            self._state.clear()

    def close(self) -> None:
        self._functions.clear()
