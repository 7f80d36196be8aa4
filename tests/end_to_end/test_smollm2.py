"""The main job on the real model: SmolLM2-135M-Instruct on WikiText-2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mqc.backends.cpu import CpuEngine
from mqc.backends.cpu.build import supported_isas

import mqc
from mqc.data import text
from mqc.proofs import check_accumulators
from mqc.runtime.oracle import OracleEngine
from tests.end_to_end.processes import command, peak_gib

pytestmark = pytest.mark.slow

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "smollm2.mqc"
    compiling = subprocess.Popen([sys.executable, "-m", "mqc", "compile", "demo", "-o", str(folder)])
    peak = peak_gib(compiling)
    assert compiling.returncode == 0
    assert 0.5 < peak < 4, f"compilation took {peak:.2f} GiB"
    return folder


def test_perplexity_and_mac_share(path: Path) -> None:
    result = command("eval", path, "--windows", 30, "--skip", 0, "--length", 512)
    assert result["float_ppl"] == pytest.approx(28.472, abs=0.01)
    assert result["int_ppl"] <= 1.010 * result["float_prefix_ppl"]  # type: ignore[operator]
    assert result["mac_share_8bit"] >= 0.75  # type: ignore[operator]


def test_says_paris_as_the_oracle_does(path: Path) -> None:
    program = mqc.load(path)
    prompt = program.tokenizer.chat(QUESTION)
    tokens = list(program.generate_tokens(prompt, 20))
    assert "Paris" in program.tokenizer.decode(tokens)
    assert tokens == list(program.generate_tokens(prompt, 20, engine="oracle"))
    answer = command("run", path, "--chat", QUESTION, "--max-new-tokens", 20)
    assert "Paris" in str(answer["text"])


@pytest.mark.parametrize("isa", supported_isas())
def test_logits_equal_the_oracles(path: Path, isa: str) -> None:
    program = mqc.load(path)
    ids = program.tokenizer.encode(text("test")[:1500])[:150]
    want = OracleEngine(program.module, program.weights).forward(ids)  # type: ignore[arg-type]
    for threads in (1, 2):
        with CpuEngine(program.module, program.weights, threads=threads, isa=isa) as engine:
            assert (engine.forward(ids) == want).all()  # type: ignore[arg-type]


def test_no_accumulator_overflows(path: Path) -> None:
    program = mqc.load(path)
    outputs = 30 * (576 + 2 * 192 + 576 + 2 * 1536 + 576) + 49152
    assert check_accumulators(program.module, program.weights) == outputs


@pytest.mark.parametrize(("recipe", "bound"), [("w4a8", 1.22), ("w4a8-g64", 1.13)])
def test_four_bit_recipes(tmp_path: Path, recipe: str, bound: float) -> None:
    """Times the float model's perplexity; by rounding to nearest 2.7 and 1.5."""
    command("compile", "demo", "-o", tmp_path / "w4.mqc", "--recipe", recipe)
    result = command("eval", tmp_path / "w4.mqc")
    assert result["int_ppl"] < bound * result["float_prefix_ppl"]  # type: ignore[operator]
    assert result["size_bytes"] < 130e6  # type: ignore[operator]
