"""The C files of the CPU kernels: each stands alone, and instruction sets share one interface."""

from __future__ import annotations

import subprocess

import pytest

from mqc.backends.cpu.build import ISA_FLAGS, compiler
from mqc.backends.cpu.kernels import FOLDER, SOURCES, texts

#: Headers by instruction set, and the type of the function that each defines.
DOT = "void (*dot)(int, int, int, int, const u8 *, size_t, const Packed *, int, s32 *) = dot_tile;"
REQUANT = "void (*requant)(const Requant *, const s32 *, int, int, void *, int) = requant_fixed;"
INTERFACES = {
    "dot_avx512.h": ("avx512vnni", DOT),
    "dot_avx2.h": ("avx2", DOT),
    "dot_portable.h": ("portable", DOT),
    "requant_avx512.h": ("avx512vnni", REQUANT),
    "requant_portable.h": ("portable", REQUANT),
}
STRICT = ("-Wall", "-Wextra", "-Werror", "-Werror=implicit-function-declaration")


def check(text: str, isa: str) -> None:
    command = [*compiler(), "-std=c11", "-fsyntax-only", *STRICT, *ISA_FLAGS[isa], f"-I{FOLDER}", "-xc", "-"]
    run = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def instruction_sets(name: str) -> list[str]:
    """Those that a file is compiled for: its own, if it is the file of one."""
    own, _ = INTERFACES.get(name, (None, None))
    return list(ISA_FLAGS) if own in (None, "portable") else [own]


@pytest.mark.parametrize("name", texts())
def test_every_file_compiles_by_itself(name: str) -> None:
    for isa in instruction_sets(name):
        check(f'#include "{name}"\n', isa)


def test_every_header_of_an_instruction_set_is_checked() -> None:
    found = {name for name in texts() if name.startswith(("dot_", "requant_"))}
    assert found == set(INTERFACES)


@pytest.mark.parametrize("name", INTERFACES)
def test_instruction_sets_share_an_interface(name: str) -> None:
    isa, use = INTERFACES[name]
    check(f'#include "{name}"\n{use}\n', isa)


@pytest.mark.parametrize("chooser", ["dot", "requant"])
def test_each_header_is_chosen(chooser: str) -> None:
    for name in INTERFACES:
        if name.startswith(chooser):
            assert f'#include "{name}"' in texts()[f"{chooser}.c"]


def test_every_source_is_built() -> None:
    assert {name for name in texts() if name.endswith(".c")} == {*SOURCES, "limits.c"}
