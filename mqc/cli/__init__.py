"""The command line."""

from __future__ import annotations

import io
import os
import re
import sys

from mqc.cli.packages import extra_of
from mqc.errors import InputError, MqcError, StorageError

#: What libraries say where there is not enough memory, under many names of errors.
_NO_MEMORY = re.compile(
    r"(allocat|map).*(memory|segment)|memory.*alloc|out of memory|start new thread", re.I | re.S
)


def main() -> None:
    """Run the command line. An `MqcError` prints its message and exits with 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an encoding may lack what is printed
    # Libraries that load models draw bars of their own, over ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Threads of torch that wait by spinning for long take the core from those that work, when another
    # process runs; those that never spin are woken by the kernel, at each of the many small ops.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # torch asks for huge pages, for tensors of more than 2 MB.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    debugging = "--debug" in sys.argv
    try:
        _run([a for a in sys.argv[1:] if a != "--debug"])
    except BrokenPipeError:
        # Whoever read has enough. Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except BaseException as error:  # panics of Rust are no `Exception`
        named = told(error)
        if debugging or named is None:
            raise
        _print(named)
        if not isinstance(error, MqcError):
            sys.unraisablehook = lambda _: None  # what libraries do at the end fails of the same cause
        sys.exit(1)


def _run(arguments: list[str]) -> None:
    # Here, so that what fails as they are imported is told of too.
    from mqc.cli import (  # noqa: F401  (they register their commands)
        chat,
        debug,
        doctor,
        encodings,
        explore,
        ir,
        programs,
        run,
        serve,
        trace,
    )
    from mqc.cli.common import OPTIONAL_VALUE, app

    app(args=[f"{a}=*" if a in OPTIONAL_VALUE else a for a in arguments])


def told(error: BaseException) -> MqcError | None:
    """The error as mqc tells it; None for one that is a fault of mqc."""
    if isinstance(error, MqcError):
        return error
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        extra = extra_of(package)
        return InputError(f"this needs {package}: pip install 'mqc[{extra}]'") if extra else None
    if isinstance(error, MemoryError) or (not isinstance(error, OSError) and _NO_MEMORY.search(str(error))):
        return StorageError(f"there is not enough memory: {error}".removesuffix(": "))
    # SystemError: what CPython says if memory ends within an import.
    if type(error).__name__ in ("PanicException", "SystemError"):
        return StorageError(f"a library gave up: {error}; was there enough memory?")
    return StorageError(str(error)) if isinstance(error, OSError) else None


def _print(error: MqcError) -> None:
    lines = [f"error: {type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
    try:
        from mqc.cli.common import errors, say

        say("\n".join(lines), errors, "red")
    except (MemoryError, ImportError):
        print(*lines, sep="\n", file=sys.stderr)
