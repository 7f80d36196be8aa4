"""What malloc does with the memory that a step frees."""

from __future__ import annotations

import ctypes

#: Parameters of mallopt (malloc.h).
_M_MMAP_THRESHOLD, _M_TOP_PAD, _M_TRIM_THRESHOLD = -3, -2, -1


def keep_freed_memory() -> None:
    """Let glibc's malloc keep large blocks that are freed, for the rest of the process.

    By default it gives them back to the system, and each step would have every page of its activations and
    gradients mapped and zeroed again. Does nothing where malloc is another's, or a glibc that refuses.
    """
    _set({_M_MMAP_THRESHOLD: 2**31 - 1, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**28})


def return_large_blocks() -> None:
    """Let glibc's malloc give blocks of 1 MiB or more back to the system as soon as they are freed, for the
    rest of the process.

    Where layers' parameters come and go, what is kept for them fills up with gaps: a block that is aligned,
    as torch's are, does not fit where one of its size was freed. Does nothing where `keep_freed_memory` does
    nothing.
    """
    _set({_M_MMAP_THRESHOLD: 2**20})


def _set(values: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in values.items():
            if not mallopt(parameter, value):
                return
