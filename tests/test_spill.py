"""Large weights stand in temporary files that leave nothing behind."""

from __future__ import annotations

import gc
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqc.arrays import row_blocks
from mqc.errors import StorageError
from mqc.ir import spill
from mqc.ir.weight_store import WeightStore, content_hash
from tests.models import tiny_model
from tests.test_api import tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MQC_TMP", str(tmp_path))
    return tmp_path


def test_where_the_files_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in `/tmp`, which many systems keep in memory, unless that is asked for or there is no other."""
    monkeypatch.setattr(spill, "_VAR_TMP", tmp_path)
    for name in ("MQC_TMP", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert spill.folder() == tmp_path
    monkeypatch.setenv("TMPDIR", "/a")
    assert spill.folder() == Path("/a")
    monkeypatch.setenv("MQC_TMP", "/b")
    assert spill.folder() == Path("/b")
    for name in ("MQC_TMP", "TMPDIR"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(spill, "_VAR_TMP", tmp_path / "missing")
    assert spill.folder() == Path(tempfile.gettempdir())


def open_files(folder: Path) -> int:
    """Temporary files of a folder that this process has open; they have no name there."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        if entry.exists() or entry.is_symlink():
            found += os.readlink(entry).startswith(str(folder))
    return found


@settings(max_examples=30)
@given(st.integers(1, 9000), st.integers(1, 3000), st.sampled_from(["f4", "i1", "u2"]))
def test_a_large_tensor_comes_back(rows: int, columns: int, dtype: str) -> None:
    """Whatever its layout; and built block by block it is the same."""
    array = np.arange(columns * rows).astype(dtype).reshape(columns, rows).T
    store = WeightStore()
    ref = store.add("w", array)
    assert (store[ref] == array).all() and store[ref].flags.writeable and store[ref].flags.c_contiguous
    assert ref.hash.data == content_hash(array)
    assert store.build("w", array.shape, dtype, lambda block: array[block]) == ref


def test_row_blocks_make_up_the_array() -> None:
    for shape in ((0, 3), (1, 1), (5, 1 << 22), (9000, 1000), (3,)):
        blocks = list(row_blocks(shape))
        assert [i for block in blocks for i in range(block.start, block.stop)] == list(range(shape[0]))
        sizes = [(block.stop - block.start) * math.prod(shape[1:]) for block in blocks]
        assert all(size <= 1 << 23 or size == math.prod(shape[1:]) for size in sizes)


def test_files_have_no_names_and_go_with_their_tensors(folder: Path) -> None:
    store = WeightStore()
    small = store.add("small", np.zeros(10, np.float32))
    assert open_files(folder) == 0
    refs = [store.add("w", np.full((1 << 10, 1 << 10), i, np.float32)) for i in range(3)]
    assert open_files(folder) > 0
    assert not list(folder.iterdir())
    assert [float(store[ref][0, 0]) for ref in refs] == [0, 1, 2]
    store.keep_only([small])
    del store
    gc.collect()
    assert open_files(folder) == 0


def test_a_killed_process_leaves_nothing(folder: Path) -> None:
    code = (
        "import os, signal, numpy as np\nfrom mqc.ir.weight_store import WeightStore\n"
        "store = WeightStore()\nstore.add('w', np.zeros((1 << 22,), np.float32))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    free = os.statvfs(folder).f_bfree
    run = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert run.returncode == -9
    assert not list(folder.iterdir())
    assert os.statvfs(folder).f_bfree > free - (1 << 22) // os.statvfs(folder).f_bsize


def test_no_room_is_said_before_the_work(folder: Path) -> None:
    with pytest.raises(StorageError, match=rf"the model takes up to 1000000000\.0 GB.*{folder}.*MQC_TMP"):
        spill.check_room(10**18, "the model")
    spill.check_room(1, "the model")


def test_a_disk_that_is_full_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, file: object) -> None:
            self._file = file

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    real = spill.tempfile.TemporaryFile
    monkeypatch.setattr(spill.tempfile, "TemporaryFile", lambda **options: Full(real(**options)))
    with pytest.raises(StorageError, match=r"cannot write 4 MB of weights .*No space left.*MQC_TMP"):
        WeightStore().add("w", np.zeros(1 << 20, np.float32))
    monkeypatch.undo()
    monkeypatch.setenv("MQC_TMP", str(folder / "missing"))
    with pytest.raises(StorageError, match="missing: No such file"):
        WeightStore().add("w", np.zeros(1 << 20, np.float32))


@pytest.mark.slow
def test_a_compilation_that_runs_out_of_room_leaves_nothing(folder: Path) -> None:
    """Its output is absent, the error says what to do, and no temporary file is left."""
    tiny_model("llama", intermediate_size=16384).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    (folder / "text").write_text("abc " * 2000)
    (folder / "tmp").mkdir()
    run = subprocess.run(
        [sys.executable, "-m", "mqc", "compile", folder / "model", "-o", folder / "out.mqc",
         "--calibration", folder / "text"],
        env=os.environ | {"MQC_TMP": str(folder / "tmp")}, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 26, 1 << 26)),
    )  # fmt: skip
    assert run.returncode == 1
    assert re.search(r"StorageError: cannot write 2 MB of weights .*File too large.*MQC_TMP", run.stderr)
    assert sorted(entry.name for entry in folder.iterdir()) == ["model", "text", "tmp"]
    assert not list((folder / "tmp").iterdir())
