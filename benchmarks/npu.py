"""The functions of an NPU program: ops, VTCM, and how long NumPy and QEMU take for them here.

Usage: npu.py PROGRAM, a program for npu-int8. Needs the tools that docs/npu.md names for QEMU.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import mqc
from mqc.dialects.htp_core import shape
from mqc.ir.module import function_ops, static_functions
from mqc.ir.op import plain

SIMULATORS = ("numpy", "qemu")


def main() -> None:
    program = mqc.load(sys.argv[1])
    functions = {n: f for n, f in static_functions(program.module).items() if n != "initialize"}
    lengths = {name: shape(f.body.block.args[0])[0] for name, f in functions.items()}
    seconds: dict[tuple[str, str], float] = {}
    for simulator in SIMULATORS:
        engine = program.configure(simulator=simulator).engine()
        for name in sorted(functions, key=lambda name: -lengths[name]):
            ids = np.arange(lengths[name], dtype=np.int32)
            engine.reset()
            start = time.perf_counter()
            engine.forward(ids)
            seconds[name, simulator] = time.perf_counter() - start
        engine.close()
    print("| function | ops | VTCM used | most bytes in use at once | NumPy | QEMU |")
    print("|---|---|---|---|---|---|")
    for name, function in functions.items():
        used, live = (plain(function.attributes[key]) for key in ("vtcm_peak", "vtcm_live"))
        times = " | ".join(f"{seconds[name, simulator]:.2f} s" for simulator in SIMULATORS)
        print(f"| `@{name}` | {len(list(function_ops(function)))} | {used:,} | {live:,} | {times} |")


if __name__ == "__main__":
    main()
