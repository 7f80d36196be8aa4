"""The CPU backend's programs on Arm: cross-compiled, and run under QEMU."""

from __future__ import annotations

import select
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp

from mqc.arrays import Array
from mqc.backend import Engine, Ids, Logits, check_ids
from mqc.backends.cpu.build import INCLUDES, build
from mqc.backends.cpu.emit import emit
from mqc.backends.cpu.engine import CHUNK
from mqc.ir.module import context_length, prefix_tokens, returned_value
from mqc.ir.op import channels
from mqc.ir.weight_store import WeightStore

#: By instruction set: a CPU of QEMU's that has it, and none of the better ones.
CPUS = {"i8mm": "max", "dotprod": "neoverse-n1", "neon": "cortex-a72"}
#: For one answer, under QEMU.
_SECONDS = 300
COMPILER, OBJDUMP = "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objdump"
DRIVER = Path(__file__).parent / "arm_driver.c"


def qemu(isa: str) -> list[str]:
    """Command that runs an Arm program, with Debian's C library for Arm."""
    return ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu", CPUS[isa]]


def library(source: str, isa: str) -> Path:
    """A program's library, built with the options that an Arm host uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", COMPILER)
        return build(source, isa)


def compiled(source: Path, folder: Path) -> Path:
    """A C program for Arm, which may include the kernels' headers."""
    program = folder / source.stem
    subprocess.run([COMPILER, "-O1", "-Wall", "-Werror", *INCLUDES, source, "-o", program], check=True)
    return program


@cache
def _driver() -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    folder = tempfile.TemporaryDirectory(prefix="mqc-arm-")
    return compiled(DRIVER, Path(folder.name)), folder


class ArmEngine(Engine):
    """As `CpuEngine`, in a process of its own."""

    def __init__(self, module: ModuleOp, weights: WeightStore, isa: str, threads: int = 1) -> None:
        program = emit(module, weights)
        self.vocabulary = channels(returned_value(module))
        self.context = context_length(module)
        self.prefix_length = self.position = len(prefix_tokens(module))
        self._constants = tempfile.NamedTemporaryFile(prefix="mqc-arm-")  # noqa: SIM115
        _write(program.constants, Path(self._constants.name))
        command = [*qemu(isa), _driver()[0], library(program.source, isa), self._constants.name]
        self._process = subprocess.Popen(
            [*map(str, command), str(threads), str(self.vocabulary)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number, op in enumerate(program.caches):
            # States of fixed size begin with a constant of the program.
            growing = [state for state in op.states() if state.grows]
            initial = [weights[state.initial] for state in growing if state.initial is not None]
            for position, rows in enumerate(zip(*initial, strict=True)):
                self._ask((0, position, number), b"".join(row.tobytes() for row in rows), 4)

    def reset(self) -> None:
        self.position = self.prefix_length

    def forward(self, ids: Ids, rows: int | None = None) -> Logits:
        ids = check_ids(self, ids)
        first = 0 if rows is None else max(len(ids) - rows, 0)
        answers = []
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            skip = min(max(first - start, 0), len(part))
            size = (len(part) - skip) * self.vocabulary * 4
            answers.append(self._ask((len(part), self.position, skip), part.tobytes(), size))
            self.position += len(part)
        return np.frombuffer(b"".join(answers), np.int32).reshape(-1, self.vocabulary)

    def close(self) -> None:
        """The process ends by itself when nobody can ask it; with 0, unless something was wrong in it."""
        self._process.communicate()
        self._constants.close()
        assert self._process.returncode == 0

    def _ask(self, head: tuple[int, int, int], body: bytes, size: int) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(np.array(head, np.int32).tobytes() + body)
        self._process.stdin.flush()
        # Both sides would wait if they had other ideas of the sizes.
        if not select.select([self._process.stdout], [], [], _SECONDS)[0]:
            self._process.kill()
            raise AssertionError(f"no answer to {head} with {len(body)} bytes in {_SECONDS} s")
        answer = self._process.stdout.read(size)
        assert len(answer) == size, f"the program ended with status {self._process.wait()}"
        return answer


def _write(constants: list[Array], path: Path) -> None:
    """u64 count and offsets, then the arrays, each at a multiple of 64."""
    offset, offsets = 8 * (len(constants) + 1), []
    for array in constants:
        offset = -(-offset // 64) * 64
        offsets.append(offset)
        offset += array.nbytes
    with path.open("wb") as file:
        file.write(np.array([len(constants), *offsets], np.uint64).tobytes())
        for at, array in zip(offsets, constants, strict=True):
            file.seek(at)
            file.write(array.tobytes())
