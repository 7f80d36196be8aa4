"""Exported C projects, built with CMake, give what their programs give in Python, and refuse what is bad."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mqc.backends.cpu.build import supported_isas
from mqc.backends.cpu.kernels import SOURCES
from mqc.backends.cpu.runtime import FOLDER
from mqc.compiler.recipe import Recipe
from mqc.dialects.int_ops import LinearOp
from mqc.errors import IRError, TargetError
from mqc.ir.module import mqc_ops
from mqc.runtime.program import Program
from mqc.runtime.sampling import Sampling
from tests.backends.arm import COMPILER, CPUS, qemu
from tests.backends.exported import build, driver, evaluated, export, run
from tests.backends.test_cpu_program import FLOAT, INTEGER_CONVERSION, mnemonics
from tests.compiled import lower_for_cpu, quantized
from tests.models import tiny_model
from tests.runtime.conftest import compiled, letter_tokenizer

pytestmark = pytest.mark.cmake

IDS = np.random.default_rng(0).integers(0, 64, 150).tolist()
NEW = 24
#: Bytes of a library with one instruction set, at most.
LIBRARY_BYTES = 400_000


@pytest.fixture(scope="module")
def talker() -> Program:
    """Room for more than one part of a prompt, behind a prefix."""
    return compiled("cpu-int8", lower_for_cpu, letter_tokenizer(), context=320).configure(threads=1)


@pytest.fixture(scope="module")
def wanted(talker: Program) -> tuple[Any, list[int]]:
    return talker.integer_logits(IDS), list(talker.generate_tokens(IDS, NEW))


@pytest.fixture(scope="module")
def project(talker: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(talker, tmp_path_factory.mktemp("exported") / "project")


@pytest.fixture(scope="module")
def built(project: Path) -> Path:
    """With all instruction sets of this machine's family."""
    return build(project, "-DBUILD_SHARED_LIBS=ON")


@pytest.fixture(scope="module")
def alone(project: Path) -> Path:
    """With one instruction set."""
    return build(project, "-DBUILD_SHARED_LIBS=ON", sets=supported_isas()[:1])


class Sampled(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t), ("temperature", ctypes.c_double), ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double), ("repetition_penalty", ctypes.c_double), ("top_k", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
    ]  # fmt: skip


class Options(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t), ("flags", ctypes.c_uint), ("instruction_set", ctypes.c_char_p),
        ("allocator", ctypes.c_void_p),
    ]  # fmt: skip


class Session:
    """The shared library, through ctypes."""

    def __init__(self, built: Path, project: Path, isa: str) -> None:
        self.library = ctypes.CDLL(str(built / "libmqc.so"))
        self.library.mqc_model_instruction_set.restype = ctypes.c_char_p
        self.model, self.session = ctypes.c_void_p(), ctypes.c_void_p()
        options = Options(ctypes.sizeof(Options), 0, isa.encode(), None)
        error = ctypes.create_string_buffer(200)
        opened = self.library.mqc_model_open(
            str(project / "model").encode(), ctypes.byref(options), ctypes.byref(self.model), error, 200
        )
        assert opened == 0, error.value
        assert self.library.mqc_model_instruction_set(self.model) == isa.encode()
        assert self.library.mqc_session_open(self.model, 2, ctypes.byref(self.session)) == 0

    def evaluate(self, ids: list[int]) -> Any:
        logits = np.zeros((len(ids), 64), np.int32)
        given = (ctypes.c_int32 * len(ids))(*ids)
        where = ctypes.c_void_p(logits.ctypes.data)
        assert self.library.mqc_session_evaluate(self.session, given, ctypes.c_size_t(len(ids)), where) == 0
        return logits

    def go_on(self, ids: list[int], count: int) -> tuple[int, list[int]]:
        """Tokens behind a sequence, of which what the session has is kept; and how many were prefilled."""
        given, ran = (ctypes.c_int32 * len(ids))(*ids), [0]
        self.library.mqc_session_common.restype = ctypes.c_size_t
        same = self.library.mqc_session_common(self.session, given, ctypes.c_size_t(len(ids)))
        assert self.library.mqc_session_rewind(self.session, ctypes.c_size_t(same)) == 0

        def note(context: object, done: int, total: int) -> None:
            ran[0] = total

        progress = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)(note)
        rest = ctypes.byref(given, same * ctypes.sizeof(ctypes.c_int32))
        left = ctypes.c_size_t(len(ids) - same)
        assert self.library.mqc_session_prefill(self.session, rest, left, progress, None) == 0
        return ran[0], [self.next() for _ in range(count)]

    def next(self) -> int:
        token = ctypes.c_int32()
        assert self.library.mqc_session_next(self.session, ctypes.byref(token)) == 0
        return token.value

    def sample(self, ids: list[int], how: Sampling, count: int) -> list[int]:
        """Tokens behind a sequence that begins anew."""
        given = (ctypes.c_int32 * len(ids))(*ids)
        sampled = Sampled(
            ctypes.sizeof(Sampled), how.temperature, how.top_p or 0, how.min_p or 0, how.repetition_penalty,
            how.top_k or 0, how.seed or 0,
        )  # fmt: skip
        assert self.library.mqc_session_rewind(self.session, ctypes.c_size_t(0)) == 0
        assert self.library.mqc_session_set_sampling(self.session, ctypes.byref(sampled)) == 0
        assert (
            self.library.mqc_session_prefill(self.session, given, ctypes.c_size_t(len(ids)), None, None) == 0
        )
        return [self.next() for _ in range(count)]

    def close(self) -> None:
        self.library.mqc_session_close(self.session)
        assert self.library.mqc_model_close(self.model) == 0


@pytest.fixture
def session(built: Path, project: Path) -> Iterator[Session]:
    opened = Session(built, project, supported_isas()[0])
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "isa", [isa for isa in supported_isas() if isa != "portable" or platform.machine() == "x86_64"]
)
def test_tokens_and_logits_are_those_of_python(
    built: Path, project: Path, wanted: tuple[Any, list[int]], isa: str
) -> None:
    """In each instruction set of one library, which chooses the best by itself."""
    session = Session(built, project, isa)
    assert (session.evaluate(IDS) == wanted[0]).all()
    assert session.sample(IDS, Sampling(), NEW) == wanted[1]
    session.close()


SAMPLINGS = [
    Sampling(1.0, seed=0),
    Sampling(0.7, seed=2**40 + 5),
    Sampling(1.5, top_k=5, seed=1),
    Sampling(3.0, top_p=0.8, seed=2),
    Sampling(2.0, min_p=0.1, seed=3),
    Sampling(0.0, repetition_penalty=1.3, seed=4),
    Sampling(2.0, top_k=30, top_p=0.9, min_p=0.01, repetition_penalty=0.9, seed=5),
    Sampling(1e-30, seed=6),
    Sampling(50.0, top_k=64, top_p=1.0, seed=7),
]


@pytest.mark.parametrize("how", SAMPLINGS, ids=str)
def test_sampled_tokens_are_those_of_python(session: Session, talker: Program, how: Sampling) -> None:
    """NumPy's generator and its seeds, in C."""
    for more in range(4):
        chosen = replace(how, seed=(how.seed or 0) + more)
        assert session.sample(IDS[:9], chosen, 60) == list(talker.generate_tokens(IDS[:9], 60, chosen))


def test_twenty_turns_prefill_only_what_is_new(session: Session, talker: Program) -> None:
    """As many tokens as in Python, where a turn equals a fresh run; counted by the progress of each call."""
    beside = talker.session(messages=[{"role": "system", "content": "be"}])
    beside.speculates = False
    for turn in range(20):
        asked = [*beside.messages, {"role": "user", "content": f"{turn:02}"}]
        answer = beside.send(f"{turn:02}", 4)
        prefilled, tokens = session.go_on(talker.tokenizer.chat(asked), 4)
        assert talker.tokenizer.decode(tokens) == answer
        assert prefilled == beside.turn.prefilled < 16


@pytest.mark.parametrize(
    ("architecture", "recipe"),
    [
        ("gpt_oss", Recipe(prefix=(39, 33))),
        ("lfm2", Recipe(prefix=(5, 9, 3))),
        ("gemma2", Recipe()),
        ("gemma3_text", Recipe("g", weight_bits=4, group=32, keep8=("*.down_proj",))),
    ],
    ids=["experts, sinks, windows", "convolutions", "softcaps", "4-bit groups"],
)
def test_other_programs(architecture: str, recipe: Recipe, tmp_path: Path) -> None:
    """By portable kernels, without a tokenizer."""
    model = tiny_model(architecture, max_position_embeddings=320)
    ctx, module = quantized(model, recipe, context=320)
    lower_for_cpu(ctx, module)
    manifest = {"target": "cpu-int8", "recipe": "w8a8", "source": {}, "mac_share_8bit": 0.8}
    program = Program(module, ctx.weights, letter_tokenizer(), manifest)
    project = tmp_path / "project"
    program.export(project, tokenizer=False)
    made = build(project, sets=["portable"])
    command = [driver(project, made)]
    _, logits, tokens = evaluated(command, project, IDS[:20], 9)
    assert (logits == program.integer_logits(IDS[:20])).all()
    assert tokens == list(program.generate_tokens(IDS[:20], 9))
    run([*command, "check", project / "model", tmp_path])


@pytest.mark.parametrize("sanitizers", ["", "address,undefined"])
def test_states_of_fixed_size(tmp_path: Path, sanitizers: str) -> None:
    """Linear attention keeps one: it goes back to nothing but a copy. Damaged files change numbers alone."""
    ctx, module = quantized(
        tiny_model("qwen3_5_text", max_position_embeddings=320), Recipe(prefix=(5, 9)), context=320
    )
    lower_for_cpu(ctx, module)
    manifest = {"target": "cpu-int8", "recipe": "w8a8", "source": {}, "mac_share_8bit": 0.8}
    program = Program(module, ctx.weights, letter_tokenizer(), manifest)
    project = export(program, tmp_path / "project")
    flags = ["-O1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"] if sanitizers else []
    made = build(project, flags=" ".join(flags), sets=["portable"] if sanitizers else supported_isas()[:1])
    command = ["setarch", "-R", driver(project, made, "gcc", flags)]
    work = tmp_path / "work"
    work.mkdir()
    run([*command, "states", project / "model", work])
    _, sessions = map(int, run([*command, "damaged", project / "model", work, 200]).split())
    assert sessions > 10
    if not sanitizers:
        _, logits, tokens = evaluated(command, project, IDS[:150], 9)
        assert (logits == program.integer_logits(IDS[:150])).all()
        assert tokens == list(program.generate_tokens(IDS[:150], 9))


def test_sampled_behind_a_softcap(tmp_path: Path) -> None:
    program = compiled(
        "cpu-int8", lower_for_cpu, letter_tokenizer(), 320, "gemma2", final_logit_softcapping=2.0
    )
    assert program.logit_cap == 2.0
    project = export(program, tmp_path / "project")
    built = build(project, "-DBUILD_SHARED_LIBS=ON", sets=supported_isas()[:1])
    session = Session(built, project, supported_isas()[0])
    session.library.mqc_model_logit_cap.restype = ctypes.c_double
    assert session.library.mqc_model_logit_cap(session.model) == 2.0
    for how in (Sampling(1.0, seed=1), Sampling(0.5, top_p=0.9, repetition_penalty=1.3, seed=2)):
        wanted = list(program.generate_tokens(IDS[:9], 60, how))
        assert session.sample(IDS[:9], how, 60) == wanted
    session.close()


@pytest.mark.arm
def test_arm(project: Path, wanted: tuple[Any, list[int]]) -> None:
    """One static program, which chooses by what the CPU has."""
    made = build(
        project,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_C_COMPILER={COMPILER}",
    )
    program = driver(project, made, COMPILER, ["-static"])
    for isa in CPUS:
        name, logits, tokens = evaluated([*qemu(isa), program], project, IDS, NEW)
        assert name == isa
        assert (logits == wanted[0]).all()
        assert tokens == wanted[1]


def test_the_examples_need_nothing_of_the_machine(built: Path, project: Path, talker: Program) -> None:
    """Text in, text out; a conversation of which the second turn begins with the first."""
    alone: dict[str, Any] = {"env": {"PATH": ""}, "cwd": "/"}
    said = run([built / "complete", project / "model", "hello"], **alone)
    assert said == talker.generate("hello", 32) + "\n"
    said = run([built / "chat", project / "model", "Hi"], **alone)
    asked = len(talker.tokenizer.chat("Hi"))
    room = talker.context - len(talker.prefix)
    assert said == talker.session().send("Hi", room + 1 - asked) + "\n", "until the context is full"


def test_examples_say_what_is_wrong(built: Path, project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "model", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.bin").unlink()
    for model, message in (("/no/such", "/no/such/weights.bin"), (tmp_path / "model", "tokenizer.bin")):
        done = subprocess.run(
            [built / "complete", model, "hello"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert message in done.stderr


def test_without_a_tokenizer(talker: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> bytes:
        raise TargetError("no form in C")

    monkeypatch.setattr("mqc.backends.cpu.export.tokenizer_tables", refuse)
    with pytest.raises(TargetError, match="no form in C; -O tokenizer=false exports the program without it"):
        talker.export(tmp_path / "project")
    assert not list(tmp_path.iterdir())
    talker.export(tmp_path / "project", tokenizer=False)
    assert [path.name for path in (tmp_path / "project" / "model").iterdir()] == ["weights.bin"]


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_no_report_of_sanitizers(project: Path, tmp_path: Path, sanitizers: str) -> None:
    """The whole interface, memory that runs out at each place, damaged files; sessions in several threads."""
    flags = ["-O1", "-fno-omit-frame-pointer", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    made = build(project, "-DCMAKE_BUILD_TYPE=Debug", flags=" ".join(flags), sets=["portable"])
    # A thread sanitizer may not know how addresses are laid out at random here.
    command = ["setarch", "-R", driver(project, made, "gcc", flags)]
    model = project / "model"
    if sanitizers == "thread":
        run([*command, "threads", model])
        return
    run([*command, "check", model, tmp_path])
    assert not list(tmp_path.iterdir())
    weights, sessions = map(int, run([*command, "damaged", model, tmp_path, 400]).split())
    assert weights > 20 and sessions > 20, "some files are taken, with other values"


def test_what_a_library_shows(built: Path, alone: Path, project: Path) -> None:
    """The functions of the headers and nothing else, and no name that an app could have."""
    declared = set()
    for header in (project / "include").glob("*.h"):
        declared |= set(re.findall(r"MQC_API [^;(]*?\b(mqc_\w+)\(", header.read_text()))
    assert len(declared) > 20
    shown = run(["nm", "-D", "--defined-only", built / "libmqc.so"])
    assert set(re.findall(r"\b\w+$", shown, re.M)) == declared
    names = re.findall(r" [A-Z] (\w+)$", run(["nm", "--defined-only", *alone.rglob("*.c.o")]), re.M)
    assert all(name.startswith("mqc") or name == "main" for name in names)


def test_a_unit_holds_all_kernels() -> None:
    included = set(re.findall(r'#include "(.+)"', (FOLDER / "unit.c").read_text()))
    assert included == {*SOURCES, "program.c"} - {"threads.c"}


def test_headers_stand_alone(project: Path) -> None:
    for header in (project / "include").glob("*.h"):
        for command in (["cc", "-std=c11", "-xc"], ["g++", "-xc++"]):
            subprocess.run(
                [*command, "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-"],
                input=f'#include "{header}"\nint main(void) {{ return 0; }}', text=True, check=True,
            )  # fmt: skip


def test_size_and_integers(alone: Path, tmp_path: Path) -> None:
    """What computes the logits has no floating-point instruction."""
    run(["strip", "-o", tmp_path / "stripped", alone / "libmqc.so"])
    assert 10_000 < os.stat(tmp_path / "stripped").st_size <= LIBRARY_BYTES
    (unit,) = alone.rglob("unit.c.o")
    found = mnemonics(unit)
    assert len(found) > 50
    assert not {m for m in found if FLOAT.match(m) and not INTEGER_CONVERSION.match(m)}


def test_unknown_instruction_set(project: Path, tmp_path: Path) -> None:
    command = ["cmake", "-S", project, "-B", tmp_path, "-DMQC_INSTRUCTION_SETS=mmx"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode and "there is no instruction set mmx" in done.stderr


def test_weights_of_another_program(built: Path, project: Path, tmp_path: Path) -> None:
    other = export(compiled("cpu-int8", lower_for_cpu, letter_tokenizer(), context=128), tmp_path / "other")
    done = subprocess.run(
        [built / "complete", other / "model", "hello"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "belongs to another program" in done.stderr


def test_files(project: Path) -> None:
    manifest = json.loads((project / "manifest.json").read_text())
    files = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert files == {*manifest["files"], "manifest.json"}
    assert {"CMakeLists.txt", "README.md", "include/mqc.h", "src/program.c", "model/tokenizer.bin"} <= files
    assert manifest["export"] == {}


def test_a_failed_export_leaves_nothing(
    talker: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> str:
        raise IRError("no facts")

    monkeypatch.setattr("mqc.backends.cpu.export._facts", refuse)
    with pytest.raises(IRError, match="no facts"):
        talker.export(tmp_path / "project")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    export(talker, tmp_path / "project")
    shutil.copytree(tmp_path / "project", tmp_path / "kept")
    monkeypatch.setattr("mqc.backends.cpu.export._facts", refuse)
    with pytest.raises(IRError, match="no facts"):
        talker.export(tmp_path / "project")
    assert not subprocess.run(["diff", "-r", tmp_path / "project", tmp_path / "kept"], check=False).returncode


def test_sums_that_are_not_those_of_the_weights(tmp_path: Path) -> None:
    """Some kernels of a library rely on them."""
    ctx, module = quantized(tiny_model("llama"))
    lower_for_cpu(ctx, module)
    linear = next(op for op in mqc_ops(module) if isinstance(op, LinearOp) and op.row_sums is not None)
    linear.properties["row_sums"] = ctx.weights.add("other", ctx.weights[linear.row_sums] + 1)
    manifest = {"target": "cpu-int8", "recipe": "w8a8", "source": {}, "mac_share_8bit": 0.8}
    with pytest.raises(IRError, match="are not the sum of its weights"):
        Program(module, ctx.weights, letter_tokenizer(), manifest).export(tmp_path / "project")
    assert not list(tmp_path.iterdir())
