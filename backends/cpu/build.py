"""Building C sources with the system's compiler, with a cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from mqc.backends.cpu import runtime
from mqc.backends.cpu.kernels import FOLDER, SOURCES, texts
from mqc.errors import StorageError, TargetError, ToolchainError
from mqc.files import work_folder

#: If gcc moves instructions about before it assigns registers, the kernels' sums leave them.
_ARM_FLAGS = ["-fno-schedule-insns"]
#: What -march=armv8.2-a+dotprod lets a compiler use.
_ARMV8_2 = {"asimd", "crc32", "atomics", "asimdrdm", "asimddp"}
#: Compiler flags by instruction set; of those that one machine runs the best comes first.
ISA_FLAGS = {
    "avx512vnni": [
        "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx2", "-mbmi2",
        "-mprefer-vector-width=512",
    ],
    "avx2": ["-mavx2", "-mbmi2"],
    "i8mm": ["-march=armv8.2-a+dotprod+i8mm", *_ARM_FLAGS],
    "dotprod": ["-march=armv8.2-a+dotprod", *_ARM_FLAGS],
    "neon": ["-march=armv8-a", *_ARM_FLAGS],
    "portable": ["-DMQC_PORTABLE"],
}  # fmt: skip
#: Those whose kernels multiply x - 128, and so need the true sums of weights.
ADDS_SUMS = {"dotprod", "neon"}
_NEEDS = {
    "avx512vnni": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx2", "bmi2"},
    "avx2": {"avx2", "bmi2"},
    "i8mm": {"i8mm", *_ARMV8_2},
    "dotprod": _ARMV8_2,
    "neon": {"asimd"},
    "portable": set[str](),
}
#: Bits of what getauxval gives on Arm, by AT_HWCAP and AT_HWCAP2: names and numbers as Linux has them.
_HWCAPS = {16: {"asimd": 1, "crc32": 7, "atomics": 8, "asimdrdm": 12, "asimddp": 20}, 26: {"i8mm": 13}}
_FLAGS = ["-std=c11", "-O3", "-fPIC", "-pthread"]
INCLUDES = [f"-I{folder}" for folder in (FOLDER, runtime.FOLDER, runtime.INCLUDE)]
#: Of the kernels only what is marked is visible in a program's library.
_KERNEL_FLAGS = ["-r", "-nostdlib", "-fvisibility=hidden"]


@cache
def cpu_flags() -> frozenset[str]:
    """What Linux says that this machine's CPU has, as far as kernels ask; empty on other systems."""
    if platform.machine() == "aarch64":
        return arm_flags(_auxiliary_values())
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    return frozenset(f for line in text.splitlines() if line.startswith("flags") for f in line.split())


def arm_flags(values: Mapping[int, int]) -> frozenset[str]:
    """Names of what an Arm CPU has, from the values of AT_HWCAP and AT_HWCAP2."""
    return frozenset(
        name for kind, bits in _HWCAPS.items() for name, bit in bits.items() if values[kind] >> bit & 1
    )


def _auxiliary_values() -> dict[int, int]:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return {kind: getauxval(kind) for kind in _HWCAPS}


@cache
def supported_isas() -> tuple[str, ...]:
    """Instruction sets that this machine runs, best first."""
    return tuple(isa for isa, needs in _NEEDS.items() if needs <= cpu_flags())


def choose_isa(isa: str) -> str:
    """`auto` → the best supported one. Raises `TargetError` for one that this machine lacks."""
    if isa == "auto":
        return supported_isas()[0]
    if isa not in supported_isas():
        raise TargetError(
            f"instruction set {isa!r} is not available here; this machine runs {', '.join(supported_isas())}"
        )
    return isa


def compiler() -> list[str]:
    """Command of the C compiler: `$CC` (it may hold options), or the first of cc, gcc, clang.

    Raises `ToolchainError` if `$CC` is set and not found, or none is found.
    """
    chosen = shlex.split(os.environ.get("CC", ""))
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise ToolchainError(f"$CC is {chosen[0]!r}, which is not found; unset it or install it")
        return chosen
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise ToolchainError("no C compiler found (tried cc, gcc, clang); install one, e.g. apt-get install gcc")


def compiler_version() -> str:
    """The C compiler and the first line of its version. Raises `ToolchainError` as `compiler` does."""
    command = compiler()
    return f"{shlex.join(command)}: {_version(tuple(command)).partition(chr(10))[0]}"


def cache_folder() -> Path:
    """`$MQC_CACHE`, if it is not empty, or `mqc` in the user's cache folder."""
    if os.environ.get("MQC_CACHE"):
        return Path(os.environ["MQC_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mqc"


def build(source: str, isa: str) -> Path:
    """Shared library of a C source and the kernels, from the cache or built now.

    The source may include the headers of `mqc.backends.cpu.kernels`. Raises `ToolchainError` if
    there is no compiler or it fails, `StorageError` if the cache cannot be written.
    """
    parts = "program.so", {"program.c": source}, ["-shared", *ISA_FLAGS[isa]]
    made = kernels(isa)
    try:
        return _build(*parts, [made])
    except ToolchainError as error:
        if str(made) not in str(error):
            raise
        made.unlink()  # damaged in the cache, says the linker
        return _build(*parts, [kernels(isa)])


def kernels(isa: str) -> Path:
    """One object file of all kernels and the engine, from the cache or built now. Raises as `build` does."""
    sources = {name: text for name, text in texts().items() if name in SOURCES}
    sources[runtime.ENGINE] = (runtime.FOLDER / runtime.ENGINE).read_text(encoding="utf-8")
    return _build("kernels.o", sources, [*_KERNEL_FLAGS, *ISA_FLAGS[isa]])


def _build(name: str, sources: dict[str, str], options: list[str], objects: Sequence[Path] = ()) -> Path:
    """What the compiler makes of sources, by name, and objects.

    The name in the cache holds the hash of sources, kernels' files, flags and compiler version; a
    file appears there only whole.
    """
    command = compiler()
    flags = [*_FLAGS, *options]
    headers = [(runtime.FOLDER / name).read_text(encoding="utf-8") for name in runtime.ENGINE_HEADERS]
    parts = [*sources.values(), *texts().values(), *headers, *flags, _version(tuple(command))]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = cache_folder()
    result = (folder / key).with_suffix(Path(name).suffix)
    if result.is_file():
        return result
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with work_folder(folder) as work:
            made, inputs = work / name, [work / file for file in sources]
            for path, text in zip(inputs, sources.values(), strict=True):
                path.write_text(text, encoding="utf-8")
            run = subprocess.run(
                [*command, *flags, *INCLUDES, *map(str, [*inputs, *objects]), "-o", str(made)],
                capture_output=True,
                text=True,
                check=False,
            )
            if run.returncode:
                raise ToolchainError(f"{command[0]} failed ({run.returncode}):\n{run.stderr.strip()}")
            os.replace(made, result)
    except OSError as error:
        raise StorageError(
            f"cannot build in {folder}: {error}; set MQC_CACHE to a folder that can be written"
        ) from error
    return result


def load_library(source: str, isa: str) -> ctypes.CDLL:
    """Build and load a C source. A damaged library in the cache is built again."""
    library = build(source, isa)
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        library.unlink()
        return ctypes.CDLL(str(build(source, isa)))


@cache
def _version(command: tuple[str, ...]) -> str:
    run = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    if run.returncode:
        raise ToolchainError(f"{command[0]} --version failed: {run.stderr.strip()}")
    return run.stdout
