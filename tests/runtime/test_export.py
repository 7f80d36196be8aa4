"""Folders of files for a target, and options of targets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mqc
from mqc.backend import Backend, parse_options
from mqc.errors import ArtifactError, InputError, StorageError, TargetError
from mqc.registry import backend_for
from mqc.runtime.program import Program

KNOWN = {"style": str, "tokens": tuple, "context": int, "htp_binary": bool}


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mqc", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_runs_as_the_cpu_program_does(onnx_program: Program, program: Program, tmp_path: Path) -> None:
    onnx_program.save(tmp_path / "p.mqc")
    loaded = mqc.load(tmp_path / "p.mqc").configure(style="integer", threads=1)
    assert (loaded.integer_logits([5, 9, 3]) == program.integer_logits([5, 9, 3])).all()
    assert loaded.generate("hello", 8) == program.generate("hello", 8)
    text = "hello, this is a text. " * 9
    assert loaded.perplexity(text, 2, length=40) == program.perplexity(text, 2, length=40)


def test_export(onnx_program: Program, tmp_path: Path) -> None:
    path = tmp_path / "files"
    onnx_program.export(path, runtime="npu", tokens=(8, 1), context=40)
    manifest = json.loads((path / "manifest.json").read_text())
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"manifest.json"}
    assert names == set(manifest["files"])
    assert {"decode.onnx", "prefill_8.onnx", "weights.bin", "initial_cache.safetensors"} <= names
    assert {"decode.1.0.0.encodings", "decode.2.0.0.encodings", "tokenizer.json"} <= names
    assert {name for name in names if name.startswith("host/")} == {"host/files.hpp", "host/ort_qnn.cpp"}
    assert manifest["export"] == {"runtime": "npu", "tokens": [8, 1], "context": 40}
    assert manifest["context"] == 40
    with pytest.raises(ArtifactError, match="exported for onnx-int8"):
        mqc.load(path)
    onnx_program.export(path)
    assert (path / "model.onnx").exists() and not (path / "decode.onnx").exists()
    hosts = {file.name for file in (path / "host").iterdir()}
    assert hosts == {"files.hpp", "cpu.cpp", "Generate.java"}


def test_a_program_and_its_files_do_not_replace_each_other(onnx_program: Program, tmp_path: Path) -> None:
    onnx_program.save(tmp_path / "p.mqc")
    with pytest.raises(StorageError, match="holds a compiled program"):
        onnx_program.export(tmp_path / "p.mqc")
    mqc.load(tmp_path / "p.mqc")
    onnx_program.export(tmp_path / "files")
    with pytest.raises(StorageError, match="holds exported files"):
        onnx_program.save(tmp_path / "files")


def test_a_failed_export_leaves_nothing(onnx_program: Program, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="style"):
        onnx_program.export(tmp_path / "files", style="none")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(StorageError, match="not an mqc"):
        onnx_program.export(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"


def test_targets_without_files_say_so(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(type(backend_for("cpu-int8")), "export", Backend.export)
    with pytest.raises(TargetError, match="backend cpu exports no files"):
        program.export(tmp_path / "files")
    assert not list(tmp_path.iterdir())


def test_options(onnx_program: Program, program: Program) -> None:
    given = ["style=qdq", "tokens=128,1", "context=64", "htp_binary=true"]
    assert parse_options("t", KNOWN, given) == {
        "style": "qdq", "tokens": (128, 1), "context": 64, "htp_binary": True,
    }  # fmt: skip
    for bad in ("context=many", "tokens=1,x", "htp_binary=yes"):
        with pytest.raises(InputError, match=bad.split("=")[0]):
            parse_options("t", KNOWN, [bad])
    with pytest.raises(InputError, match=r"has no option 'isa'.*style"):
        onnx_program.configure(isa="avx2")
    with pytest.raises(InputError, match=r"has no option 'style'.*threads"):
        program.configure(style="qdq")
    with pytest.raises(InputError, match="threads must be int"):
        program.configure(threads="two")


@pytest.mark.slow
def test_command_line(onnx_program: Program, tmp_path: Path) -> None:
    path = tmp_path / "p.mqc"
    onnx_program.save(path)
    found = command("export", path, "-o", tmp_path / "files", "-O", "style=integer", "--json")
    assert found.returncode == 0, found.stderr
    assert set(json.loads(found.stdout)["files"]) >= {"model.onnx", "weights.bin"}
    answer = command("run", path, "--prompt", "hello", "--max-new-tokens", 4, "-O", "style=integer", "--json")
    assert json.loads(answer.stdout) == {"text": onnx_program.generate("hello", 4, engine="oracle")}
    again = command("run", path, "--prompt", "hello", "--max-new-tokens", 4, "-O", "threads=1", "--json")
    assert again.returncode == 0, again.stderr
    bench = command("bench", path, "--prompt-tokens", 8, "--new-tokens", 2, "--json")
    assert json.loads(bench.stdout)["decode_tok_s"] > 0
    compared = command("debug", "compare", path, "-O", "style=integer", "--length", 16, "--json")
    assert compared.returncode == 0, compared.stderr
    values = json.loads(compared.stdout)["values"]
    assert len(values) > 50 and all(value["local_db"] is None for value in values), "no error at all"
    refused = command("run", path, "--prompt", "hello", "-O", "style=wrong")
    assert refused.returncode == 1 and "InputError" in refused.stderr
