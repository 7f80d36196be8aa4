"""Running an `htp` program here: in NumPy, op by op, or as HVX code under QEMU."""

from __future__ import annotations

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.verification import verify_module
from mqc.arrays import Array
from mqc.backend import Engine, Ids, Logits, check_ids, check_rewind
from mqc.backends.npu.numpy_runner import NumpyRunner
from mqc.backends.npu.qemu import QemuRunner
from mqc.backends.npu.runner import Observer, Runner
from mqc.dialects.htp_core import shape
from mqc.errors import InputError, TargetError
from mqc.ir.module import (
    context_length,
    level,
    ops_by_name,
    prefix_tokens,
    returned_value,
    states,
    static_functions,
)
from mqc.ir.op import channels
from mqc.ir.weight_store import WeightStore


class NpuEngine(Engine):
    """One sequence through the functions of fixed length.

    Prompts run in pieces of the longest function; what remains runs padded where at least an eighth of
    the rows is of use, the context has room for all and every state lets padding pass, else token by token.
    """

    def __init__(self, module: ModuleOp, weights: WeightStore, simulator: str = "numpy") -> None:
        if level(module) != "htp":
            raise TargetError("npu: the module is not at level htp; run lower-to-htp")
        verify_module(module)
        self.vocabulary = channels(returned_value(module))
        self.context = context_length(module)
        self.prefix_length = len(prefix_tokens(module))
        self._states, functions = states(module), static_functions(module)
        self._clear = any(state.cleared for state in self._states)
        self._pad = all(state.padding for state in self._states)
        self._lengths = sorted(
            ((shape(f.body.block.args[0])[0], name) for name, f in functions.items() if name != "initialize"),
            reverse=True,
        )
        self._initialize = "initialize" in functions
        self._runner: Runner
        if simulator == "numpy":
            self._runner = NumpyRunner(module, weights)
        elif simulator == "qemu":
            self._runner = QemuRunner(module, weights)
        else:
            raise InputError(f"simulator must be numpy or qemu, got {simulator!r}")
        self.reset()

    def reset(self) -> None:
        self._runner.begin(self._clear)
        if self._initialize:
            self._runner.run("initialize", 0, np.zeros(self.prefix_length, np.int32), 0, 0)
        self.position = self.prefix_length

    def rewind(self, position: int) -> None:
        check_rewind(self, self._states, position)
        self.position = position

    def forward(self, ids: Ids, rows: int | None = None, observe: Observer | None = None) -> Logits:
        """As `Engine.forward`; `observe` is given the rows of the values in `finals`, piece by piece."""
        ids = check_ids(self, ids)
        wanted = len(ids) if rows is None else min(rows, len(ids))
        parts = []
        done = 0
        while done < len(ids):
            tokens, name = self._next(len(ids) - done)
            part = np.zeros(tokens, np.int32)
            used = min(tokens, len(ids) - done)
            part[:used] = ids[done : done + used]
            first = min(max(len(ids) - wanted - done, 0), used)
            note = None if observe is None else _first_rows(observe, used)
            parts.append(self._runner.run(name, self.position, part, first, used - first, note))
            done += used
            self.position += used
        return np.concatenate(parts)

    def _next(self, remaining: int) -> tuple[int, str]:
        """The function for the next piece."""
        for tokens, name in self._lengths:
            fits = self.position + tokens <= self.context and (self._pad or remaining >= tokens)
            if tokens == 1 or (fits and 8 * remaining >= tokens and remaining > 1):
                return tokens, name
        raise AssertionError("a verified module has @decode")

    def close(self) -> None:
        """Give up the simulator."""
        self._runner.close()


def _first_rows(observe: Observer, count: int) -> Observer:
    return lambda name, value: observe(name, value[:count])


def values(module: ModuleOp, weights: WeightStore, ids: Ids, simulator: str = "numpy") -> dict[str, Array]:
    """Every value of @main that a function completes, by name, `[tokens, channels]`, and the logits."""
    parts: dict[str, list[Array]] = {}
    engine = NpuEngine(module, weights, simulator)
    logits = engine.forward(ids, observe=lambda name, value: parts.setdefault(name, []).append(value.copy()))
    engine.close()
    name = next(name for name, op in ops_by_name(module).items() if op.results[0] is returned_value(module))
    return {**{name: np.concatenate(rows) for name, rows in parts.items()}, name: logits}
