"""Damaged programs on disk, all sizes and hashes repaired: each is refused, or computes what the oracle does.

    python -m tests.runtime.mutations [FIRST:]COUNT [TARGET|KIND…]    # 10,000 of each kind and target

The seeds are FIRST (0) and those that follow. There is a process for each core. A line for each 250 says how
many were refused and right, and with which seeds something else came out: another exception than an
`MqcError`, other logits than the oracle's on the same files, or nothing within a minute.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import mqc

IDS = [5, 1, 7, 30, 2]
SECONDS = 60
Rng = np.random.Generator


def rehash(folder: Path) -> None:
    """Make the manifest's sizes and hashes those of the files."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))


def change_weights(folder: Path, rng: Rng) -> str:
    """One to all elements of a tensor become other bytes."""
    path, ir = folder / "weights.safetensors", folder / "program.mlir"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    key = str(rng.choice(sorted(header)))
    begin, end = (x + 8 + size for x in header[key]["data_offsets"])
    old = hashlib.sha256(data[begin:end]).hexdigest()[:16].encode()
    array = np.frombuffer(data, np.uint8)[begin:end].copy()
    count = int(rng.choice([1, 4, len(array)]))
    places = rng.integers(0, len(array), count)
    array[places] = rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))])
    data[begin:end] = array.tobytes()
    new = hashlib.sha256(data[begin:end]).hexdigest()[:16].encode()
    path.write_bytes(bytes(data).replace(old, new))
    ir.write_bytes(ir.read_bytes().replace(old, new))
    rehash(folder)
    return f"{count} bytes of {key}"


_NUMBERS = re.compile(rb"(?<![\w@\"#%.])-?\d+(?![\w.])")
_EXTREMES = (
    0,
    1,
    -1,
    2,
    3,
    7,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**30,
    2**31 - 1,
    2**31,
    -(2**31),
    2**62,
    2**63,
)


def change_ir(folder: Path, rng: Rng) -> str:
    """A number of the IR becomes another one; or a line is dropped, doubled or moved."""
    path = folder / "program.mlir"
    data = path.read_bytes()
    kind = int(rng.integers(5))
    if kind < 3:
        found = list(_NUMBERS.finditer(data))
        place = found[int(rng.integers(len(found)))]
        old = int(place[0])
        others = (old + 1, old - 1, -old, 2 * old) if kind else _EXTREMES
        new = others[rng.integers(len(others))]
        data = data[: place.start()] + str(new).encode() + data[place.end() :]
        what = f"{old} to {new} at {place.start()}"
    else:
        lines = data.split(b"\n")
        a, b = (int(i) for i in rng.integers(0, len(lines), 2))
        line = lines.pop(a)
        if kind == 4:
            lines.insert(b, line)
        data, what = b"\n".join(lines), f"line {a} {'to ' + str(b) if kind == 4 else 'dropped'}"
    path.write_bytes(data)
    rehash(folder)
    return what


def change_bytes(name: str) -> Callable[[Path, Rng], str]:
    """Some bytes of a file are changed, inserted or cut."""

    def change(folder: Path, rng: Rng) -> str:
        path = folder / name
        data = bytearray(path.read_bytes())
        place, kind = int(rng.integers(len(data))), int(rng.integers(4))
        if kind == 0:
            data[place] = int(rng.integers(256))
        elif kind == 1:
            data[place:place] = bytes(rng.choice([b"0", b"null", b"[]", b'"', b"-1", b"{", b"1e999"]))
        elif kind == 2:
            del data[place : place + int(rng.choice([1, 2, 8, 64]))]
        else:
            other = int(rng.integers(len(data)))
            data[place : place + 8] = data[other : other + 8]
        path.write_bytes(bytes(data))
        if name != "manifest.json":
            rehash(folder)
        return f"{name} at {place}, kind {kind}"

    return change


KINDS: dict[str, Callable[[Path, Rng], str]] = {
    "weights": change_weights,
    "ir": change_ir,
    "manifest": change_bytes("manifest.json"),
    "tokenizer": change_bytes("tokenizer.json"),
    "config": change_bytes("tokenizer_config.json"),
    "template": change_bytes("chat_template.jinja"),
}


def outcome(folder: Path) -> str:
    """`refused`, `right`, or what is wrong with a folder."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"no end within {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        program = mqc.load(folder)
        if program.target == "onnx-int8":
            program.configure(style="integer")
        got = program.integer_logits(IDS)
        if not np.array_equal(got, program.integer_logits(IDS, engine="oracle")):
            return "WRONG: other logits than the oracle's"
        program.tokenizer.decode(program.tokenizer.chat("hi"))
    except mqc.MqcError:
        return "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"WRONG: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    return "right"


def try_mutations(
    saved: Path, kind: str, seeds: range, compare: Callable[[Path], str] = outcome
) -> tuple[Counter[str], list[str]]:
    """How many mutations of a saved program were refused and right, and what was wrong."""
    found: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "p.mqc"
        for seed in seeds:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(saved, folder)
            what = KINDS[kind](folder, np.random.default_rng(seed))
            said = compare(folder)
            found[said.split(":")[0]] += 1
            if said.startswith("WRONG"):
                faults.append(f"{kind}, seed {seed}, {what}: {said}")
    return found, faults


def main(seeds: range, chosen: list[str]) -> int:
    from tests.compiled import lower_for_cpu, lower_for_npu, lower_for_onnx
    from tests.runtime.conftest import compiled

    lower = {"cpu-int8": lower_for_cpu, "onnx-int8": lower_for_onnx, "npu-int8": lower_for_npu}
    targets = [target for target in lower if target in chosen] or list(lower)
    kinds = [kind for kind in KINDS if kind in chosen] or list(KINDS)
    parts = [seeds[i : i + 250] for i in range(0, len(seeds), 250)]
    wrong = 0
    with (
        tempfile.TemporaryDirectory() as parent,
        ProcessPoolExecutor(mp_context=get_context("spawn")) as pool,
    ):
        for target in targets:
            compiled(target, lower[target]).save(Path(parent) / target)
        work = {
            pool.submit(try_mutations, Path(parent) / target, kind, part): (target, kind, part)
            for part, target, kind in product(parts, targets, kinds)
        }
        for future in as_completed(work):
            found, faults = future.result()
            wrong += len(faults)
            print(*work[future], dict(found), *faults[:5], sep="\n  ", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    first, _, count = (sys.argv[1] if len(sys.argv) > 1 else "10000").rpartition(":")
    sys.exit(main(range(int(first or 0), int(first or 0) + int(count)), sys.argv[2:]))
