"""Host programs that generate text from exported files: what a user compiles for a device."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

#: For `model.onnx`, whose lengths are dynamic; and for the NPU's graphs, whose lengths are fixed.
CPU = ("files.hpp", "cpu.cpp", "Generate.java")
NPU = ("files.hpp", "ort_qnn.cpp")
FOLDER = "host"


def write(folder: Path, names: tuple[str, ...]) -> None:
    """Copy host programs into a new folder `host`."""
    (folder / FOLDER).mkdir()
    for name in names:
        text = (files(__package__) / name).read_text(encoding="utf-8")
        (folder / FOLDER / name).write_text(text, encoding="utf-8")
