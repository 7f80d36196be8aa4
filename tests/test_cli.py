"""The command line, through its entry point."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

import mqc as package
from tests import in_process
from tests.command_lines import try_command_lines
from tests.import_graph import ROOT
from tests.models import tiny_model
from tests.runtime.conftest import program, saved  # noqa: F401  (fixtures)

KEYS_BENCH = {
    "prefill_tok_s", "decode_tok_s", "peak_rss_bytes", "read_bandwidth_bytes_s", "int8_peak_mac_s", "threads",
}  # fmt: skip


def mqc(
    *arguments: object,
    environment: dict[str, str] | None = None,
    preexec_fn: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mqc", *map(str, arguments)], capture_output=True, text=True, check=False,
        env=environment, preexec_fn=preexec_fn,
    )  # fmt: skip


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
    assert result["int_kl"] is result["rounding_ratio"] is None
    assert result["size_bytes"] == sum(f.stat().st_size for f in saved.iterdir())
    for kind in ("chat", "code"):
        other = data("eval", saved, "--format", kind, "--windows", 2, "--length", 20, "--no-float")
        assert other["int_ppl"] not in (None, result["int_ppl"])
    bench = data("bench", saved, "--prompt-tokens", 20, "--new-tokens", 5, "--threads", 1)
    assert set(bench) >= KEYS_BENCH and bench["threads"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "/nowhere"), "ArtifactError: /nowhere is not an mqc program"),
        (("compile", "/nowhere/at/all", "-o", "x.mqc"), "ModelError: cannot load"),
        (("compile", "demo", "-o", "x.mqc", "--target", "tpu"), "unknown target 'tpu'; known: cpu-int8"),
        (("compile", "demo", "-o", "x.mqc", "--recipe", "w3"), "there is no recipe 'w3'; known: w8a8"),
        (("compile", "demo", "-o", "x.mqc", "--passes", "x"), "there is no pass 'x'; known: "),
        (("compile", "demo", "-o", "x.mqc", "--passes", "fold-nrom"), "did you mean 'fold-norm'? known: "),
        (("compile", "demo", "-o", "x.mqc", "--calibration", "/no.txt"), "cannot read /no.txt"),
    ],
)
def test_errors_have_a_message_and_a_code(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = in_process.mqc(*arguments)
    assert run.returncode == 1
    assert message in run.stderr.replace("\n", " ") and "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "poem"), "--format must be text, chat or code, got 'poem'"),
        (("--format", "chat", "--text", "x.txt"), "give either --text or --format"),
        (("--format", "chat", "--length", "20", "--skip", "9999"), "windows of 20 tokens, not 9999 + 30"),
    ],
)
def test_eval_takes_one_text(saved: Path, options: tuple[str, ...], message: str) -> None:  # noqa: F811
    run = in_process.mqc("eval", saved, "--no-float", "--length", "20", *options)
    assert run.returncode == 1 and message in run.stderr.replace("\n", " ")


def test_run_needs_a_prompt(saved: Path) -> None:  # noqa: F811
    assert "either --prompt or --chat" in in_process.mqc("run", saved).stderr
    too_long = in_process.mqc("run", saved, "--prompt", "h" * 80)
    assert too_long.returncode == 1 and "do not fit the context" in too_long.stderr.replace("\n", " ")


def test_eval_without_a_float_model(saved: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "t").write_text("hello" * 60)
    run = in_process.mqc("eval", saved, "--text", tmp_path / "t", "--windows", 2, "--length", 20)
    assert run.returncode == 1 and "use --no-float" in run.stderr


def without(tmp_path: Path, *packages: str) -> dict[str, str]:
    """An environment in which some packages are not installed."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nfor name in {packages!r}: sys.modules[name] = None\n"
    )
    return os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


#: What the extra `compile` brings.
COMPILE = ("torch", "transformers", "scipy", "networkx", "accelerate", "gguf")


def test_what_works_without_torch(saved: Path, tmp_path: Path) -> None:  # noqa: F811
    text, ir = tmp_path / "text", saved / "program.mlir"
    text.write_text("hello" * 60)
    lines: list[list[object]] = [
        ["info", saved], ["targets"], ["run", saved, "--prompt", "hello"],
        ["eval", saved, "--text", text, "--windows", 1, "--length", 20, "--no-float"],
        ["bench", saved, "--prompt-tokens", 4, "--new-tokens", 2],
        ["ir", "verify", ir], ["ir", "run", ir], ["ir", "diff", ir, ir],
        ["opt", ir, "--passes", "plan-memory", "-o", tmp_path / "o.mlir"],
    ]  # fmt: skip
    environment = without(tmp_path, *COMPILE)
    for line in lines:
        run = mqc(*line, environment=environment)
        assert run.returncode == 0, (line, run.stderr)


def test_what_needs_torch_says_how_to_get_it(saved: Path, tmp_path: Path) -> None:  # noqa: F811
    llm = tmp_path / "llm.mlir"
    llm.write_text((ROOT / "tests" / "filecheck" / "passes" / "fold_norm.mlir").read_text())
    lines: list[list[object]] = [
        ["compile", "demo", "-o", tmp_path / "d"], ["eval", saved, "--windows", 1, "--length", 20],
        ["passes"], ["opt", llm, "--passes", "fold-norm"], ["ir", "verify", llm, "--text-only"],
        ["debug", "compare", saved], ["ir", "graph", saved / "program.mlir", "-o", tmp_path / "g.svg"],
    ]  # fmt: skip
    environment = without(tmp_path, *COMPILE)
    for line in lines:
        run = mqc(*line, environment=environment)
        assert run.returncode == 1 and "Traceback" not in run.stderr, (line, run.stderr)
        assert "pip install 'mqc[compile]'" in run.stderr, (line, run.stderr)


@pytest.mark.parametrize(
    ("command", "megabytes"), [("ir", 150), ("run", 250), ("run", 400), ("compile", 800), ("compile", 1600)]
)
def test_too_little_memory_is_an_error(
    saved: Path, tmp_path: Path, command: str, megabytes: int  # noqa: F811
) -> None:  # fmt: skip
    """Importing, reading and computing end at different places. Only C++ may abort: nobody can catch that."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    tiny_model("llama").save_pretrained(tmp_path / "model")
    lines: dict[str, list[object]] = {
        "ir": ["ir", "run", saved, "--random", 40],
        "run": ["run", saved, "--prompt", "hello"],
        "compile": ["compile", tmp_path / "model", "-o", tmp_path / "out.mqc"],
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = mqc(*lines[command], preexec_fn=limit, environment=environment)
    assert run.returncode in (0, 1) or "bad_alloc" in run.stderr, run.stderr
    assert "Traceback" not in run.stderr, run.stderr
    assert run.returncode == 0 or "error: " in run.stderr or "bad_alloc" in run.stderr, run.stderr
    assert not list(tmp_path.glob(".*"))


def test_names_from_files_do_not_steer_the_terminal(saved: Path) -> None:  # noqa: F811
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["recipe"] = "\x1b[31m\u202e[/red][bold]"
    (saved / "manifest.json").write_text(json.dumps(manifest))
    shown = mqc("info", saved).stdout
    assert "\\x1b[31m\\u202e[/red][bold]" in shown and "\x1b" not in shown
    (saved / "manifest.json").write_text(json.dumps({**manifest, "recipe": "\ud800"}))
    run = mqc("info", saved)
    assert run.returncode == 1 and "surrogates not allowed" in run.stderr


def test_version_and_help() -> None:
    for argument, said in (("--version", f"mqc {version('mqc')}\n"), ("-h", "Compile decoder LLMs")):
        run = mqc(argument)
        assert run.returncode == 0 and said in run.stdout, run.stderr
    assert package.__version__ == version("mqc")


@pytest.mark.slow
def test_random_command_lines() -> None:
    _, faults = try_command_lines(300)
    assert not faults
