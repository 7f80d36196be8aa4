"""What the inner loops of the Arm kernels reach, by LLVM's model of each core, of operands in the L1 cache.

A model, not a measurement: llvm-mca knows the units and latencies of instructions, and no cache, branch or
frequency. The peak is what the loop's widest dot product reaches alone. Prints a table in Markdown. Needs
`apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross clang-19 llvm-19`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from mqc.backends.cpu.build import ISA_FLAGS
from mqc.backends.cpu.kernels import FOLDER

#: Cores, and the instruction set that is chosen on each.
CORES = {
    "cortex-x3": "i8mm", "cortex-a715": "i8mm", "cortex-a510": "i8mm", "cortex-a76": "dotprod",
    "cortex-a72": "neon",
}  # fmt: skip
COMPILERS = {"gcc": ["aarch64-linux-gnu-gcc"], "clang": ["clang-19", "--target=aarch64-linux-gnu", "-w"]}
#: Multiply-accumulates of an instruction, and its form without what it has to wait for.
DOTS = {
    "usmmla": (32, "v{}.4s, v30.16b, v31.16b"),
    "sudot": (16, "v{}.4s, v30.16b, v31.4b[0]"),
    "sdot": (16, "v{}.4s, v30.16b, v31.4b[0]"),
    "smull": (8, "v{}.8h, v30.8b, v31.8b"),
    "smull2": (8, "v{}.8h, v30.16b, v31.16b"),
}
#: Of one row, in an iteration: 16 inputs of 16 outputs.
ROW = 256
ITERATIONS = 200


@dataclass(frozen=True)
class Loop:
    """An innermost loop of a kernel: its instructions, and what multiplies in it."""

    kernel: str
    text: str
    dots: list[str]

    @property
    def macs(self) -> int:
        return sum(DOTS[name][0] for name in self.dots)


def loops(compiler: str, isa: str) -> Iterator[Loop]:
    """Loops over 16 inputs, of each kernel and number of rows; there may be several copies of one.

    Weights in groups have the loops of other 4-bit weights.
    """
    command = [*COMPILERS[compiler], "-std=c11", "-O3", "-fPIC", *ISA_FLAGS[isa], f"-I{FOLDER}"]
    assembly = subprocess.run(
        [*command, "-S", str(FOLDER / "dot.c"), "-o", "-"], capture_output=True, text=True, check=True
    ).stdout
    assembly = re.sub(r" *//.*", "", assembly)
    for kernel, body in re.findall(r"^(dot_s8|dot_s4):\n(.*?)^\t\.size", assembly, re.M | re.S):
        for label, block in re.findall(r"^(\.L\w+):\n((?:\t?.*\n)*?)(?=\.L|\Z)", body, re.M):
            end = re.search(rf"^\tb\.?\w+\t{re.escape(label)}\n", block, re.M)
            text = block[: end.end()] if end else ""
            loop = Loop(kernel, text, re.findall(rf"^\t({'|'.join(DOTS)})\t", text, re.M))
            if loop.macs >= ROW:
                yield loop


def cycles(core: str, text: str) -> float:
    """Cycles of one iteration, of many that follow one another."""
    command = ["llvm-mca-19", "-mtriple=aarch64", f"-mcpu={core}", f"-iterations={ITERATIONS}"]
    run = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    found = re.search(r"^Total Cycles: +(\d+)$", run.stdout, re.M)
    assert found is not None
    return int(found[1]) / ITERATIONS


def peak(core: str, dot: str) -> float:
    """Multiply-accumulates a cycle of one instruction alone."""
    macs, form = DOTS[dot]
    return 24 * macs / cycles(core, "\n".join(f"{dot} {form.format(i)}" for i in range(24)))


def main() -> None:
    print("| core | instruction set | compiler | kernel | rows | MACs a cycle | of peak |")
    print("|---|---|---|---|---|---|---|")
    for core, isa in CORES.items():
        for compiler in COMPILERS:
            rates: dict[tuple[str, int], tuple[float, float]] = {}
            for loop in loops(compiler, isa):
                rate, widest = (
                    loop.macs / cycles(core, loop.text),
                    max(loop.dots, key=lambda name: DOTS[name][0]),
                )
                key, found = (loop.kernel, loop.macs // ROW), (rate, rate / peak(core, widest))
                rates[key] = min(rates.get(key, found), found)
            for (kernel, rows), (rate, share) in sorted(rates.items()):
                print(f"| {core} | {isa} | {compiler} | `{kernel}` | {rows} | {rate:.1f} | {share:.0%} |")


if __name__ == "__main__":
    main()
