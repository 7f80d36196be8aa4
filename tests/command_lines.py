"""Random command lines: real commands and options with hostile values, run in this process.

    python -m tests.command_lines [COUNT [FIRST]]    # 10,000 by default, from seed FIRST on

What is not right: an exit status other than 0, 1 and 2; an exception or a traceback; an escape for the
terminal; JSON that is none; files that a command left though it failed, or left half-written; more than a
minute. The seed of each command line is printed with its fault.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from huggingface_hub import constants
from typer.models import OptionInfo

from mqc.cli import chat, debug, doctor, ir, programs, run  # noqa: F401  (they register their commands)
from mqc.cli.common import OPTIONAL_VALUE, app
from tests.in_process import mqc

SECONDS = 60
#: Address space of this process: what is too large fails soon, and does not take the machine's memory.
BYTES = 12 << 30

_NUMBERS = ["1", "2", "3", "8", "16", "20", "40"]
_NO_NUMBERS = [
    "0", "-1", "100000000000", "2147483647", "2147483648", "-9223372036854775809", "1" * 5000, "1e11", "0.5",
    "nan", "inf", "-inf", "1e999", "1e-400", "-0.0", "", " ", "x", "0x10", "1_000", "\u0663", "\udcff",
    "\x1b[31m",
]  # fmt: skip
#: What the sandbox holds, and what it does not. Devices take what is written; nothing else outside is named.
_FILES = [
    "tiny.mqc", "onnx.mqc", "npu.mqc", "dumps", "dumps/00-import.mlir", "tiny.mqc/program.mlir",
    "dumps/calibration.safetensors", "recipe.toml", "text.txt", "link.mqc", "link.mlir",
]  # fmt: skip
_NO_FILES = [
    "", ".", "..", "/", "-", "--", "missing", "missing/x", "text.txt/x", "empty", "folder", "pipe", "circle",
    "dangling", "large", "surrogates.toml", "surrogates", "\udcff.mlir", "\x1b[31m.mlir", "[/red].mlir",
    "[bold]", "a|b.mlir", "a\nb", "x" * 300, "x/" * 2100, "/dev/null", "/dev/zero", "/dev/full", "/dev/stdin",
    "/dev/stdout", "/proc/self/mem", "/proc/self/environ", "/proc/nothing", "~", "$HOME", "%s", "{}",
]  # fmt: skip
_TEXTS = [
    "", " ", "x", "hello", "*", "\x1b[2J", "\udcff\udcfe", "[/red]", "[", "{", "{}", "=", ",", "a=b", "-",
    "\u202e", "é" * 500,
]  # fmt: skip
#: Texts of options by name.
_KNOWN: dict[str, list[str]] = {
    "model": ["model", "model", "nobody/nothing", "folder", "gpt2"],
    "target": ["cpu-int8", "onnx-int8", "npu-int8"],
    "recipe": ["w8a8", "w4a8", "w4a8-g64", "recipe.toml", "surrogates.toml", "pipe", "large", "/dev/zero"],
    "preset": ["smoothquant"],
    "passes": [
        "", "fold-norm", "fold-norm,fold-constants", "balance-scales{alpha=nan}", "plan-memory",
        "absorb-prefix{most=100000000000}", "observe-ranges{method=mse}", "quantize-weights{bits=4 group=32}",
        "fold-norm{x=1}", "fold-norm,,", "fold-norm{", "rotate-channels",
        'choose-kernels{backend="cpu"}', "lower-to-int",
    ],
    "ids": ["1,2,3", "1", "1,,2", "-1", "99", "9" * 30, "1.5", ","],
    "values": ["*", "layers.0.*", "[", "nothing"],
    "engine": ["target", "oracle"],
    "backend": ["cpu", "onnx", "npu"],
    "option": [
        "threads=1", "threads=0", "threads=100000000000", "isa=portable", "style=integer", "tokens=8,1",
        "tokens=100000000000", "tokens=0", "tokens=", "context=16", "context=100000000000", "provider=x",
        "simulator=true", "htp_binary=false", "runtime=npu", "blocked=true", "x",
    ],
    "template_option": ["a=1", "messages=[]", "tools=[{}]", "x"],
    "prompt": ["hello", "h" * 5000],
    "chat": ["hello", "<eos>", "h" * 5000],
    "overflow": ["refuse", "drop-oldest"],
    "tasks": ["", ","],
}  # fmt: skip
#: They are run by a shell, so that only these are given.
_COMMANDS = ["false {}", "true {}", "test ! -s {}", "no braces", ""]


class Late(BaseException):
    """No end within `SECONDS`."""


@dataclass(frozen=True)
class Parameter:
    """An option or argument of a command. kind: `bool`, `int`, `float`, `str` or `Path`."""

    name: str
    words: tuple[str, ...]
    required: bool
    kind: type


def commands(app: typer.Typer, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], list[Parameter]]]:
    """Every command: its words, and its parameters."""
    found = []
    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        found.append(((*words, name), list(_parameters(command.callback))))
    for group in app.registered_groups:
        found += commands(group.typer_instance, (*words, str(group.name)))  # type: ignore[arg-type]
    return found


def _parameters(callback: Any) -> Iterator[Parameter]:
    hints = get_type_hints(callback, include_extras=True)
    for name, parameter in inspect.signature(callback).parameters.items():
        kind, *rest = get_args(hints[name]) or [None]
        if not rest:  # the context, which typer gives
            continue
        kinds = [t for t in (kind, *get_args(kind), *(b for a in get_args(kind) for b in get_args(a)))]
        kind = next(t for t in kinds if t in (bool, int, float, str, Path))
        option = isinstance(rest[0], OptionInfo)
        words = tuple(rest[0].param_decls or [f"--{name.replace('_', '-')}"]) if option else ()
        yield Parameter(name, words, parameter.default is parameter.empty, kind)


def command_line(rng: random.Random, known: list[tuple[tuple[str, ...], list[Parameter]]]) -> list[str]:
    """A command with some of its options; some of their values are what they should be."""
    words, parameters = rng.choice(known)
    share = rng.choice([0.5, 0.8, 0.97])
    line: list[str] = []
    for p in parameters:
        if rng.random() > (0.97 if p.required or not p.words else 0.15):
            continue
        option = rng.choice(p.words) if p.words else ""
        value = _value(rng, p, share)
        if p.kind is bool:
            line.append(option)
        elif option in OPTIONAL_VALUE:
            line.append(rng.choice([option, f"{option}={value}"]))
        else:
            line += [option, value] if option else [value]
    if rng.random() < 0.05:
        line.insert(rng.randrange(len(line) + 1), rng.choice([*_TEXTS, *_NO_NUMBERS, "--help", "--nothing"]))
    return [*words, *line]


def _value(rng: random.Random, p: Parameter, share: float) -> str:
    """A value; so many, on average, are what they should be."""
    good = rng.random() < share
    if p.name == "command":
        return rng.choice(_COMMANDS)
    if p.name in _KNOWN:
        return rng.choice(_KNOWN[p.name] if good or p.name == "tasks" else _TEXTS)
    if p.kind is Path:
        output = p.name in ("output", "plan", "checkpoints", "dump_ir")
        return rng.choice(["out", "out/deep/er"] if good and output else _FILES if good else _NO_FILES)
    return rng.choice(_TEXTS if p.kind is str else _NUMBERS if good else _NO_NUMBERS)


def make_sandbox(folder: Path) -> None:
    """Programs, dumps and a model, all tiny, and files and folders that are none."""
    from mqc.calibration import Calibration
    from mqc.compiler.dump import Dump
    from mqc.compiler.recipe import Recipe
    from tests.compiled import imported, lower_for_cpu, lower_for_npu, lower_for_onnx, quantized
    from tests.models import tiny_model
    from tests.runtime.conftest import byte_tokenizer, compiled

    folder.mkdir()
    targets = {"tiny": "cpu-int8", "onnx": "onnx-int8", "npu": "npu-int8"}
    for (name, target), lower in zip(
        targets.items(), (lower_for_cpu, lower_for_onnx, lower_for_npu), strict=True
    ):
        options = {"htp_binary": False} if name == "npu" else {}
        compiled(target, lower).save(folder / f"{name}.mqc", **options)
    model = tiny_model("llama")
    ctx, module = imported(model)
    dump = Dump(folder / "dumps")
    dump.start(ctx, module, {"recipe.toml": Recipe().to_toml(), **byte_tokenizer().files})
    dump.write("99-last", *quantized(model))
    model.save_pretrained(folder / "model")
    for name, text in byte_tokenizer().files.items():
        (folder / "model" / name).write_text(text)
    Calibration(ctx.calibration.windows).save(folder / "large.safetensors")  # type: ignore[union-attr]
    shutil.copytree(folder / "tiny.mqc", folder / "surrogates")
    manifest = json.loads((folder / "surrogates" / "manifest.json").read_text())
    (folder / "surrogates" / "manifest.json").write_text(json.dumps({**manifest, "recipe": "\ud800\x1b[31m"}))
    escaped = json.dumps({**manifest, "recipe": "\x1b[31m[/red]", "target": "cpu-int8"})
    (folder / "tiny.mqc" / "manifest.json").write_text(escaped)
    (folder / "recipe.toml").write_text(Recipe(windows=2).to_toml())
    (folder / "surrogates.toml").write_text('precision = ["\\ud800"]')
    (folder / "text.txt").write_text("hello world " * 200)
    (folder / "empty").write_text("")
    (folder / "folder").mkdir()
    (folder / "[").mkdir()
    text = (folder / "dumps" / "00-import.mlir").read_text()
    for name in ("[/red].mlir", "a|b.mlir"):
        (folder / name).write_text(text)
    for name in ("\udcff.mlir", "\x1b[31m.mlir"):
        (folder / name).write_text('"\x1b[31m\x07" () : () -> ()')


def _unpack(made: Path, sandbox: Path) -> None:
    """A fresh sandbox; links, pipes and holes, which copying would follow, wait for or fill."""
    shutil.rmtree(sandbox, ignore_errors=True)
    shutil.copytree(made, sandbox)
    (sandbox / "tmp").mkdir()
    (sandbox / "link.mqc").symlink_to("tiny.mqc")
    (sandbox / "link.mlir").symlink_to("dumps/00-import.mlir")
    (sandbox / "circle").symlink_to("circle")
    (sandbox / "dangling").symlink_to("nothing/at all")
    os.mkfifo(sandbox / "pipe")
    with open(sandbox / "large", "wb") as large:
        large.truncate(1 << 40)


def _contents(folder: Path) -> dict[str, int]:
    """Files and folders with sizes; of the temporary folder what is being written only."""
    found = {str(p.relative_to(folder)): p.lstat().st_size * p.is_file() for p in folder.rglob("*")}
    return {name: size for name, size in found.items() if not name.startswith("tmp/mqc-")}


@contextmanager
def _limits(bytes_: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise Late(f"no end within {SECONDS} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (bytes_, before[1]))
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(line: list[str], sandbox: Path, stdin: bytes) -> str:
    """The exit status, or what is wrong."""
    before, here = _contents(sandbox), Path.cwd()
    os.chdir(sandbox)
    try:
        with _limits(BYTES):
            run = mqc(*line, text=stdin)
    except (Exception, Late) as error:
        return f"WRONG: {type(error).__name__}: {str(error)[:300]}"
    finally:
        os.chdir(here)
    status, texts = run.returncode, (run.stdout, run.stderr)
    if status not in (0, 1, 2):
        return f"WRONG: exit status {status}"
    if "Traceback" in texts[1]:
        return f"WRONG: {texts[1][-300:]}"
    if any("\x1b" in text for text in texts):
        return "WRONG: an escape for the terminal"
    if status == 0 and "--json" in line and "--help" not in line:
        try:
            json.loads(texts[0])
        except ValueError:
            return f"WRONG: no JSON: {texts[0][:200]!r}"
    left = {name for name, size in _contents(sandbox).items() if before.get(name) != size}
    half = [name for name in left if ".mqc-partial-" in name]
    if half or (status and left and not {"--dump-ir", "--checkpoints", "--plan"}.intersection(line)):
        return f"WRONG: status {status}, and there is {sorted(half or left)[:5]}"
    return f"exit status {status}"


def try_command_lines(count: int, first: int = 0) -> tuple[Counter[str], list[str]]:
    """How command lines ended, by command, and what was wrong."""
    known, found, faults = commands(app), Counter[str](), []
    stdins = [b"", b"\xff", b"\0" * 1000, b'"builtin.module"() ({}) : () -> ()', b"x" * 10_000]
    with tempfile.TemporaryDirectory() as parent:
        made, sandbox = Path(parent) / "made", Path(parent) / "up" / "sandbox"
        make_sandbox(made)
        sandbox.parent.mkdir()
        before = {**os.environ}, tempfile.tempdir, constants.HF_HUB_OFFLINE
        os.environ |= {"COLUMNS": "200", "TQDM_DISABLE": "1"}
        constants.HF_HUB_OFFLINE = True
        tempfile.tempdir = str(sandbox / "tmp")
        try:
            fresh = None
            for seed in range(first, first + count):
                rng = random.Random(seed)
                line = command_line(rng, known)
                if fresh is None or _contents(sandbox) != fresh:
                    _unpack(made, sandbox)
                    fresh = _contents(sandbox)
                said = outcome(line, sandbox, rng.choice(stdins))
                found[said.split(":")[0]] += 1
                if (seed + 1) % 1000 == 0:
                    print(f"to seed {seed}: {dict(found)}", file=sys.__stderr__)
                if said.startswith("WRONG"):
                    faults.append(f"seed {seed}, {[w[:60] for w in line]}: {said}")
                    print(ascii(faults[-1]), file=sys.__stderr__)
        finally:
            os.environ.clear()
            os.environ |= before[0]
            tempfile.tempdir, constants.HF_HUB_OFFLINE = before[1:]
    return found, faults


if __name__ == "__main__":
    totals, wrong = try_command_lines(*map(int, sys.argv[1:3] or [10_000]))
    print(dict(totals), file=sys.stderr)
    sys.exit(bool(wrong))
