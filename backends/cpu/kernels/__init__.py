"""C sources of the CPU kernels. `kernels.h` declares what a generated program calls."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files(__package__)))
#: Each is compiled by itself, once per instruction set. (`limits.c` is a program of its own.)
SOURCES = (
    "dot.c", "requant.c", "linear.c", "experts.c", "routing.c", "elementwise.c", "norms.c", "attention.c",
    "convolution.c", "linear_attention.c", "threads.c",
)  # fmt: skip


def texts() -> dict[str, str]:
    """Text of each C file of the folder, by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.[ch]"))}
