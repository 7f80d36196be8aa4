"""The emitted program: no floating point, building, and what the engine refuses."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mqc.backends.cpu import CpuBackend, CpuEngine
from mqc.backends.cpu.build import build, cache_folder, choose_isa, kernels, load_library, supported_isas
from mqc.backends.cpu.emit import emit
from mqc.backends.cpu.kernels import texts
from mqc.backends.cpu.limits import measure
from mqc.compiler.pass_manager import Pipeline
from mqc.dialects.int_ops import LinearOp
from mqc.errors import InputError, IRError, StorageError, TargetError, ToolchainError
from mqc.ir.module import mqc_ops
from mqc.runtime.oracle import OracleEngine
from tests.compiled import lower_for_cpu, quantized
from tests.models import VOCABULARY, tiny_model

#: x87 and SSE/AVX arithmetic, comparison and conversion on floats. Moves, shuffles and bitwise ops
#: whose names end in ps or pd only carry bits, and compilers use them on integers.
FLOAT = re.compile(
    r"^(f(add|sub|mul|div|ld|ild|st|ist|sqrt|com|ucom|chs|abs|prem|sin|cos)\w*"
    r"|v?(add|sub|mul|div|sqrt|min|max|cmp\w*|comi|ucomi|rcp|rsqrt|round|h?add|h?sub|addsub|dp"
    r"|getexp|getmant|scalef|range|reduce|fixupimm|rndscale|rcp14|rsqrt14)(ss|sd|ps|pd|sh|ph)"
    r"|v?cvt\w*(ss|sd|ps|pd|ph|sh)\w*|vfn?m(add|sub)\w+|vdpbf16ps)$"
)
#: Conversions between integers of different widths.
INTEGER_CONVERSION = re.compile(r"^v?cvt(t?)(dq|qq|udq|uqq)2(dq|qq)$")


def mnemonics(library: Path, objdump: str = "objdump") -> set[str]:
    text = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", str(library)], capture_output=True, text=True, check=True
    ).stdout
    return {m for m in re.findall(r"^\s+[0-9a-f]+:\s+(?:[{}\w]+\} )?(\w+)", text, re.M)}


@pytest.fixture(scope="module")
def tiny():  # type: ignore[no-untyped-def]
    ctx, module = quantized(tiny_model("llama"))
    lower_for_cpu(ctx, module)
    return ctx, module


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache that holds the portable kernels alone."""
    folder = tmp_path / "cache"
    folder.mkdir()
    shutil.copy(kernels("portable"), folder)
    monkeypatch.setenv("MQC_CACHE", str(folder))
    return folder


@pytest.mark.parametrize("isa", supported_isas())
def test_no_floating_point_instruction(tiny, isa: str) -> None:  # type: ignore[no-untyped-def]
    ctx, module = tiny
    source = emit(module, ctx.weights).source
    code = re.sub(r"/\*.*?\*/", "", "\n".join([source, *texts().values()]), flags=re.S)
    assert not re.search(r"\b(float|double)\b|\d\.\d", code)
    found = mnemonics(build(source, isa))
    assert len(found) > 50
    assert not {m for m in found if FLOAT.match(m) and not INTEGER_CONVERSION.match(m)}


def test_the_float_pattern_finds_floats(tmp_path: Path) -> None:
    source = tmp_path / "f.c"
    source.write_text("float f(float a, int b) { return a * b + 1.5f; } double g(double x) { return x / 3; }")
    library = tmp_path / "f.so"
    subprocess.run(["cc", "-O2", "-fPIC", "-shared", str(source), "-o", str(library)], check=True)
    assert {"mulss", "addss", "divsd", "cvtsi2ss"} <= {m for m in mnemonics(library) if FLOAT.match(m)}


def test_missing_compiler(tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ctx, module = tiny
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MQC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ToolchainError, match=r"no C compiler found.*apt-get install gcc"):
        CpuEngine(module, ctx.weights)


def test_failing_compiler(own_cache: Path) -> None:
    with pytest.raises(ToolchainError, match=r"failed \(1\):\n.*error"):
        build("this is not C", "portable")
    assert list(own_cache.iterdir()) == [kernels("portable")]


def test_compiler_that_is_named_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    with pytest.raises(ToolchainError, match="which is not found"):
        build("int x;", "portable")


def test_damaged_library_is_built_again(own_cache: Path) -> None:
    source = "int answer(void) { return 42; }"
    library = build(source, "portable")
    library.write_bytes(library.read_bytes()[:100])
    assert load_library(source, "portable").answer() == 42


def test_damaged_kernels_are_built_again(own_cache: Path) -> None:
    made = kernels("portable")
    made.write_bytes(made.read_bytes()[:100])
    assert load_library("int answer(void) { return 42; }", "portable").answer() == 42


def test_unwritable_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MQC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="set MQC_CACHE"):
        build("int x;", "portable")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MQC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/mqc")


def test_sums_that_are_not_those_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels add them they are checked; elsewhere they are what the oracle takes them for."""
    ctx, module = quantized(tiny_model("llama"))
    lower_for_cpu(ctx, module)
    monkeypatch.setattr("mqc.backends.cpu.engine.ADDS_SUMS", {"portable"})
    CpuEngine(module, ctx.weights, threads=1, isa="portable").close()
    linear = next(op for op in mqc_ops(module) if isinstance(op, LinearOp) and "q_proj" in op.value_name)
    sums = ctx.weights[linear.row_sums].copy()
    sums[3] += 1
    linear.properties["row_sums"] = ctx.weights.add("other", sums)
    with pytest.raises(IRError, match=r"q_proj.*row_sums of channel 3 are not the sum of its weights"):
        CpuEngine(module, ctx.weights, threads=1, isa="portable")
    monkeypatch.undo()
    with CpuEngine(module, ctx.weights, threads=1, isa="portable") as engine:
        ids = np.arange(5, dtype=np.int32)
        assert (engine.forward(ids) == OracleEngine(module, ctx.weights).forward(ids)).all()


def test_unknown_instruction_set() -> None:
    with pytest.raises(TargetError, match="this machine runs"):
        choose_isa("sse9")


def test_engine_refuses_bad_input(tiny) -> None:  # type: ignore[no-untyped-def]
    ctx, module = tiny
    with pytest.raises(InputError, match="threads must be"):
        CpuEngine(module, ctx.weights, threads=0)
    engine = CpuEngine(module, ctx.weights, threads=1)
    for ids, message in (
        ([], "at least one"),
        ([VOCABULARY], "outside"),
        ([-1], "outside"),
        ([1] * 65, "do not fit"),
    ):
        with pytest.raises(InputError, match=message):
            engine.forward(np.array(ids, np.int32))
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.forward(np.array([1], np.int32))


def test_an_op_without_kernel_is_named() -> None:
    ctx, module = quantized(tiny_model("llama"))
    linear = next(op for op in mqc_ops(module) if isinstance(op, LinearOp))
    requant = next(iter(linear.result.uses)).operation
    requant.results[0].replace_all_uses_with(linear.result)
    requant.detach()
    requant.erase()
    assert CpuBackend().select(linear) is None
    with pytest.raises(Exception, match=r"no kernel for int\.linear %.*q_proj"):
        Pipeline.parse("choose-kernels").run(ctx, module)


def test_limits_are_measured() -> None:
    limits = measure(threads=1)
    assert limits.read_bandwidth_bytes_s > 1e8 and limits.int8_peak_mac_s > 1e8 and limits.threads == 1
