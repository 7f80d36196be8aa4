"""The CPU engine built with gcc's sanitizers runs its tests without a report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Tests of the engine by gcc's option, and the libraries that must be loaded before Python. The undefined
#: behaviour sanitizer writes to no file: its first report ends the process.
RUNS = {
    "address,undefined -fno-sanitize-recover=undefined": (
        [
            "tests/backends/test_cpu_ops.py",
            "tests/backends/test_cpu_kernels.py",
            "tests/runtime/test_sessions.py::test_a_fork_goes_on_by_itself",
            "tests/backends/test_c_tokenizer.py::test_texts",
            "tests/backends/test_c_tokenizer_damage.py::test_damaged_tables",
            "tests/backends/test_c_tokenizer_damage.py::test_memory_that_runs_out",
        ],
        ["libasan.so", "libubsan.so", "libstdc++.so.6"],
    ),
    "thread": (
        [
            "tests/runtime/test_threads.py",
            "tests/runtime/test_sessions.py::test_two_threads_in_two_sessions",
        ],
        ["libtsan.so", "libstdc++.so.6"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", RUNS, ids=["address and undefined", "thread"])
def test_no_report(sanitizers: str, tmp_path: Path) -> None:
    tests, names = RUNS[sanitizers]
    found = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        for name in names
    ]
    libraries = [run.stdout.strip() for run in found]
    assert all(os.path.isabs(library) for library in libraries), f"gcc has not all of {names}"
    log = tmp_path / "report"
    done = subprocess.run(
        [
            *("setarch", "-R", sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider"),
            *("-m", "not arm", *tests),
        ],
        cwd=ROOT,
        env=os.environ
        | {
            "CC": f"gcc -fsanitize={sanitizers} -fno-omit-frame-pointer -g1",
            "MQC_CACHE": str(tmp_path / "cache"),
            "LD_PRELOAD": " ".join(libraries),
            "OMP_NUM_THREADS": "1",
            "ASAN_OPTIONS": f"detect_leaks=0:log_path={log}",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "TSAN_OPTIONS": f"log_path={log}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    reports = "\n".join(path.read_text() for path in tmp_path.glob("report*"))
    assert not reports and done.returncode == 0, f"{reports}\n{done.stdout}\n{done.stderr}"
