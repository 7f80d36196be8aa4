"""C sources of the HVX kernels, and of the runtime that executes op lists with them."""

from __future__ import annotations

from importlib.resources import files

HEADERS = ("hexagon.h", "vectors.h", "rows.h", "system.h")
#: Each is compiled by itself. Only the last one needs Linux.
SOURCES = ("integer.c", "linear.c", "norms.c", "elementwise.c", "attention.c", "runtime.c")


def texts() -> dict[str, str]:
    """Text of each file, by name."""
    return {name: (files(__package__) / name).read_text(encoding="utf-8") for name in (*HEADERS, *SOURCES)}
