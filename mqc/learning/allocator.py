"""Keep the memory that a step frees for the next one."""

from __future__ import annotations

import ctypes

#: Parameters of mallopt (malloc.h), and values: keep what is freed, allocate in heaps.
_MALLOPT = {-3: 2**31 - 1, -1: 2**31 - 1, -2: 2**28}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD


def keep_freed_memory() -> None:
    """Let glibc's malloc keep large blocks that are freed, for the rest of the process.

    By default it gives them back to the system, and each step would have every page of its activations and
    gradients mapped and zeroed again. Does nothing where malloc is another's, or a glibc that refuses.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOPT.items():
            if not mallopt(parameter, value):
                return
