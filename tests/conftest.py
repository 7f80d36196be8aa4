"""What all tests share."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import settings

# A slow machine is no failure.
settings.register_profile("mqc", deadline=None)
settings.load_profile("mqc")

# As the command line sets it, before torch is imported: waiting threads soon leave the core to others.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups for `--dist loadgroup`, and what this machine cannot run.

    Tests of a file run in one process, which shares what they compile; so do those of files that state a
    group. Slow ones come first, so that no process is left alone with them; of these last those for which
    another group compiles first.

    Tests marked `hexagon` need clang for Hexagon and QEMU. Where both are missing they are skipped,
    unless MQC_REQUIRE_HEXAGON is set, as it is in CI.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
    items.sort(
        key=lambda item: (item.get_closest_marker("slow") is None, item.path.name == "test_smollm2.py")
    )
    if os.environ.get("MQC_REQUIRE_HEXAGON") or shutil.which("qemu-hexagon"):
        return
    skip = pytest.mark.skip(reason="no qemu-hexagon: apt-get install clang-19 lld-19 llvm-19 qemu-user")
    for item in items:
        if item.get_closest_marker("hexagon"):
            item.add_marker(skip)
