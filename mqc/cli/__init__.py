"""The command line."""

from __future__ import annotations

import os
import sys

from mqc.cli import debug, ir, programs  # noqa: F401  (they register their commands)
from mqc.cli.common import OPTIONAL_VALUE, app, errors
from mqc.errors import MqcError, StorageError


def main() -> None:
    """Run the command line. An `MqcError` prints its message and exits with 1."""
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
    except (MqcError, OSError) as error:
        if debugging:
            raise
        named = error if isinstance(error, MqcError) else StorageError(str(error))
        lines = [f"error: {type(named).__name__}: {named}", *getattr(named, "__notes__", [])]
        errors.print("\n".join(lines), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
