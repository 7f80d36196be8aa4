"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mqc.calibration import Calibration
from mqc.errors import StorageError
from mqc.files import replacing, write_text


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyError), replacing(tmp_path / "a") as partial:
        partial.write_text("new")
        raise KeyError
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a").read_text() == "text"


@pytest.mark.parametrize("place", ["missing/x", "file/x", "."])
def test_places_that_hold_no_file(tmp_path: Path, place: str) -> None:
    write_text(tmp_path / "file", "")
    with pytest.raises(StorageError, match="cannot write"):
        write_text(tmp_path / place, "text")
    with pytest.raises(StorageError, match="cannot write"):
        Calibration(np.zeros((1, 4), np.int64)).save(tmp_path / place)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
