"""Learning on another device than the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.learning.other_device import CASES, DEVICE


@pytest.mark.slow
def test_another_device_learns_the_same_bits(tmp_path: Path) -> None:
    """In a process of its own, because torch keeps the device; with one thread, because gradients are
    computed in another one there, which may have fewer."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.learning.other_device", tmp_path],
        cwd=root, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for name in CASES:
        texts = [(tmp_path / f"{name}-{device}").read_text() for device in ("cpu", DEVICE)]
        assert texts[0] == texts[1], name
