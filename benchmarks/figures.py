"""Measure the figures of docs/measurements.md.

    python benchmarks/figures.py            # all sections, cheap ones first: hours
    python benchmarks/figures.py demo npu   # these; the others stay as they are

The page is written after each section. A section in which a command fails stays as it is.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "measurements.md"
BUILD = "build/figures"

#: The commands of each section, cheap ones first. What they print stands in the page.
SECTIONS: dict[str, tuple[str, ...]] = {
    "arm": ("python benchmarks/arm_loops.py",),
    "npu-cost": ("python benchmarks/npu_headline.py",),
    "demo": (
        f"mqc compile demo -o {BUILD}/demo.mqc > /dev/null",
        f"mqc eval {BUILD}/demo.mqc",
        f"mqc bench {BUILD}/demo.mqc",
    ),
    "debugging": (
        f"mqc compile demo -o {BUILD}/dumped.mqc --dump-ir {BUILD}/dump > /dev/null",
        f"du -sh {BUILD}/dump",
        f"mqc debug compare {BUILD}/dump",
    ),
    "layers": ("python benchmarks/layers.py",),
    "sizes": ("python benchmarks/sizes.py",),
    "widths": tuple(f"python benchmarks/widths.py {target}" for target in ("cpu", "npu", "onnx")),
    "npu": (
        f"mqc compile demo --target npu-int8 -o {BUILD}/npu.mqc > /dev/null",
        f"mqc bench {BUILD}/npu.mqc",
        f"python benchmarks/npu.py {BUILD}/npu.mqc",
    ),
    "htp": (
        f"mqc compile demo --target onnx-int8 -o {BUILD}/onnx.mqc > /dev/null",
        f"python benchmarks/htp.py {BUILD}/onnx.mqc",
    ),
    "onnx": (
        f"mqc compile demo --target onnx-int8 -o {BUILD}/onnx.mqc > /dev/null",
        f"python benchmarks/onnx_peers.py {BUILD}/onnx.mqc",
    ),
    "recipes": ("python benchmarks/programs.py",),
    "levels": (
        f"mqc compile demo -o {BUILD}/learned.mqc --preset learned --share 0.95 --dump-ir {BUILD}/learned "
        "> /dev/null",
        f"python benchmarks/levels.py {BUILD}/learned",
    ),
    "presets": ("python benchmarks/ablations.py",),
}


def section(page: str, name: str) -> re.Match[str]:
    """What stands between the marks of a section."""
    marks = rf"(?<=<!-- {name}: made by make figures -->\n).*?(?=<!-- end {name} -->)"
    found = re.search(marks, page, re.S)
    if found is None:
        raise SystemExit(f"{PAGE} has no marks of a section {name}")
    return found


def output(command: str) -> str:
    """Standard output of a command, run in the project with this Python's programs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(
        command, shell=True, cwd=ROOT, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    return run.stdout.strip()


def machine() -> str:
    """Cores, model and instruction sets of this machine's CPU."""
    info = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M))
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    sets = [name for name in known if name in info.get("flags", "").split()]
    model = info.get("model name", platform.machine())
    number = f"family {info.get('cpu family', '?')}, model {info.get('model', '?')}"
    return f"{len(os.sched_getaffinity(0))} cores of {model} ({number}; {', '.join(sets) or 'no AVX2'})"


def commit() -> str:
    """The commit that is checked out, and whether files other than the page differ from it."""
    changed = output(f"git status --porcelain -- . {shlex.quote(f':!{PAGE.relative_to(ROOT)}')}")
    return output("git rev-parse --short HEAD") + (" with changes" if changed else "")


def measure(name: str) -> str:
    """The text of a section, whose commands find no files of earlier runs."""
    shutil.rmtree(ROOT / BUILD, ignore_errors=True)
    parts = [f"{date.today()}, commit {commit()}, {machine()}."]
    for command in SECTIONS[name]:
        print(f"{name}: {command}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        printed = output(command)
        parts.append(f"`{command}` ({time.perf_counter() - start:.0f} s)")
        if printed:
            parts.append(printed if command.startswith("python ") else f"```\n{printed}\n```")
    return "\n" + "\n\n".join(parts) + "\n\n"


def main() -> None:
    names = sys.argv[1:] or list(SECTIONS)
    if unknown := set(names) - set(SECTIONS):
        raise SystemExit(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    failed = []
    for name in names:
        try:
            text = measure(name)
        except subprocess.CalledProcessError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        page = PAGE.read_text(encoding="utf-8")
        old = section(page, name)
        PAGE.write_text(page[: old.start()] + text + page[old.end() :], encoding="utf-8")
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
