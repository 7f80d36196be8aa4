"""The command line, through its entry point."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.conftest import program, saved  # noqa: F401  (fixtures)

KEYS_BENCH = {
    "prefill_tok_s", "decode_tok_s", "peak_rss_bytes", "read_bandwidth_bytes_s", "int8_peak_mac_s", "threads",
}  # fmt: skip


def mqc(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mqc", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def data(*arguments: object) -> dict[str, object]:
    run = mqc(*arguments, "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_info_targets_passes(saved: Path) -> None:  # noqa: F811
    assert data("info", saved)["target"] == "cpu-int8"
    found = data("targets")["targets"]
    assert {name: entry["backend"] for name, entry in found.items()} == {
        "cpu-int8": "cpu",
        "npu-int8": "npu",
        "onnx-int8": "onnx",
    }
    assert data("passes")["passes"]["fold-norm"]["ensures"] == "llm"  # type: ignore[index]
    assert "cpu-int8" in mqc("targets").stdout


def test_run(saved: Path) -> None:  # noqa: F811
    plain = mqc("run", saved, "--prompt", "hello", "--max-new-tokens", 6)
    assert plain.returncode == 0, plain.stderr
    assert data("run", saved, "--prompt", "hello", "--max-new-tokens", 6)["text"] == plain.stdout[:-1]
    oracle = data("run", saved, "--prompt", "hello", "--max-new-tokens", 6, "--engine", "oracle")
    assert oracle["text"] == plain.stdout[:-1]


def test_eval_and_bench(saved: Path, tmp_path: Path) -> None:  # noqa: F811
    text = tmp_path / "text.txt"
    text.write_text("hello" * 60)
    result = data("eval", saved, "--text", text, "--windows", 3, "--skip", 1, "--length", 20, "--no-float")
    assert {"float_ppl", "float_prefix_ppl", "int_ppl", "mac_share_8bit", "size_bytes"} <= set(result)
    assert result["float_ppl"] is None and result["int_ppl"] > 1  # type: ignore[operator]
    assert result["size_bytes"] == sum(f.stat().st_size for f in saved.iterdir())
    bench = data("bench", saved, "--prompt-tokens", 20, "--new-tokens", 5, "--threads", 1)
    assert set(bench) >= KEYS_BENCH and bench["threads"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "/nowhere"), "ArtifactError: /nowhere is not an mqc program"),
        (("compile", "/nowhere/at/all", "-o", "x.mqc"), "ModelError: cannot load"),
        (("compile", "demo", "-o", "x.mqc", "--target", "tpu"), "unknown target 'tpu'; known: cpu-int8"),
        (("compile", "demo", "-o", "x.mqc", "--recipe", "w3"), "there is no recipe 'w3'; known: w8a8"),
        (("compile", "demo", "-o", "x.mqc", "--passes", "x"), "there is no pass 'x'"),
        (("compile", "demo", "-o", "x.mqc", "--calibration", "/no.txt"), "cannot read /no.txt"),
    ],
)
def test_errors_have_a_message_and_a_code(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mqc", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.returncode == 1
    assert message in run.stderr.replace("\n", " ") and "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_run_needs_a_prompt(saved: Path) -> None:  # noqa: F811
    assert "either --prompt or --chat" in mqc("run", saved).stderr
    too_long = mqc("run", saved, "--prompt", "h" * 80)
    assert too_long.returncode == 1 and "do not fit the context" in too_long.stderr.replace("\n", " ")


def test_eval_without_a_float_model(saved: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "t").write_text("hello" * 60)
    run = mqc("eval", saved, "--text", tmp_path / "t", "--windows", 2, "--length", 20)
    assert run.returncode == 1 and "use --no-float" in run.stderr
