"""The C files of the CPU kernels: each stands alone, instruction sets share an interface and its results."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mqc.backends.cpu.build import ISA_FLAGS, compiler, supported_isas
from mqc.backends.cpu.kernels import FOLDER, SOURCES, texts
from tests.backends.arm import COMPILER, CPUS, qemu

ALL, ARM = tuple(ISA_FLAGS), tuple(CPUS)
#: Headers by instruction sets, and the type of the function that each defines.
DOT = "void (*dot)(int, int, int, int, const u8 *, size_t, const Packed *, int, s32 *) = dot_tile;"
REQUANT = "void (*requant)(const Requant *, const s32 *, int, int, void *, int) = requant_fixed;"
INTERFACES = {
    "dot_avx512.h": (("avx512vnni",), DOT),
    "dot_avx2.h": (("avx2",), DOT),
    "dot_neon.h": (ARM, DOT),
    "dot_portable.h": (ALL, DOT),
    "requant_avx512.h": (("avx512vnni",), REQUANT),
    "requant_neon.h": (ARM, REQUANT),
    "requant_portable.h": (ALL, REQUANT),
}
STRICT = ("-Wall", "-Wextra", "-Werror", "-Werror=implicit-function-declaration")
CHECK = Path(__file__).parent / "check_kernels.c"


def command(isa: str) -> list[str]:
    """Compiler and options for an instruction set."""
    return [*([COMPILER] if isa in ARM else compiler()), "-std=c11", *STRICT, *ISA_FLAGS[isa], f"-I{FOLDER}"]


def check(text: str, isa: str) -> None:
    run = subprocess.run(
        [*command(isa), "-fsyntax-only", "-xc", "-"], input=text, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def with_isas(names: Iterable[str]) -> list[Any]:
    """Files, each with the instruction sets that it is compiled for."""
    pairs = [(name, isa) for name in names for isa in INTERFACES.get(name, (ALL, ""))[0]]
    return [pytest.param(*pair, marks=pytest.mark.arm if pair[1] in ARM else ()) for pair in pairs]


@pytest.mark.parametrize(("name", "isa"), with_isas(texts()))
def test_every_file_compiles_by_itself(name: str, isa: str) -> None:
    check(f'#include "{name}"\n', isa)


def test_every_header_of_an_instruction_set_is_checked() -> None:
    found = {name for name in texts() if name.startswith(("dot_", "requant_"))}
    assert found == set(INTERFACES)


@pytest.mark.parametrize(("name", "isa"), with_isas(INTERFACES))
def test_instruction_sets_share_an_interface(name: str, isa: str) -> None:
    check(f'#include "{name}"\n{INTERFACES[name][1]}\n', isa)


@pytest.mark.parametrize("chooser", ["dot", "requant"])
def test_each_header_is_chosen(chooser: str) -> None:
    for name in INTERFACES:
        if name.startswith(chooser):
            assert f'#include "{name}"' in texts()[f"{chooser}.c"]


@pytest.mark.parametrize(
    "isa", [*supported_isas(), *(pytest.param(isa, marks=pytest.mark.arm) for isa in ARM)]
)
def test_results_are_the_portable_ones(isa: str, tmp_path: Path) -> None:
    """Tiles of every size, rows of every length, extreme values, rescaling of every count and width."""
    program = tmp_path / "check"
    sources = [CHECK, FOLDER / "dot.c", FOLDER / "requant.c"]
    subprocess.run([*command(isa), "-O3", *map(str, sources), "-o", str(program)], check=True)
    run = [*(qemu(isa) if isa in ARM else []), str(program)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_source_is_built() -> None:
    assert {name for name in texts() if name.endswith(".c")} == {*SOURCES, "limits.c"}
