"""Exported C projects, built with CMake as an app developer builds them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mqc.arrays import Array
from mqc.runtime.program import Program

DRIVER = Path(__file__).parent / "runtime_driver.c"
STRICT = "-Wall -Wextra -Werror"


def export(program: Program, folder: Path) -> Path:
    program.export(folder)
    return folder


def build(project: Path, *options: str, flags: str = "", sets: Sequence[str] = ()) -> Path:
    """The folder of a build: the library and the examples, without a warning."""
    folder = Path(tempfile.mkdtemp(prefix="build-", dir=project.parent))
    if sets:
        options = (*options, f"-DMQC_INSTRUCTION_SETS={';'.join(sets)}")
    command = ["cmake", "-S", project, "-B", folder, f"-DCMAKE_C_FLAGS={STRICT} {flags}", *options]
    for step in (command, ["cmake", "--build", folder]):
        done = subprocess.run(list(map(str, step)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def driver(project: Path, built: Path, compiler: str = "cc", flags: Sequence[str] = ()) -> Path:
    """`runtime_driver.c` with the static library of a build."""
    program = built / "driver"
    subprocess.run(
        [
            compiler, "-std=c11", "-g1", *STRICT.split(), *flags, f"-I{project}/include", f"-I{project}/src",
            str(DRIVER), str(built / "libmqc.a"), "-lm", "-pthread", "-o", str(program),
        ],
        check=True,
    )  # fmt: skip
    return program


def run(command: Sequence[object], **options: object) -> str:
    """What a command prints. It must end with status 0."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


def evaluated(
    command: Sequence[object], project: Path, ids: Sequence[int], new: int, threads: int = 2
) -> tuple[str, Array, list[int]]:
    """Of a driver: the instruction set, logits `[ids, vocabulary]`, and greedy ids."""
    said = run([*command, "run", project / "model", threads, new, *ids])
    name, logits, tokens = said.split("\n")
    return name, np.array(logits.split(), np.int32).reshape(len(ids), -1), [*map(int, tokens.split())]
