"""A compiled program, loaded and running."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.arrays import Array
from mqc.backend import Engine, Ids, Logits, check_ids, thread_count
from mqc.backends.cpu.build import choose_isa, load_library
from mqc.backends.cpu.emit import emit
from mqc.errors import InputError, TargetError
from mqc.ir.module import context_length, prefix_tokens, returned_value
from mqc.ir.op import channels
from mqc.ir.weight_store import WeightStore

#: Most tokens in one call of the C program (CHUNK in prelude.h).
CHUNK = 128


class CpuEngine(Engine):
    """One sequence on the CPU. Weights stay where the store has them; the cache is the engine's.

    It is for one thread at a time: another one gets an `InputError`.

    Memory: the weights (shared), 2 · positions · kv channels per layer for the cache, and 128
    tokens of activations.
    """

    def __init__(
        self, module: ModuleOp, weights: WeightStore, threads: int | None = None, isa: str = "auto"
    ) -> None:
        self._handle: int | None = None
        self._busy = threading.Lock()
        self.threads = thread_count(threads)
        self.isa = choose_isa(isa)
        program = emit(module, weights)
        self._library = load_library(program.source, self.isa)
        self._declare()
        self.vocabulary = channels(returned_value(module))
        self.context = context_length(module)
        self.prefix_length = len(prefix_tokens(module))
        self._constants = program.constants
        addresses = [a.ctypes.data for a in program.constants]
        self._addresses = (ctypes.c_void_p * len(addresses))(*addresses)
        table = ctypes.byref(ctypes.c_char.in_dll(self._library, "mqc_program"))
        self._handle = self._library.mqc_open(table, self._addresses, self.threads)
        if not self._handle:
            raise TargetError("cpu: not enough memory for the cache, or threads cannot be started")
        for number, op in enumerate(program.attention):
            initial = [weights[state.initial] for state in op.states() if state.initial is not None]
            if initial:
                for position, (k, v) in enumerate(zip(*initial, strict=True)):
                    self._library.mqc_write_cache(
                        self._handle, number, position, k.ctypes.data, v.ctypes.data
                    )
        self.position = self.prefix_length

    def _declare(self) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._library.mqc_open.restype = pointer
        self._library.mqc_open.argtypes = [pointer, pointer, number]
        self._library.mqc_close.argtypes = [pointer]
        self._library.mqc_close.restype = None
        self._library.mqc_write_cache.argtypes = [pointer, number, number, pointer, pointer]
        self._library.mqc_write_cache.restype = None
        self._library.mqc_forward.argtypes = [pointer, pointer, number, number, number, pointer]
        self._library.mqc_forward.restype = None
        self._library.mqc_arena.argtypes = [pointer]
        self._library.mqc_arena.restype = pointer

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """The handle of the C program, for this thread alone. Raises `InputError` if another one has it."""
        if not self._busy.acquire(blocking=False):
            raise InputError("the engine is at work in another thread; give each thread an engine of its own")
        try:
            if self._handle is None:
                raise InputError("the engine is closed")
            yield self._handle
        finally:
            self._busy.release()

    def reset(self) -> None:
        # Rows of an earlier sequence stay in the cache; no position is read before it is written.
        with self._alone():
            self.position = self.prefix_length

    def forward(self, ids: Ids, rows: int | None = None) -> Logits:
        with self._alone() as handle:
            ids = check_ids(self, ids)
            count = len(ids)
            wanted = count if rows is None else min(rows, count)
            logits = np.empty((wanted, self.vocabulary), np.int32)
            first = count - wanted
            for start in range(0, count, CHUNK):
                part = ids[start : start + CHUNK]
                skip = min(max(first - start, 0), len(part))
                row = max(start - first, 0)
                target = logits.ctypes.data + row * self.vocabulary * 4
                self._library.mqc_forward(handle, part.ctypes.data, len(part), self.position, skip, target)
                self.position += len(part)
            return logits

    def arena(self, size: int) -> Array:
        """The first `size` bytes of the arena as they are, u8; valid until the next call."""
        address = self._library.mqc_arena(self._handle)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def close(self) -> None:
        """Free cache and threads. The engine cannot be used after."""
        if self._handle is not None:
            with self._alone() as handle:
                self._library.mqc_close(handle)
                self._handle = None

    def __enter__(self) -> CpuEngine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()
