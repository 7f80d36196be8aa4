"""ONNX Runtime as an engine: the cache stays where it is, and grows in place."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from mqc.backends.onnx.emitter import IDS, LOGIT_ROWS, LOGITS, POSITIONS, new_name, past_name
from mqc.backends.onnx.files import initial_cache, write
from xdsl.dialects.builtin import ModuleOp

from mqc.backend import Engine, Ids, Logits, check_ids
from mqc.dialects import int_ops
from mqc.dialects.core import channels, plain
from mqc.errors import InputError, TargetError
from mqc.ir import context_length, mqc_ops, prefix_tokens, returned_value
from mqc.weight_store import Array, WeightStore

#: Most tokens in one call, which bounds the memory of attention.
CHUNK = 512


def session_options(threads: int | None = None) -> ort.SessionOptions:
    if threads is not None and not 1 <= threads <= 256:
        raise InputError(f"threads must be in [1, 256], got {threads}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    return options


def open_session(path: Path, provider: str, threads: int | None = None) -> ort.InferenceSession:
    """A session of an execution provider. Raises `TargetError` if it is not there or refuses the model."""
    if provider not in ort.get_available_providers():
        known = ", ".join(ort.get_available_providers())
        raise TargetError(f"onnxruntime has no {provider}; available: {known}")
    try:
        return ort.InferenceSession(path, session_options(threads), providers=[provider])
    except Exception as error:  # onnxruntime's errors share no base class
        raise TargetError(f"onnxruntime cannot load {path.name}: {error}") from error


class OnnxEngine(Engine):
    """One sequence in ONNX Runtime, on the graph of dynamic length.

    The cache is one buffer per layer: the session reads its first rows and writes the new ones behind
    them. Memory: the weights as the runtime packs them, and 2 · positions · kv channels per layer.
    """

    def __init__(
        self,
        module: ModuleOp,
        weights: WeightStore,
        style: str = "qdq",
        provider: str = "CPUExecutionProvider",
        threads: int | None = None,
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="mqc-onnx-") as folder:
            (path,) = write(module, weights, Path(folder), style)
            self._session = open_session(path, provider, threads)
        self.vocabulary = channels(returned_value(module))
        self.context = context_length(module)
        self.prefix_length = len(prefix_tokens(module))
        self.position = self.prefix_length
        self._module = module
        self._cache: list[tuple[str, str, Array]] = []
        rows = initial_cache(module, weights)
        for op in mqc_ops(module):
            if isinstance(op, int_ops.AttentionOp):
                shape = (self.context, op.get("kv_heads"), channels(op.k) // op.get("kv_heads"))
                for which in ("key", "value"):
                    past = past_name(which, op.get("layer"))
                    buffer = np.zeros(shape, np.uint8)
                    buffer[: self.prefix_length] = rows.get(past, 0)
                    self._cache.append((past, new_name(which, op.get("layer")), buffer))

    def reset(self) -> None:
        self.position = self.prefix_length

    def forward(self, ids: Ids, rows: int | None = None) -> Logits:
        ids = check_ids(self, ids)
        wanted = len(ids) if rows is None else min(rows, len(ids))
        first = len(ids) - wanted
        parts = []
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            parts.append(self._run(part, np.arange(min(max(first - start, 0), len(part)), len(part))))
        return np.concatenate(parts)

    def _run(self, ids: Ids, rows: Array) -> Logits:
        """Logits of `rows` of the tokens, which are appended to the sequence."""
        binding = self._session.io_binding()
        count, start = len(ids), self.position
        kind = np.dtype(np.int32 if self._session.get_outputs()[0].type == "tensor(int32)" else np.float32)
        logits: Array = np.empty((len(rows), self.vocabulary), kind)
        positions = np.arange(start, start + count)
        for name, value in ((IDS, ids.astype(np.int64)), (POSITIONS, positions), (LOGIT_ROWS, rows)):
            binding.bind_cpu_input(name, value)
        for past, new, buffer in self._cache:
            _bind(binding.bind_input, past, buffer[:start])
            _bind(binding.bind_output, new, buffer[start : start + count])
        _bind(binding.bind_output, LOGITS, logits)
        self._session.run_with_iobinding(binding)
        self.position += count
        if kind == np.int32:
            return logits
        return np.rint(logits / np.float32(plain(self._module.attributes["mqc.logit_scale"]))).astype(
            np.int32
        )


def _bind(bind: Any, name: str, array: Array) -> None:
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
