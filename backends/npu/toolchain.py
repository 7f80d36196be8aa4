"""Building the HVX runtime with clang, with a cache; finding the tools that build and run it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from mqc.backends.cpu.build import cache_folder
from mqc.backends.npu import commands, kernels
from mqc.errors import StorageError, ToolchainError
from mqc.files import work_folder

#: QEMU (7.2) knows no instruction newer than v67, and no floating point of HVX.
FLAGS = [
    "--target=hexagon-unknown-linux-musl", "-mcpu=hexagonv67", "-mhvx=v67", "-mhvx-length=128b", "-std=c11",
    "-O2", "-Wall", "-Wextra", "-ffreestanding", "-fno-builtin",
]  # fmt: skip
PACKAGES = "apt-get install clang-19 lld-19 llvm-19 qemu-user"


def find(*names: str) -> str:
    """Path of the first of some programs that is installed. Raises `ToolchainError` if none is."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise ToolchainError(f"{' or '.join(names)} is not found; on Debian: {PACKAGES}")


def clang() -> str:
    """A clang that compiles for Hexagon."""
    path = find("clang-19", "clang")
    if "hexagon" not in _output(path, "-print-targets"):
        raise ToolchainError(f"{path} cannot compile for Hexagon; on Debian: {PACKAGES}")
    return path


def clang_version() -> str:
    return _output(clang(), "-dumpversion").strip()


def linker() -> str:
    return find("ld.lld-19", "ld.lld")


def qemu() -> list[str]:
    """Command that runs a Hexagon program."""
    return [find("qemu-hexagon"), "-cpu", "v67"]


def objects(folder: Path) -> list[Path]:
    """Write the sources, `commands.h` and an object of each source into a folder; return the objects."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _texts().items():
        (folder / name).write_text(text, encoding="utf-8")
    found = []
    for name in kernels.SOURCES:
        found.append((folder / name).with_suffix(".o"))
        _run([clang(), *FLAGS, "-c", name, "-o", found[-1].name], folder)
    return found


def build() -> Path:
    """The runtime, an ELF for `qemu()`, from the cache or built now; sources and objects lie beside it.

    The folder's name holds the hash of sources, flags and compiler version; it appears only whole.
    Raises `ToolchainError` if a tool is missing or fails, `StorageError` if the cache cannot be written.
    """
    parts = [*_texts().values(), *FLAGS, _output(clang(), "--version")]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = cache_folder() / f"hexagon-{key}"
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with work_folder(folder.parent) as work:
                made = work / "made"
                names = [path.name for path in objects(made)]
                _run([linker(), "-static", *names, "-o", "runtime"], made)
                try:
                    os.replace(made, folder)
                except OSError:
                    if not folder.is_dir():  # else another process was first
                        raise
        except OSError as error:
            raise StorageError(
                f"cannot build in {folder.parent}: {error}; set MQC_CACHE to a folder that can be written"
            ) from error
    return folder / "runtime"


def _texts() -> dict[str, str]:
    return {**kernels.texts(), "commands.h": commands.header()}


def _run(command: list[str], folder: Path) -> None:
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        raise ToolchainError(f"{command[0]} failed ({run.returncode}):\n{run.stderr.strip()}")


@cache
def _output(*command: str) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise ToolchainError(f"{' '.join(command)} failed: {run.stderr.strip()}")
    return run.stdout
