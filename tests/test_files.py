"""Files appear whole or not at all; what is read from outside has an end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mqc.analysis.ir_text import parse_file
from mqc.calibration import Calibration
from mqc.compiler.recipe import load_recipe
from mqc.errors import MqcError, StorageError
from mqc.files import TEXT_BYTES, json_object, replacing, replacing_folder, write_text
from mqc.ir.weight_store import WeightStore
from mqc.runtime.program import Program
from mqc.runtime.tokenizer import Tokenizer
from tests.runtime.conftest import onnx_program, program  # noqa: F401  (fixtures)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyError), replacing(tmp_path / "a") as partial:
        partial.write_text("new")
        raise KeyError
    with pytest.raises(KeyError), replacing_folder(tmp_path / "b") as partial:
        (partial / "file").touch()
        raise KeyError
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for text in ("new", "again"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "a").read_text() == text
    (tmp_path / "to a folder").symlink_to("folder")
    for text in ("new", "again"):
        with replacing_folder(tmp_path / "to a folder") as made:
            write_text(made / text, text)
        assert (tmp_path / "to a folder").is_symlink() and names(tmp_path / "folder") == [text]
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(StorageError, match="links form a circle"):
        write_text(tmp_path / "circle", "text")
    assert names(tmp_path) == ["a", "circle", "folder", "link", "to a folder"]


def test_devices_and_pipes_are_given_the_bytes(tmp_path: Path) -> None:
    write_text(Path("/dev/null"), "text")
    with pytest.raises(StorageError, match="No space left"):
        write_text(Path("/dev/full"), "text")
    assert Path("/dev/null").is_char_device() and Path("/dev/full").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="cannot write"):  # nobody reads
        write_text(tmp_path / "pipe", "text")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text" and names(tmp_path) == ["pipe"]
    os.close(reader)


@pytest.mark.parametrize("place", ["missing/x", "file/x", ".", "x" * 300])
def test_places_that_hold_no_file(tmp_path: Path, place: str) -> None:
    write_text(tmp_path / "file", "")
    with pytest.raises(StorageError, match="cannot write"):
        write_text(tmp_path / place, "text")
    with pytest.raises(StorageError, match="cannot write"):
        Calibration(np.zeros((1, 4), np.int64)).save(tmp_path / place)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("mask", [0o022, 0o007])
def test_modes_are_those_that_umask_gives(
    program: Program, onnx_program: Program, tmp_path: Path, mask: int  # noqa: F811
) -> None:  # fmt: skip
    before = os.umask(mask)
    try:
        program.save(tmp_path / "p.mqc")
        onnx_program.export(tmp_path / "onnx")
        Calibration(np.zeros((1, 4), np.int64)).save(tmp_path / "calibration")
        write_text(tmp_path / "text", "")
    finally:
        os.umask(before)
    assert (tmp_path / "onnx" / "initial_cache.safetensors").is_file()
    for path in tmp_path.rglob("*"):
        full = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == full & ~mask, path


#: Saves over `a` and `b`; one more step of the saving, and the process waits to be killed.
_SAVE = """
import os, sys
from pathlib import Path
from mqc.files import replacing_folder, write_text

def wait(*arguments):
    print("here", flush=True)
    sys.stdin.read()

real, steps = os.rename, int(sys.argv[1])

def rename(*arguments):
    global steps
    steps -= 1
    (wait if steps < 0 else real)(*arguments)

os.rename = rename
with replacing_folder(Path("a")) as made:
    write_text(made / "file", "new")
    if sys.argv[1] == "-1":
        wait()
"""


@pytest.mark.parametrize("steps", [-1, 0, 1])
def test_what_a_killed_process_left_is_removed(
    tmp_path: Path, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("old")
    saving = subprocess.Popen(
        [sys.executable, "-c", _SAVE, str(steps)], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert saving.stdout is not None and saving.stdout.readline() == b"here\n"
    left = {name for name in names(tmp_path) if name.startswith(".")}
    assert len(left) == 1
    write_text(tmp_path / "b", "")
    assert left < set(names(tmp_path)) and not caplog.text  # it may be at work still
    saving.send_signal(signal.SIGKILL)
    saving.communicate()
    write_text(tmp_path / "b", "")
    assert names(tmp_path) == ["a", "b"] and (tmp_path / "a" / "file").read_text() == "old"
    assert f"removed what a process that was killed left: {tmp_path / left.pop()}, 0.0 MB" in caplog.text


def test_only_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large", "wb") as large:
        large.truncate(TEXT_BYTES + 1)  # takes no room
    (tmp_path / "bytes").write_bytes(b"\xff")
    places = [tmp_path / name for name in ("folder", "pipe", "bytes", "absent", "x" * 300, "\0", "\ud800")]
    for path in (*places, tmp_path / "large", Path("/dev/zero")):
        for read in (parse_file, load_recipe, WeightStore.load, Calibration.load):
            with pytest.raises(MqcError):
                read(path)
        for read in (Program.load, Tokenizer.read):
            with pytest.raises(MqcError):
                read(path)
    for name in ("tokenizer.json", "manifest.json"):
        os.mkfifo(tmp_path / "folder" / name)
    for read in (Program.load, Tokenizer.read):
        with pytest.raises(MqcError):
            read(tmp_path / "folder")


@pytest.mark.parametrize(
    "text", ['{"a": "\\ud800"}', '{"\\udfff": 1}', "[1]", '{"a":' * 100_000, "{", "1" * 9999]
)
def test_json_that_is_no_object_of_texts(text: str) -> None:
    with pytest.raises(ValueError):
        json_object(text)


def test_text_that_is_no_unicode_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no valid Unicode"):
        write_text(tmp_path / "a", "\ud800")
    assert names(tmp_path) == []
