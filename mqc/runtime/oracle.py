"""The oracle as an engine: `int` semantics in NumPy."""

from __future__ import annotations

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.evaluation import Evaluation
from mqc.backend import Engine, Ids, Logits, check_ids
from mqc.ir.module import context_length, prefix_tokens, returned_value
from mqc.ir.op import channels
from mqc.ir.weight_store import WeightStore


class OracleEngine(Engine):
    """Runs a module by what its ops declare. Slow, and right by definition."""

    def __init__(self, module: ModuleOp, weights: WeightStore) -> None:
        self._evaluation = Evaluation(module, weights)
        self.vocabulary = channels(returned_value(module))
        self.context = context_length(module)
        self.prefix_length = len(prefix_tokens(module))
        self.position = self.prefix_length

    def reset(self) -> None:
        self._evaluation.reset()
        self.position = self.prefix_length

    def forward(self, ids: Ids, rows: int | None = None) -> Logits:
        ids = check_ids(self, ids)
        positions = np.arange(self.position, self.position + len(ids))
        logits: Logits = self._evaluation.run(ids, positions)
        self.position += len(ids)
        return logits if rows is None else logits[len(ids) - min(rows, len(ids)) :]
