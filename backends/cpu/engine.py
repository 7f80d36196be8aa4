"""A compiled program, loaded and running."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.proofs import check_row_sums
from mqc.arrays import Array
from mqc.backend import Engine, Ids, Logits, check_ids, check_rewind, check_state, thread_count
from mqc.backends.cpu.build import ADDS_SUMS, choose_isa, load_library
from mqc.backends.cpu.emit import emit
from mqc.errors import InputError, TargetError
from mqc.ir.module import context_length, prefix_tokens, returned_value
from mqc.ir.op import State, channels
from mqc.ir.weight_store import WeightStore, numpy_dtype

#: Most tokens in one call of the C program (CHUNK in prelude.h).
CHUNK = 128


class CpuEngine(Engine):
    """One sequence on the CPU. Weights stay where the store has them; the cache is the engine's.

    It is for one thread at a time, in the process that opened it: another one gets an `InputError`.

    Memory: the weights (shared), 2 · positions · kv channels per layer for the cache, and 128
    tokens of activations.

    timed: of the last call's part of at most 128 tokens, note when each op ended (`marks`).
    """

    def __init__(
        self,
        module: ModuleOp,
        weights: WeightStore,
        threads: int | None = None,
        isa: str = "auto",
        timed: bool = False,
    ) -> None:
        self._handle: int | None = None
        self._process = os.getpid()
        self._busy = threading.Lock()
        self.threads = thread_count(threads)
        self.isa = choose_isa(isa)
        if self.isa in ADDS_SUMS:
            check_row_sums(module, weights)
        program = emit(module, weights, timed)
        self.ops = program.ops
        self._library = load_library(program.source, self.isa)
        self._declare()
        self.vocabulary = channels(returned_value(module))
        self.context = context_length(module)
        self.prefix_length = len(prefix_tokens(module))
        self._constants = program.constants
        addresses = [a.ctypes.data for a in program.constants]
        self._addresses = (ctypes.c_void_p * len(addresses))(*addresses)
        table = ctypes.byref(ctypes.c_char.in_dll(self._library, "mqc_program"))
        self._handle = self._library.mqc_engine_open(table, self._addresses, self.threads, None)
        if not self._handle:
            raise TargetError("cpu: not enough memory for the cache, or threads cannot be started")
        #: What each cache holds: keys and values, rows of a convolution, or a state of fixed size.
        self._states = [op.states() for op in program.caches]
        self._initial = {
            state.name: weights[state.initial] for state in chain(*self._states) if state.initial is not None
        }
        for number, kept in enumerate(self._states):
            rows = [self._initial[state.name] for state in kept if state.grows and state.initial is not None]
            if rows:
                self._write(self._handle, number, 0, *rows)
        self.position = self.prefix_length

    def _declare(self) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._library.mqc_engine_open.restype = pointer
        self._library.mqc_engine_open.argtypes = [pointer, pointer, number, pointer]
        self._library.mqc_engine_close.argtypes = [pointer]
        self._library.mqc_engine_close.restype = None
        for move in (self._library.mqc_engine_write, self._library.mqc_engine_read):
            move.argtypes = [pointer, number, number, number, pointer, pointer]
            move.restype = None
        self._library.mqc_engine_run.argtypes = [pointer, pointer, number, number, number, pointer]
        self._library.mqc_engine_run.restype = None
        self._library.mqc_engine_arena.argtypes = [pointer]
        self._library.mqc_engine_arena.restype = pointer

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """The handle of the C program, for this thread alone. Raises `InputError` if another one has it, and
        in a forked process, which has the memory but none of the threads."""
        if self._process != os.getpid():
            raise InputError("the engine was opened before a fork; open one in each process")
        if not self._busy.acquire(blocking=False):
            raise InputError("the engine is at work in another thread; give each thread an engine of its own")
        try:
            if self._handle is None:
                raise InputError("the engine is closed")
            yield self._handle
        finally:
            self._busy.release()

    def reset(self) -> None:
        # Rows of an earlier sequence stay in the cache; no position is read before it is written, and what
        # begins at the first position begins anew.
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
                self._library.mqc_engine_run(handle, part.ctypes.data, len(part), self.position, skip, target)
                self.position += len(part)
            return logits

    def rewind(self, position: int) -> None:
        with self._alone():
            check_rewind(self, chain(*self._states), position)
            self.position = position

    def read_state(self) -> dict[str, Array]:
        with self._alone() as handle:
            found: dict[str, Array] = {}
            count = self.position - self.prefix_length
            for number, kept in enumerate(self._states):
                if not kept[0].grows:
                    found[kept[0].name] = self._fixed(handle, number, kept[0])
                    continue
                rows = [np.empty((count, *state.shape), numpy_dtype(state.element)) for state in kept]
                addresses = [array.ctypes.data for array in rows]
                self._library.mqc_engine_read(handle, number, self.prefix_length, count, *_pair(addresses))
                found |= zip((state.name for state in kept), rows, strict=True)
            return found

    def _fixed(self, handle: int, number: int, state: State) -> Array:
        """A state of fixed size; what a sequence begins with is only there once it began."""
        whole = np.zeros(state.shape, numpy_dtype(state.element))
        if self.position > self.prefix_length:
            self._library.mqc_engine_read(handle, number, 0, 1, whole.ctypes.data, None)
        elif state.initial is not None:
            whole[:] = self._initial[state.name]
        return whole

    def write_state(self, position: int, state: Mapping[str, Array]) -> None:
        with self._alone() as handle:
            check_state(self, chain(*self._states), position, state)
            for number, kept in enumerate(self._states):
                given = [state[one.name] if one.grows else state[one.name][None] for one in kept]
                self._write(handle, number, self.prefix_length if kept[0].grows else 0, *given)
            self.position = position

    def _write(self, handle: int, number: int, position: int, *rows: Array) -> None:
        arrays = [np.ascontiguousarray(array) for array in rows]
        addresses = [array.ctypes.data for array in arrays]
        self._library.mqc_engine_write(handle, number, position, len(arrays[0]), *_pair(addresses))

    def arena(self, size: int) -> Array:
        """The first `size` bytes of the arena as they are, u8; valid until the next call."""
        address = self._library.mqc_engine_arena(self._handle)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def marks(self) -> Array:
        """ns, u64: when the last part of a call began, and when each of `ops` ended. Of a timed engine."""
        return np.array((ctypes.c_uint64 * (len(self.ops) + 1)).in_dll(self._library, "mqc_marks"))

    def close(self) -> None:
        """Free cache and threads. The engine cannot be used after."""
        if self._process != os.getpid():
            self._handle = None  # joining threads that a fork did not copy would wait forever
        if self._handle is not None:
            with self._alone() as handle:
                self._library.mqc_engine_close(handle)
                self._handle = None

    def __enter__(self) -> CpuEngine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


def _pair(addresses: list[int]) -> tuple[int, int | None]:
    """The addresses of keys and values, or of rows and nothing."""
    first, *more = addresses
    return first, more[0] if more else None
