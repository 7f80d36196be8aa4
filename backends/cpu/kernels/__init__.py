"""C sources of the CPU kernels, in the order in which they are concatenated."""

from __future__ import annotations

from importlib.resources import files

#: Later files use earlier ones.
PARTS = (
    "prelude.h", "threads.c", "requant.c", "dot.c", "linear.c", "elementwise.c", "norms.c",
    "attention.c",
)  # fmt: skip


def source(*parts: str) -> str:
    """Text of the given kernel files, joined."""
    return "\n".join((files(__package__) / part).read_text(encoding="utf-8") for part in parts)
