"""The command line."""

from __future__ import annotations

import io
import os
import sys

from mqc.cli import debug, ir, programs  # noqa: F401  (they register their commands)
from mqc.cli.common import OPTIONAL_VALUE, app, errors, printable
from mqc.errors import InputError, MqcError, StorageError

#: Packages that an installation may lack, and the extra that brings each.
_EXTRAS = {
    **dict.fromkeys(("torch", "transformers"), "compile"), **dict.fromkeys(("onnx", "onnxruntime"), "onnx"),
    "lm_eval": "lm-eval",
}  # fmt: skip


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
    arguments = [f"{a}=*" if a in OPTIONAL_VALUE else a for a in sys.argv[1:]]
    debugging = "--debug" in arguments
    try:
        app(args=[a for a in arguments if a != "--debug"])
    except BrokenPipeError:
        # Whoever read has enough. Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except (MqcError, OSError, MemoryError, ModuleNotFoundError) as error:
        named = _named(error)
        if debugging or named is None:
            raise
        lines = [f"error: {type(named).__name__}: {named}", *getattr(named, "__notes__", [])]
        errors.print(printable("\n".join(lines)), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _named(error: Exception) -> MqcError | None:
    """The error as mqc tells it; None for one that is a fault of mqc."""
    if isinstance(error, MqcError):
        return error
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            return None
        return InputError(f"this needs {package}: pip install 'mqc[{_EXTRAS[package]}]'")
    return StorageError(str(error) or "there is not enough memory")
