"""Learning from the command line: the plan as a file, kill -9, and torchrun."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tests.models import tiny_model
from tests.runtime.conftest import byte_tokenizer

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and tokenizer, and a text to learn from."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    raw = folder / "raw.json"
    raw.write_text(byte_tokenizer().files["tokenizer.json"])
    PreTrainedTokenizerFast(tokenizer_file=str(raw), bos_token="<unk>", eos_token="<eos>").save_pretrained(
        folder
    )
    letters = np.random.default_rng(0).choice(list("abcdefgh"), 4000)
    (folder / "text.txt").write_text("".join(letters))
    return folder


def arguments(model: Path, output: Path, *more: object) -> list[str]:
    given = "compile", model, "-o", output, "--calibration", model / "text.txt", "--json", *more
    return [str(a) for a in given]


def compile_json(model: Path, output: Path, *more: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "mqc", *arguments(model, output, *more)],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def scales(output: Path) -> list[float]:
    text = (output / "program.mlir").read_text()
    return [float(found) for found in re.findall(r"uniform<u\d+:f32, ([0-9.e-]+):", text)]


@pytest.mark.slow
def test_a_plan_is_found_written_and_taken(model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    found = compile_json(model, tmp_path / "a.mqc", "--share", 0.9, "--plan", plan)
    assert found["mac_share_8bit"] >= 0.9 and len(found["precision"]) > 8
    assert '"%layers.0.mlp.mul=8  # ' in plan.read_text() or '"%layers.0.mlp.mul=16  # ' in plan.read_text()
    taken = compile_json(model, tmp_path / "b.mqc", "--recipe", plan)
    assert taken["mac_share_8bit"] == found["mac_share_8bit"] and taken["precision"] == []
    assert scales(tmp_path / "a.mqc") == scales(tmp_path / "b.mqc")


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(model: Path, tmp_path: Path) -> None:
    learned = "--preset", "learned", "--checkpoints", tmp_path / "state"
    killed = subprocess.Popen(
        [sys.executable, "-m", "mqc", *arguments(model, tmp_path / "a.mqc", *learned)],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not list(tmp_path.glob("state/*.safetensors")) and killed.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.005)
    killed.kill()
    assert killed.wait() < 0 and not (tmp_path / "a.mqc").exists()
    compile_json(model, tmp_path / "a.mqc", *learned)
    compile_json(model, tmp_path / "b.mqc", "--preset", "learned")
    assert (tmp_path / "a.mqc" / "program.mlir").read_text() == (
        tmp_path / "b.mqc" / "program.mlir"
    ).read_text()


@pytest.mark.slow
def test_torchrun_writes_one_program(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "two.toml"
    recipe.write_text('learn = "steps=6 batch=4"\n')
    more = "--recipe", recipe
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*torchrun, "-m", "mqc", *arguments(model, tmp_path / "a.mqc", *more)],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    compile_json(model, tmp_path / "b.mqc", *more)
    assert scales(tmp_path / "a.mqc") == pytest.approx(scales(tmp_path / "b.mqc"), rel=1e-3)
