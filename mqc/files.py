"""Reading files from outside within bounds, and writing files so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from mqc.errors import MqcError, StorageError

#: No text that is read is larger.
TEXT_BYTES = 1 << 28
_CHUNK_BYTES = 1 << 20
_log = logging.getLogger(__name__)
#: What the names of folders begin with in which something is being written.
_WORK = ".mqc-partial-"
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


# ---- reading


def check_regular(path: Path, kind: type[MqcError]) -> None:
    """Raise an error of a kind unless `path` is a file: a pipe or a device may have no end."""
    try:
        _check_mode(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        raise kind(f"cannot read {path}: {reason(error)}") from error


def read_text(path: Path, kind: type[MqcError], most_bytes: int = TEXT_BYTES) -> str:
    """The UTF-8 text of a file. Raises an error of a kind for what is no file, too large, or no text."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            _check_mode(os.fstat(file.fileno()).st_mode)
            return bounded(file, most_bytes).decode("utf-8")
    except (OSError, ValueError) as error:
        raise kind(f"cannot read {path} as UTF-8 text: {reason(error)}") from error


def bounded(file: BinaryIO, most_bytes: int = TEXT_BYTES) -> bytes:
    """All of an open file. Raises `ValueError` if it is larger."""
    data = bytearray()
    while part := file.read(_CHUNK_BYTES):
        data += part
        if len(data) > most_bytes:
            raise ValueError(f"it has more than {most_bytes} bytes")
    return bytes(data)


def json_object(text: str) -> dict[str, Any]:
    """A JSON object whose texts are valid Unicode. Raises `ValueError`."""
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()  # "\ud800" is JSON, and can be neither shown nor saved
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    return found


def _without_waiting(path: str, flags: int) -> int:
    """Opening a pipe would wait for one who writes."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_mode(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file")


def reason(error: Exception) -> str:
    """What an error says, without the path that stands beside it."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# ---- writing


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file to; at the end of the block it becomes `path`, or what the link `path` names.

    If the block fails, `path` stays as it was. Devices and pipes are given the bytes. Raises `StorageError`
    if the block raises an error of the disk.
    """
    with _storage_errors(path):
        target = _behind_links(path)
        if os.path.isdir(target):
            raise StorageError(f"cannot write {path}: it is a folder")
        passed_on = _is_open_elsewhere(path)
        with work_folder(Path(tempfile.gettempdir()) if passed_on else target.parent) as work:
            partial = work / (target.name or "file")
            partial.touch()
            mode = stat.S_IMODE(partial.stat().st_mode)  # what umask gives
            yield partial
            if passed_on:
                with open(partial, "rb") as made, open(path, "wb", opener=_without_waiting) as out:
                    os.set_blocking(out.fileno(), True)
                    shutil.copyfileobj(made, out)
            else:
                os.chmod(partial, mode)
                os.replace(partial, target)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; at the end of the block it becomes `path`, or what the link `path` names.

    Folders above are made. If the block fails, `path` stays as it was. Raises `StorageError` if the block
    raises an error of the disk.
    """
    with _storage_errors(path):
        target = _behind_links(path)
        with _folders_above(target), work_folder(target.parent) as work:
            made, aside = work / "new", work / "old" / target.name
            made.mkdir()
            yield made
            if os.path.lexists(target):
                aside.parent.mkdir()
                os.rename(target, aside)  # it comes back if the next step fails
            os.rename(made, target)


@contextlib.contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder, which is gone after the block. What processes left that were killed goes first, with a
    warning in the log.

    A lock says that the process lives. It ends with the process, however that ends. Where a file system has
    no locks, nothing is removed.
    """
    _remove_leftovers(parent)
    folder, handle = _locked_folder(parent)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            _bring_back(folder)
            shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises `StorageError`."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise StorageError(f"cannot write {path}: the text is no valid Unicode: {error}") from error
    with replacing(path) as partial:
        partial.write_bytes(data)


def check_writable(path: Path, folder: bool = False) -> None:
    """Raise `StorageError` if `path` cannot be written: before the work, whose result would be lost.

    folder: a folder is written, with those above it.
    """
    with _storage_errors(path):
        target = _behind_links(path)
        if not folder and os.path.isdir(target):
            raise StorageError(f"cannot write {path}: it is a folder")
        if _is_open_elsewhere(path):
            return
        above = target.parent
        while folder and not os.path.exists(above):
            above = above.parent
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(target)  # its name may be too long
        with work_folder(above):
            pass


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {reason(error)}") from error


@contextlib.contextmanager
def _folders_above(path: Path) -> Iterator[None]:
    """Make them; those that were made go again if the block fails."""
    missing = [folder for folder in path.parents if not os.path.exists(folder)]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


def _behind_links(path: Path) -> Path:
    found = Path(os.path.realpath(path))
    if found.is_symlink():
        raise StorageError(f"cannot write {path}: its links form a circle")
    return found


def _is_open_elsewhere(path: Path) -> bool:
    """Whether bytes go into what `path` is, e.g. a device, a pipe or `/dev/stdout`."""
    exists = os.path.exists(path) and not os.path.isdir(path)
    return exists and (os.path.abspath(path).startswith("/dev/") or not os.path.isfile(path))


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_WORK, dir=parent))
        with contextlib.suppress(FileNotFoundError):  # who removes leftovers may come before the lock
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.exists(folder):
                return folder, handle
            os.close(handle)


def _remove_leftovers(parent: Path) -> None:
    for folder in parent.glob(f"{_WORK}*"):
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _bring_back(folder)
                held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                shutil.rmtree(folder, ignore_errors=True)
                _log.warning("removed what a process that was killed left: %s, %.1f MB", folder, held / 1e6)
            finally:
                os.close(handle)


def _bring_back(work: Path) -> None:
    """What stood where the new folder was to stand, and does not yet, comes back."""
    old = work / "old"
    for kept in old.iterdir() if os.path.isdir(old) else ():
        if not os.path.lexists(work.parent / kept.name):
            os.rename(kept, work.parent / kept.name)
