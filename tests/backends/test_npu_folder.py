"""The folder that a person takes to a phone: its README says what is there, and points nowhere else."""

from __future__ import annotations

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from mqc.backends.npu import NpuBackend, device_files
from tests.compiled import lower_for_npu, quantized
from tests.models import tiny_model


def written(folder: Path, **options: Any) -> tuple[str, set[str]]:
    """The README, and the names of all files."""
    ctx, module = quantized(tiny_model("llama"))
    lower_for_npu(ctx, module)
    NpuBackend().export(module, ctx.weights, folder, {}, **options)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    text = (folder / "README.md").read_text(encoding="utf-8")
    check(text, names)
    return text, names


def check(text: str, names: set[str]) -> None:
    """Every file is listed, and every path in the text is a file or a pattern of some."""
    head = text.split("## Not written")[0]
    listed = {
        name for cell in re.findall(r"^\| (`.*?) \|", head, re.M) for name in re.findall(r"`(.*?)`", cell)
    }
    assert all(any(fnmatch(name, pattern) for name in names) for pattern in listed)
    assert {name for name in names if not any(fnmatch(name, p) for p in listed)} == {"README.md"}
    paths = {path for path in re.findall(r"`([^`\s]*)`", text) if "/" in path and path != "onnx/"}
    assert all(any(fnmatch(name, path) for name in names) for path in paths), paths


@pytest.mark.hexagon
def test_everything(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    text, names = written(tmp_path)
    assert "## Not written\n\n- nothing\n" in text
    assert {"hvx/linear.o", "onnx/decode_ctx_qnn.bin", "onnx/host/ort_qnn.cpp"} <= names
    assert "| `hvx/*.o` | their objects" in text and "`onnx/decode_ctx.onnx`" in text


def test_without_a_compiler_and_context_binaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    text, names = written(tmp_path, htp_binary=False)
    absent = text.split("## Not written")[1].split("##")[0]
    assert "objects of the HVX sources: clang" in absent and "context binaries" in absent
    assert "objects for Hexagon" not in text and not any(name.endswith(".o") for name in names)
    assert "hvx/linear.c" in names and "compiled for HTP" not in text


def test_without_onnx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_files, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    text, names = written(tmp_path)
    assert "ONNX graphs and encodings: they need the packages" in text
    assert "## ONNX Runtime with QNN" not in text and not any(name.startswith("onnx") for name in names)
