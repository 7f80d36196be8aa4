"""The oracle as an engine: `int` semantics in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.evaluation import Evaluation
from mqc.arrays import Array
from mqc.backend import Engine, Ids, Logits, check_ids, check_rewind, check_state
from mqc.ir.module import context_length, prefix_tokens, returned_value, states
from mqc.ir.op import State, channels
from mqc.ir.weight_store import WeightStore, numpy_dtype


class OracleEngine(Engine):
    """Runs a module by what its ops declare. Slow, and right by definition."""

    def __init__(self, module: ModuleOp, weights: WeightStore) -> None:
        self._evaluation = Evaluation(module, weights)
        self._states = states(module)
        self._weights = weights
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
        kept = dict(self._evaluation.state)
        try:
            logits: Logits = self._evaluation.run(ids, positions)
        except BaseException:  # an interrupt must not leave some layers a step ahead of others
            self._go_to(self.position, kept)
            raise
        self.position += len(ids)
        return logits if rows is None else logits[len(ids) - min(rows, len(ids)) :]

    def rewind(self, position: int) -> None:
        check_rewind(self, self._states, position)
        kept = self._evaluation.state
        grown = {state.name: kept[state.name][:position] for state in self._states if state.grows and kept}
        self._go_to(position, kept | grown)

    def read_state(self) -> dict[str, Array]:
        return {state.name: self._kept(state).copy() for state in self._states}

    def write_state(self, position: int, state: Mapping[str, Array]) -> None:
        check_state(self, self._states, position, state)
        kept = {}
        for one in self._states:
            kept[one.name] = array = state[one.name].copy()
            if one.grows:
                rows = array.reshape(len(array), prod(one.shape))
                first = [] if one.initial is None else [self._weights[one.initial]]
                kept[one.name] = np.concatenate([*first, rows])
        self._go_to(position, kept)

    def _kept(self, state: State) -> Array:
        """A state as `read_state` gives it; ops keep rows as `[tokens, channels]`."""
        kept: Array | None = self._evaluation.state.get(state.name)
        if state.grows:
            count = self.position - self.prefix_length
            rows = np.empty((0,), numpy_dtype(state.element)) if kept is None else kept[self.prefix_length :]
            return rows.reshape(count, *state.shape)
        if kept is not None:
            return kept
        return (
            np.zeros(state.shape, numpy_dtype(state.element))
            if state.initial is None
            else self._weights[state.initial]
        )

    def _go_to(self, position: int, state: dict[str, Any]) -> None:
        self._evaluation.state, self._evaluation.position = state, position
        self.position = position
