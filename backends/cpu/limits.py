"""Measure what this machine can do at most."""

from __future__ import annotations

import ctypes

from mqc.backend import Limits, thread_count
from mqc.backends.cpu.build import choose_isa, load_library
from mqc.backends.cpu.kernels import texts
from mqc.errors import TargetError

_BYTES = 512 << 20
_ROUNDS = 20_000
_MACS_PER_ROUND = 4 * 64 * 256
_TRIES = 5


def measure(threads: int | None = None, isa: str = "auto") -> Limits:
    """Read bandwidth over 512 MiB, and the matrix kernel's rate on operands in the L1 cache.

    Takes about two seconds. Raises `TargetError` if there is not enough memory.
    """
    count = thread_count(threads)
    library = load_library(texts()["limits.c"], choose_isa(isa))
    for name in ("mqc_read_ns", "mqc_multiply_ns"):
        getattr(library, name).argtypes = [ctypes.c_uint64, ctypes.c_int, ctypes.c_int]
        getattr(library, name).restype = ctypes.c_uint64
    read_ns = library.mqc_read_ns(_BYTES, count, _TRIES)
    multiply_ns = library.mqc_multiply_ns(_ROUNDS, count, _TRIES)
    if not read_ns or not multiply_ns:
        raise TargetError("cpu: the limits cannot be measured: memory or threads ran out")
    macs = _ROUNDS * _MACS_PER_ROUND * count
    return Limits(_BYTES / read_ns * 1e9, macs / multiply_ns * 1e9, count)
