"""The C project that `mqc export` writes of a program: sources, a file of weights to map, a build."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.proofs import check_row_sums
from mqc.arrays import Array
from mqc.backends.cpu import kernels, runtime
from mqc.backends.cpu.build import ISA_FLAGS
from mqc.backends.cpu.emit import CProgram, emit
from mqc.backends.cpu.tokenizer_tables import tokenizer_tables
from mqc.errors import TargetError
from mqc.ir.module import context_length, logit_cap, prefix_tokens, returned_value
from mqc.ir.op import channels, plain
from mqc.ir.weight_store import WeightStore

#: As model.c has them.
_MAGIC = b"mqc-w-1\0"
_HASHED_FROM, _TABLE, _ALIGNMENT = 48, 56, 64
#: Element types in facts.h.
_TYPES = {"int8": "S8", "int16": "S16", "int32": "S32", "int64": "S64"}
#: Of a kernel's sources these are not part of a unit: they stand by themselves, or are no part of a program.
_APART, _LEFT_OUT = ("threads.c",), ("limits.c",)


def write(module: ModuleOp, weights: WeightStore, folder: Path, tokenizer: bool = True) -> None:
    """Write the project into a folder that holds the tokenizer's files.

    Weights are copied without being held in memory. tokenizer: whether the library is to have one.

    Raises `TargetError` for a tokenizer that has no form in C; `IRError` if the sums that the program states
    of its weights are not theirs: some of the library's kernels rely on them.
    """
    check_row_sums(module, weights)
    tables = _tables(module, folder) if tokenizer else b""
    program = emit(module, weights)
    kept = [state for op in program.caches for state in op.states() if state.grows]
    prefix = [weights[state.initial] for state in kept if state.initial is not None]
    constants = [*program.constants, *map(np.ascontiguousarray, prefix)]
    for name in ("src", "include", "examples", "model"):
        (folder / name).mkdir()
    hashed = _write_weights(constants, folder / "model" / "weights.bin")
    _write_sources(folder)
    _write_text(folder / "src" / "program.c", program.source)
    if tables:
        _write_bytes(folder / "model" / "tokenizer.bin", tables)
    facts = _facts(module, program, constants, len(prefix), tables, hashed)
    _write_text(folder / "src" / "facts.c", facts)


def _tables(module: ModuleOp, folder: Path) -> bytes:
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    try:
        return tokenizer_tables({name: _text(folder / name) for name in names}, prefix_tokens(module))
    except TargetError as error:
        raise TargetError(f"{error}; -O tokenizer=false exports the program without it") from error


def _write_weights(constants: Sequence[Array], path: Path) -> bytes:
    """The file that `mqc_model_open` maps; its hash."""
    offset, table = _TABLE + 16 * len(constants), []
    for array in constants:
        offset += -offset % _ALIGNMENT
        table += [offset, array.nbytes]
        offset += array.nbytes
    size = offset + -offset % _ALIGNMENT
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        file.write(bytes(_HASHED_FROM))

        def put(data: Any) -> None:
            file.write(data)
            digest.update(data)

        put(np.array([len(constants), *table], "<u8").tobytes())
        for at, array in zip(table[::2], constants, strict=True):
            put(bytes(at - file.tell()))
            put(array.reshape(-1).view(np.uint8).data)
        put(bytes(size - file.tell()))
        file.seek(0)
        file.write(_MAGIC + size.to_bytes(8, "little") + digest.digest())
        file.flush()
        os.fsync(file.fileno())
    return digest.digest()


def _write_sources(folder: Path) -> None:
    compiled = [name for name in _names(runtime.FOLDER) if name.endswith(".c") and name != "unit.c"]
    for origin, names in (
        (kernels.FOLDER, [name for name in _names(kernels.FOLDER) if name not in _LEFT_OUT]),
        (runtime.FOLDER, _names(runtime.FOLDER)),
    ):
        for name in names:
            _write_text(folder / "src" / name, _text(origin / name))
    for part in ("include", "examples"):
        for name in _names(runtime.FOLDER / part):
            _write_text(folder / part / name, _text(runtime.FOLDER / part / name))
    sources = [f"src/{name}" for name in sorted([*compiled, *_APART, "facts.c"])]
    flags = [f"set(FLAGS_{isa} {_cmake(options)})" for isa, options in ISA_FLAGS.items()]
    build = _text(runtime.FOLDER / "CMakeLists.txt")
    build = build.replace("@FLAGS@", "\n".join(flags)).replace("@SOURCES@", " ".join(sources))
    _write_text(folder / "CMakeLists.txt", build)
    _write_text(folder / "README.md", _text(runtime.FOLDER / "README.md"))


def _cmake(options: Sequence[str]) -> str:
    """clang has no such pass, and would say so for each file."""
    gcc_only = "-fno-schedule-insns"
    return " ".join(f"$<$<C_COMPILER_ID:GNU>:{o}>" if o == gcc_only else shlex.quote(o) for o in options)


def _facts(
    module: ModuleOp,
    program: CProgram,
    constants: Sequence[Array],
    prefix: int,
    tables: bytes,
    hashed: bytes,
) -> str:
    told = hashlib.sha256(program.source.encode() + hashed)
    facts = [
        channels(returned_value(module)), context_length(module), len(prefix_tokens(module)),
        float(plain(module.attributes["mqc.logit_scale"])).hex(), float(logit_cap(module) or 0).hex(),
        len(constants), "CONSTANTS",
        len(constants) - prefix, len(tables), _bytes(hashlib.sha256(tables).digest()), _bytes(hashed),
    ]  # fmt: skip
    told.update(repr(facts).encode())
    rows = ",\n".join(f"    {_constant(array)}" for array in constants)
    return "\n".join(
        [
            "/* Written by mqc. */",
            '#include "facts.h"',
            f"static const Constant CONSTANTS[] = {{\n{rows}}};",
            f"const Facts mqc_facts = {{{', '.join(map(str, [*facts, _bytes(told.digest())]))}}};",
            "",
        ]
    )


def _constant(array: Array) -> str:
    """Its bytes, and the range of its values: another value could lead a kernel astray. Packed matrices, and
    tables of bytes, may hold any."""
    kind = _TYPES.get(array.dtype.name)
    if kind is None or (kind == "S8" and array.ndim > 1):
        return f"{{{array.nbytes}u, ANY, 0, 0}}"
    return f"{{{array.nbytes}u, {kind}, INT64_C({array.min()}), INT64_C({array.max()})}}"


def _bytes(data: bytes) -> str:
    return f"{{{', '.join(map(str, data))}}}"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.[ch]"))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _write_text(path: Path, text: str) -> None:
    _write_bytes(path, text.encode())


def _write_bytes(path: Path, data: bytes) -> None:
    with open(path, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
