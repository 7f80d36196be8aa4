"""The CPU backend on Arm, under QEMU: every op and whole models equal the oracle, in each instruction set."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mqc.backends.cpu import build
from mqc.backends.cpu.emit import emit
from mqc.compiler.recipe import Recipe
from mqc.runtime.oracle import OracleEngine
from tests.backends.arm import CPUS, OBJDUMP, ArmEngine, compiled, library, qemu
from tests.backends.op_cases import CASES, Lab, check_engine
from tests.backends.recurrent_cases import RECURRENT_CASES
from tests.backends.routed_cases import ROUTED_CASES
from tests.backends.test_cpu_program import mnemonics
from tests.compiled import lower_for_cpu, quantized
from tests.models import ARCHITECTURES, NOT_ON_NPU, RECURRENT, VOCABULARY, tiny_model

pytestmark = pytest.mark.arm
ALL_CASES = CASES | ROUTED_CASES | RECURRENT_CASES
#: The 48 inputs of down_proj are no groups of 32.
RECIPES = {
    "w8": Recipe(prefix=(39, 33)),
    "w4": Recipe("w4", weight_bits=4, prefix=(39, 33)),
    "groups": Recipe("groups", weight_bits=4, group=32, keep8=("*.down_proj",), prefix=(39, 33)),
}
MODELS = [(name, "w8") for name in (*ARCHITECTURES, *NOT_ON_NPU, *RECURRENT)]
MODELS += [(name, recipe) for name in ("llama", "gemma3_text", "gpt2") for recipe in ("w4", "groups")]
#: Arithmetic, comparison and conversion of floats: fmov only carries bits.
FLOAT = re.compile(r"^(f(?!mov$)\w+|[su]cvtf|bf(cvt|dot|mlal|mmla|mlsl)\w*)$")
#: Dot products in each instruction set.
DOTS = {"i8mm": {"sudot", "usmmla"}, "dotprod": {"sdot"}, "neon": set[str]()}
IDS = np.random.default_rng(0).integers(0, VOCABULARY, 30).astype(np.int32)


@pytest.mark.parametrize("isa", CPUS)
@pytest.mark.parametrize("case", ALL_CASES)
def test_op_equals_the_oracle(case: str, isa: str) -> None:
    for seed in range(2):
        lab = Lab(seed)
        module = ALL_CASES[case](lab)
        lower_for_cpu(lab.ctx, module)
        ids = lab.rng.integers(0, 31, 33).astype(np.int32)
        want = OracleEngine(module, lab.ctx.weights).forward(ids)
        engine = ArmEngine(module, lab.ctx.weights, isa, threads=1 + seed)
        check_engine(engine, ids, want)
        engine.close()


@pytest.mark.parametrize("isa", CPUS)
@pytest.mark.parametrize(("architecture", "recipe"), MODELS)
def test_model_equals_the_oracle(architecture: str, recipe: str, isa: str) -> None:
    """In pieces, and token by token, behind a prefix."""
    ctx, module = quantized(tiny_model(architecture), RECIPES[recipe])
    lower_for_cpu(ctx, module)
    want = OracleEngine(module, ctx.weights).forward(IDS)
    engine = ArmEngine(module, ctx.weights, isa, threads=2)
    parts = [engine.forward(IDS[:9]), *(engine.forward(IDS[i : i + 1]) for i in range(9, 30))]
    assert (np.concatenate(parts) == want).all()
    engine.close()


@pytest.mark.parametrize("isa", CPUS)
def test_no_floating_point_instruction(isa: str) -> None:
    ctx, module = quantized(tiny_model("llama"))
    lower_for_cpu(ctx, module)
    found = mnemonics(library(emit(module, ctx.weights).source, isa), OBJDUMP)
    assert found & {"sdot", "sudot", "usmmla"} == DOTS[isa]
    assert {"sqrdmulh", "srshl"} <= found
    assert not {m for m in found if FLOAT.match(m)}


def test_the_float_pattern_finds_floats(tmp_path: Path) -> None:
    source = tmp_path / "f.c"
    source.write_text(
        "float f(float a, int b) { return a * b + 1.5f; } int main(void) { return f(3, 4) > 2; }"
    )
    found = {m for m in mnemonics(compiled(source, tmp_path), OBJDUMP) if FLOAT.match(m)}
    assert {"fmul", "fadd", "scvtf"} <= found


@pytest.mark.parametrize("isa", CPUS)
def test_the_best_instruction_set_is_chosen(
    isa: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From what Linux, as QEMU imitates it, says of the CPU."""
    source = tmp_path / "hwcap.c"
    source.write_text(
        "#include <stdio.h>\n#include <sys/auxv.h>\n"
        'int main(void) { printf("%lu %lu", getauxval(AT_HWCAP), getauxval(AT_HWCAP2)); }'
    )
    run = subprocess.run([*qemu(isa), compiled(source, tmp_path)], capture_output=True, text=True, check=True)
    flags = build.arm_flags(dict(zip((16, 26), map(int, run.stdout.split()), strict=True)))
    monkeypatch.setattr(build, "cpu_flags", lambda: flags)
    build.supported_isas.cache_clear()
    try:
        found = build.supported_isas()
    finally:
        build.supported_isas.cache_clear()
    assert found == (*list(CPUS)[list(CPUS).index(isa) :], "portable")
