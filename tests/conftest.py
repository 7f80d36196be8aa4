"""What all tests share."""

from __future__ import annotations

import os
import shutil

import pytest

# As the command line sets it, before torch is imported: waiting threads soon leave the core to others.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `hexagon` need clang for Hexagon and QEMU. Where both are missing they are skipped,
    unless MQC_REQUIRE_HEXAGON is set, as it is in CI."""
    if os.environ.get("MQC_REQUIRE_HEXAGON") or shutil.which("qemu-hexagon"):
        return
    skip = pytest.mark.skip(reason="no qemu-hexagon: apt-get install clang-19 lld-19 llvm-19 qemu-user")
    for item in items:
        if item.get_closest_marker("hexagon"):
            item.add_marker(skip)
