"""Programs on disk: whole or not at all, and refused when anything changed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mqc
from mqc.cli.modules import read_module
from mqc.errors import ArtifactError, MqcError, StorageError
from mqc.ir.weight_store import WeightStore
from mqc.runtime.program import Program

FILES = [
    "manifest.json", "program.mlir", "weights.safetensors", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
]  # fmt: skip


def test_round_trip(program: Program, saved: Path) -> None:
    loaded = mqc.load(saved)
    assert (loaded.integer_logits([5, 9, 3]) == program.integer_logits([5, 9, 3])).all()
    assert loaded.generate("hello", 8) == program.generate("hello", 8)
    assert sorted(p.name for p in saved.iterdir()) == sorted(FILES)


def test_saving_a_loaded_program_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    mqc.load(saved).save(tmp_path / "again.mqc")
    for name in FILES:
        assert (tmp_path / "again.mqc" / name).read_bytes() == (saved / name).read_bytes()


def test_weights_are_memory_mapped_and_aligned(saved: Path) -> None:
    store = WeightStore.load(saved / "weights.safetensors")
    big = [a for a in store._tensors.values() if a.nbytes % 64 == 0]
    assert big and all(a.ctypes.data % 64 == 0 and not a.flags.owndata for a in big)


def test_needs_neither_torch_nor_transformers(saved: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'scipy', 'networkx'): sys.modules[name] = None\n"
        "import mqc\n"
        f"print(repr(mqc.load({str(saved)!r}).generate('hello', 4)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == repr(mqc.load(saved).generate("hello", 4))


@pytest.mark.parametrize("name", FILES)
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ArtifactError, match=name if name != "manifest.json" else "not an mqc program"):
        mqc.load(saved)


@pytest.mark.parametrize("name", FILES[1:])
def test_truncated_file(saved: Path, name: str) -> None:
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[:-7])
    with pytest.raises(ArtifactError, match=f"{name} is truncated"):
        mqc.load(saved)


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_bit_flip(saved: Path, name: str, place: float) -> None:
    data = bytearray((saved / name).read_bytes())
    data[int(len(data) * place)] ^= 4
    (saved / name).write_bytes(data)
    for read in (mqc.load, read_module):
        with pytest.raises(ArtifactError, match=f"{name} was altered"):
            read(saved)


def test_flipped_manifest_never_crashes(saved: Path) -> None:
    original = (saved / "manifest.json").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(original)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (saved / "manifest.json").write_bytes(data)
        try:
            mqc.load(saved)
        except ArtifactError:
            continue


def test_wrong_format_version(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["format_version"] = 99
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="format version 99, this mqc reads 2"):
        mqc.load(saved)


def test_weight_file_that_lies(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{}"):
        (tmp_path / "w").write_bytes(content)
        with pytest.raises(ArtifactError, match="not a readable safetensors file"):
            WeightStore.load(tmp_path / "w")


def test_altered_weight_is_found_by_its_hash() -> None:
    store = WeightStore()
    ref = store.add("w", np.arange(6, dtype=np.int8))
    store[ref][2] = 9
    with pytest.raises(ArtifactError, match="weight w was altered"):
        store.check([ref])


def test_read_only_folder_leaves_nothing(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(StorageError, match="Read-only file system"):
        program.save(tmp_path / "x.mqc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", range(1, 7))
def test_full_disk_leaves_nothing(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    real, calls = os.fsync, 0

    def fail_later(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail_later)
    with pytest.raises(StorageError, match="No space left on device"):
        program.save(tmp_path / "x.mqc")
    assert list(tmp_path.iterdir()) == []


def test_replaces_a_program_but_nothing_else(program: Program, saved: Path, tmp_path: Path) -> None:
    program.save(saved)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.mqc"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(StorageError, match="is not an mqc program"):
        program.save(tmp_path / "mine")


def test_a_foreign_manifest_is_not_a_program(program: Program, saved: Path, tmp_path: Path) -> None:
    """Browser extensions and web apps have a manifest.json too."""
    other = tmp_path / "extension"
    other.mkdir()
    (other / "manifest.json").write_text('{"name": "mine"}')
    with pytest.raises(StorageError, match="is not an mqc program"):
        program.save(other)
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"also holds notes\.txt"):
        program.save(saved)
    assert (other / "manifest.json").is_file() and (saved / "notes.txt").is_file()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", [1, 2])
def test_the_old_program_survives_a_failed_replacement(
    program: Program, saved: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: int
) -> None:
    real, calls = os.rename, 0

    def fail_once(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise error
        real(source, target)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises((StorageError, KeyboardInterrupt)):
        program.save(saved)
    assert [p.name for p in saved.parent.iterdir()] == ["tiny.mqc"]
    mqc.load(saved)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[]", '{"files": 1}'],
)
def test_manifest_that_is_none(saved: Path, text: str) -> None:
    (saved / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json is not"):
        mqc.load(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [("target", 1), ("recipe", None), ("source", []), ("mac_share_8bit", "x"), ("format_version", True)],
)
def test_manifest_field_of_the_wrong_kind(saved: Path, field: str, value: object) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps(manifest | {field: value}))
    with pytest.raises(ArtifactError, match=r"manifest\.json: |format version"):
        mqc.load(saved)


def restate(saved: Path, pattern: str, replacement: str) -> None:
    """Change program.mlir and make the manifest agree, as someone who means harm would."""
    file = saved / "program.mlir"
    text, count = re.subn(pattern, replacement, file.read_text(), count=1)
    assert count == 1
    file.write_text(text)
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"]["program.mlir"] = {
        "bytes": len(text.encode()),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    (saved / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r'kernel = "(lut_[a-z0-9_]+)"', r'kernel = "abort(); \1"'),
        (r"offset = 64 : i64", 'offset = "0), abort(), A(0"'),
        (r"offset = 64 : i64", "offset = -64 : i64"),
        (r"offset = 64 : i64", "offset = 1048576 : i64"),
        (r"mqc\.arena = \d+ : i64", "mqc.arena = 64 : i64"),
        (r"mqc\.arena = \d+ : i64", 'mqc.arena = "1) + (0"'),
    ],
)
def test_text_of_an_artifact_never_becomes_c(saved: Path, pattern: str, replacement: str) -> None:
    restate(saved, pattern, replacement)
    with pytest.raises(MqcError, match=r"run choose-kernels|run plan-memory"):
        mqc.load(saved).engine()
