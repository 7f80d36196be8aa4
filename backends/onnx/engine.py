"""ONNX Runtime as an engine: the cache stays where it is, and grows in place."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from xdsl.dialects.builtin import ModuleOp

from mqc.arrays import Array
from mqc.backend import Engine, Ids, Logits, check_ids, check_rewind, check_state
from mqc.backends.onnx.emitter import IDS, LOGIT_ROWS, LOGITS, POSITIONS, Lengths, new_name, past_name
from mqc.backends.onnx.files import all_lengths, initial_cache, write
from mqc.backends.onnx.qdq_npu import logit_type
from mqc.backends.onnx.session import exact_products, open_session
from mqc.errors import InputError, TargetError
from mqc.ir.module import context_length, prefix_tokens, returned_value, states
from mqc.ir.op import State, channels, plain
from mqc.ir.weight_store import WeightStore, numpy_dtype

#: Most tokens in one call of a graph of dynamic length, which bounds the memory of attention.
CHUNK = 512

_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
}


@dataclass(frozen=True)
class _Rows:
    """One state: graph input, graph output, and all rows `[context, *shape]`."""

    state: State
    past: str
    new: str
    buffer: Array


class OnnxEngine(Engine):
    """One sequence in ONNX Runtime, on a graph of dynamic length or on one for each of `tokens`.

    The cache is one buffer per layer: sessions read its first rows and, where lengths are dynamic, write
    the new ones right behind them. With fixed lengths a short prompt is padded, and what no longer fits
    goes through the graph for one token. Memory: the weights as the runtime packs them (once for each
    graph), and 2 · positions · kv channels per layer.
    """

    def __init__(
        self,
        module: ModuleOp,
        weights: WeightStore,
        style: str = "qdq",
        runtime: str = "cpu",
        tokens: Sequence[int] = (),
        context: int | None = None,
        provider: str = "CPUExecutionProvider",
        threads: int | None = None,
        every_value: bool = False,
    ) -> None:
        self._lengths = all_lengths(module, tokens, context)
        if tokens and 1 not in tokens and not every_value:
            raise InputError("an engine of fixed lengths needs a graph for one token: tokens=128,1")
        with tempfile.TemporaryDirectory(prefix="mqc-onnx-") as folder:
            paths = write(
                module, weights, Path(folder), style, runtime, tokens, context, every_value=every_value
            )
            entries = exact_products(provider)
            self._sessions = [open_session(path, provider, threads, entries) for path in paths]
        self.vocabulary = channels(returned_value(module))
        self.context = context_length(module) if context is None else context
        self._chunk = self.context if every_value else CHUNK
        self.prefix_length = len(prefix_tokens(module))
        self.position = self.prefix_length
        #: With `every_value`: what each value was in the last call, by name.
        self.stored: dict[str, Array] = {}
        self._module = module
        self._cache: list[_Rows] = []
        rows = initial_cache(module, weights)
        for state in states(module):
            if not state.grows or state.cleared or not state.padding:
                raise TargetError(f"onnx: the engine keeps rows by position only, and {state.name} is none")
            buffer = np.zeros((self.context, *state.shape), numpy_dtype(state.element))
            buffer[: self.prefix_length] = rows.get(past_name(state), 0)
            self._cache.append(_Rows(state, past_name(state), new_name(state), buffer))

    def reset(self) -> None:
        self.position = self.prefix_length

    def rewind(self, position: int) -> None:
        check_rewind(self, (rows.state for rows in self._cache), position)
        self.position = position

    def read_state(self) -> dict[str, Array]:
        return {
            rows.state.name: rows.buffer[self.prefix_length : self.position].copy() for rows in self._cache
        }

    def write_state(self, position: int, state: Mapping[str, Array]) -> None:
        check_state(self, (rows.state for rows in self._cache), position, state)
        for rows in self._cache:
            rows.buffer[self.prefix_length : position] = state[rows.state.name]
        self.position = position

    def forward(self, ids: Ids, rows: int | None = None) -> Logits:
        ids = check_ids(self, ids)
        wanted = len(ids) if rows is None else min(rows, len(ids))
        parts, start = [], 0
        while start < len(ids):
            session, lengths = self._graph_for(len(ids) - start)
            part = ids[start : start + (lengths.tokens or self._chunk)]
            first = min(max(len(ids) - wanted - start, 0), len(part))
            parts.append(self._run(session, lengths, part, first))
            start += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _graph_for(self, count: int) -> tuple[ort.InferenceSession, Lengths]:
        """The smallest graph that takes `count` tokens and has room for its own, else the largest."""
        graphs = list(zip(self._sessions, self._lengths, strict=True))
        if self._lengths[0].tokens is None:
            return graphs[0]
        fitting = [g for g in graphs if (g[1].past or 0) >= self.position]
        whole = [g for g in fitting if (g[1].tokens or 0) >= count]
        if whole:
            return min(whole, key=lambda graph: graph[1].tokens or 0)
        return max(fitting, key=lambda graph: graph[1].tokens or 0)

    def _run(self, session: ort.InferenceSession, lengths: Lengths, ids: Ids, first: int) -> Logits:
        """Append tokens to the sequence; s32 logits of those from `first` on."""
        wanted, first = first, min(first, len(ids) - 1)  # runtimes need not take no rows at all
        binding = session.io_binding()
        count, start = len(ids), self.position
        fixed = lengths.tokens is not None
        size = lengths.tokens or count
        # Padding comes last, and its rows are not kept.
        positions = np.arange(start, start + size)
        feeds: dict[str, Array] = {
            IDS: np.pad(ids, (0, size - count)),
            POSITIONS: positions,
            LOGIT_ROWS: np.arange(first, count),
        }
        for argument in session.get_inputs():
            if argument.name in feeds:
                kind = _DTYPES[argument.type]
                binding.bind_cpu_input(argument.name, feeds[argument.name].astype(kind))
        kind = next(_DTYPES[o.type] for o in session.get_outputs() if o.name == LOGITS)
        logits: Array = np.empty((size if fixed else count - first, self.vocabulary), kind)
        _bind(binding.bind_output, LOGITS, logits)
        fresh = []
        for rows in self._cache:
            past = lengths.past if fixed else start
            new = (
                np.empty((size, *rows.buffer.shape[1:]), rows.buffer.dtype)
                if fixed
                else rows.buffer[start : start + count]
            )
            _bind(binding.bind_input, rows.past, rows.buffer[:past])
            _bind(binding.bind_output, rows.new, new)
            fresh.append(new)
        known = {LOGITS, *(rows.new for rows in self._cache)}
        for output in session.get_outputs():
            if output.name not in known:
                array: Array = np.empty((size, output.shape[1]), _DTYPES[output.type])
                self.stored[output.name] = array
                _bind(binding.bind_output, output.name, array)
        session.run_with_iobinding(binding)
        if fixed:
            logits = logits[first:count]
            for rows, new in zip(self._cache, fresh, strict=True):
                rows.buffer[start : start + count] = new[:count]
        self.position += count
        return self._integers(logits[wanted - first :])

    def _integers(self, logits: Array) -> Logits:
        """Logits in the module's unit."""
        if logits.dtype == np.int32:
            return logits
        unit = float(plain(self._module.attributes["mqc.logit_scale"]))
        if logits.dtype == np.uint16:
            kind = logit_type(self._module)
            logits = (logits.astype(np.float32) - kind.zero) * np.float32(kind.real_scale)
        return np.rint(logits / np.float32(unit)).astype(np.int32)


def _bind(bind: Any, name: str, array: Array) -> None:
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
