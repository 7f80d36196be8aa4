"""Texts on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text without what would steer a terminal: files from outside may hold it."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
