"""Large arrays in temporary files that are mapped: the system may take their memory back at any time.

The files have no name: however a process ends, nothing of them is left. The room of a file is free again when
none of its arrays is in use.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mqc.arrays import Array
from mqc.errors import StorageError

#: Arrays of fewer bytes stay in memory.
LEAST_BYTES = 1 << 20
#: Bytes of a file. One costs a file descriptor; its room is free only when all of its arrays are gone.
_FILE_BYTES = 1 << 28
_ALIGNMENT = 64
_VAR_TMP = Path("/var/tmp")


def folder() -> Path:
    """Where the files stand: `MQC_TMP`, else `TMPDIR`, else `/var/tmp`, which is made for large files and
    hardly ever in memory, as `/tmp` may be; else the system's folder for temporary files."""
    named = os.environ.get("MQC_TMP") or os.environ.get("TMPDIR")
    if named:
        return Path(named)
    return _VAR_TMP if os.access(_VAR_TMP, os.W_OK) else Path(tempfile.gettempdir())


def temporary_bytes(parameters: int) -> int:
    """What a compilation takes at most for so many parameters: old and new weights of a pass as f32, what is
    between, and files of which only a part is in use."""
    return 10 * parameters


def check_room(needed: int, what: str) -> None:
    """Raise `StorageError` if the folder for temporary files has less than `needed` bytes left."""
    try:
        free = shutil.disk_usage(folder()).free
    except OSError as error:
        raise StorageError(f"cannot use {folder()} for temporary files: {error.strerror}") from error
    if free < needed:
        raise StorageError(
            f"{what} takes up to {needed / 1e9:.1f} GB of temporary files, and {folder()} has "
            f"{free / 1e9:.1f} GB left; name a folder with more room in MQC_TMP"
        )


def return_freed_memory() -> None:
    """Give freed memory back to the system: glibc keeps blocks of up to 32 MiB, most weights among them, for
    later. Other C libraries: nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Spill:
    """Arrays in temporary files, written one behind the other."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._used = self._size = 0

    def write(self, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[Array]) -> Array:
        """A writable array in a file, made of blocks of its rows.

        Raises `StorageError` if there is no room.
        """
        size = math.prod(shape) * dtype.itemsize
        try:
            if self._file is None or self._used + size > self._size:
                self._new_file(max(_FILE_BYTES, size))
            assert self._file is not None
            self._file.seek(self._used)
            for block in blocks:
                self._file.write(np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8).data)
            self._file.flush()
        except OSError as error:
            raise StorageError(
                f"cannot write {size / 1e6:.0f} MB of weights to a temporary file in {folder()}: "
                f"{error.strerror}; name a folder with more room in MQC_TMP"
            ) from error
        assert self._file.tell() == self._used + size
        array = np.frombuffer(self._map, dtype, math.prod(shape), self._used).reshape(shape)
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return array

    def _new_file(self, size: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder())  # noqa: SIM115
        self._file.truncate(size)
        self._map = mmap.mmap(self._file.fileno(), size)
        self._used, self._size = 0, size
