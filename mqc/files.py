"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from mqc.errors import StorageError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; at the end of the block it becomes `path`.

    If the block fails, `path` stays as it was. A link, device or pipe is written to in place. Raises
    `StorageError` if the block raises an error of the disk.
    """
    in_place = os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path))
    partial = path if in_place else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        if not in_place:
            os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"cannot write {path}: {reason}") from error
    finally:
        if not in_place:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises `StorageError`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
