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

#: By marker: the variable that requires them, programs, and Debian's packages.
TOOLS = {
    "cmake": ("MQC_REQUIRE_CMAKE", ["cmake"], "cmake"),
    "hexagon": ("MQC_REQUIRE_HEXAGON", ["qemu-hexagon"], "clang-19 lld-19 llvm-19 qemu-user"),
    "arm": (
        "MQC_REQUIRE_ARM", ["qemu-aarch64", "aarch64-linux-gnu-gcc"],
        "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user",
    ),
    "mlir": ("MQC_REQUIRE_MLIR", ["mlir-opt-19"], "mlir-19-tools"),
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups for `--dist loadgroup`, and what this machine cannot run.

    Tests of a file run in one process, which shares what they compile; so do those of files that state a
    group. Slow ones come first, so that no process is left alone with them; of these last those for which
    another group compiles first.

    Tests of other machines' code need tools (TOOLS). Where these are missing they are skipped, unless the
    environment requires them, as CI's does.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
    items.sort(
        key=lambda item: (item.get_closest_marker("slow") is None, item.path.name == "test_smollm2.py")
    )
    for marker, (variable, programs, packages) in TOOLS.items():
        missing = [program for program in programs if shutil.which(program) is None]
        if os.environ.get(variable) or not missing:
            continue
        skip = pytest.mark.skip(reason=f"no {', '.join(missing)}: apt-get install {packages}")
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(skip)
