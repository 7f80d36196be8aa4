"""The command line, through its entry point."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

import mqc as package
from mqc.backends.cpu.build import supported_isas
from mqc.cli import doctor, packages
from mqc.cli.common import app
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import RECIPES
from mqc.runtime.perplexity import text_windows
from mqc.runtime.program import Program
from tests import in_process
from tests.command_lines import commands, try_command_lines
from tests.compiled import lower_for_cpu
from tests.import_graph import ROOT
from tests.models import tiny_model
from tests.runtime.conftest import compiled, letter_tokenizer, program, saved  # noqa: F401  (fixtures)

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


def test_info_says_all_of_a_program(saved: Path) -> None:  # noqa: F811
    told, loaded = json.loads(in_process.mqc("info", saved, "--json").stdout), package.load(saved)
    assert told == {**loaded.facts(), "path": str(saved), "size_bytes": told["size_bytes"]}
    assert set(told["files"]) == {file.name for file in saved.iterdir()} - {"manifest.json"}
    # Keys and values of 2 heads of 8 channels, in 2 layers.
    assert (told["vocabulary"], told["cache_bytes_per_position"]) == (64, 2 * 2 * 2 * 8)
    assert told["ops"]["int.attention"] == 2 and told["chat_templates"] == ["default"]
    assert told["end_tokens"] == [1]


def test_pipelines_can_be_pasted(saved: Path, tmp_path: Path) -> None:  # noqa: F811
    said = in_process.mqc("passes").stdout
    for name, recipe in RECIPES.items():
        line = said.partition(f"recipe {name} on cpu:\n")[2].splitlines()[0]
        option, text = shlex.split(line)
        assert option == "--passes" and str(Pipeline.parse(text)) == str(recipe.pipeline("cpu")) == text
    manifest = json.loads((saved / "manifest.json").read_text())
    pipeline = str(RECIPES["w4a8"].pipeline("cpu"))
    (saved / "manifest.json").write_text(json.dumps({**manifest, "pipeline": pipeline}))
    assert f"\n--passes {shlex.quote(pipeline)}\n" in in_process.mqc("info", saved).stdout


def test_doctor(tmp_path: Path) -> None:
    told = json.loads(in_process.mqc("doctor", "--json").stdout)
    assert told["machine"]["mqc"] == told["packages"]["mqc"].get("mqc", version("mqc"))
    assert told["packages"]["compile"]["torch"] == version("torch")
    assert set(told["packages"]) == {"mqc", "compile", "onnx", "qnn", "lm-eval", "serve", "explore", "dev"}
    assert told["backends"]["cpu"]["C compiler"]["ok"]
    assert told["backends"]["cpu"]["instruction set"] == {"ok": True, "found": supported_isas()[0]}
    assert "CPUExecutionProvider" in told["backends"]["onnx"]["execution providers"]["found"]
    # A machine without tools: that is told, with what to do, and is no failure.
    run = mqc("doctor", environment={**os.environ, "PATH": "", "CC": ""})
    assert run.returncode == 0 and "Traceback" not in run.stderr
    said = " ".join(word.strip("│") for word in run.stdout.split())
    assert "missing: no C compiler found" in said
    for tool in ("clang-19 or clang", "ld.lld-19 or ld.lld", "qemu-hexagon"):
        assert f"missing: {tool} is not found; on Debian: apt-get install" in said


def test_packages_by_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.extra_of("torch") == "compile" and packages.extra_of("lm_eval") == "lm-eval"
    assert packages.extra_of("numpy") is None and packages.extra_of("nothing") is None
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "onnx" else "1")
    said = " ".join(word.strip("│") for word in in_process.mqc("doctor").stdout.split())
    assert "onnxruntime 1, missing: onnx (pip install 'mqc[onnx]')" in said


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


def test_two_programs_are_compared(program: Program, saved: Path, tmp_path: Path) -> None:  # noqa: F811
    text, other = tmp_path / "text.txt", tmp_path / "other.mqc"
    text.write_text("helloworld" * 60)
    another = compiled("cpu-int8", lower_for_cpu, hidden_act="gelu")
    another.save(other)
    given = "--text", text, "--windows", 3, "--length", 20, "--no-float", "--against"
    same = data("eval", saved, *given, saved)
    assert (same["programs_ratio"], same["programs_kl"], same["programs_greedy"]) == (1.0, 0.0, 1.0)
    assert same["against_ppl"] == same["int_ppl"] and same["against_kl"] is same["int_kl"] is None
    result = data("eval", saved, *given, other)
    ratio = result["int_ppl"] / result["against_ppl"]  # type: ignore[operator]
    assert result["programs_ratio"] == pytest.approx(ratio) and ratio != 1
    kl = []
    for window in text_windows(program.tokenizer.encode(text.read_text(), start=False), 20, 3):
        p, q = (
            torch.tensor(one.logits(window.tolist())).double().log_softmax(-1) for one in (another, program)
        )
        kl.append(float((p.exp() * (p - q)).sum(-1).mean()))
    assert result["programs_kl"] == pytest.approx(np.mean(kl), rel=1e-4)
    table = in_process.mqc("eval", saved, *given, other)
    assert table.returncode == 0 and "other program" in table.stdout
    compiled("cpu-int8", lower_for_cpu, letter_tokenizer()).save(tmp_path / "letters.mqc")
    wrong = in_process.mqc("eval", saved, *given, tmp_path / "letters.mqc")
    assert wrong.returncode == 1 and "same tokenizer" in wrong.stderr


@pytest.mark.parametrize("text", ["0", "-1%", "nan", "half", "", "inf%"])
def test_a_loss_is_a_share(text: str, tmp_path: Path) -> None:
    run = in_process.mqc("compile", "demo", "-o", tmp_path / "x.mqc", f"--max-loss={text}")
    assert run.returncode == 1 and "--max-loss must be a share above 0" in run.stderr.replace("\n", " ")


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
        (
            ("compile", "demo", "-o", "x.mqc", "--max-loss", "1%", "--share", "0.9"),
            "max_loss goes without share",
        ),
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


@pytest.mark.parametrize("command", [["run", "--prompt", "a"], ["bench"], ["eval"], ["export", "-o", "OUT"]])
def test_options_are_checked_before_a_program_is_read(
    command: list[str],
    saved: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "manifest.json").write_bytes((saved / "manifest.json").read_bytes())
    words = [word.replace("OUT", str(tmp_path / "out")) for word in command]
    result = in_process.mqc(words[0], tmp_path, *words[1:], "-O", "colour=red")
    assert result.returncode == 1 and "has no option 'colour'" in result.stderr


def test_run_needs_a_prompt(saved: Path) -> None:  # noqa: F811
    assert (
        "either --prompt, --prompt-file, --chat, --messages or --batch" in in_process.mqc("run", saved).stderr
    )
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
        ["info", saved], ["targets"], ["doctor"], ["run", saved, "--prompt", "hello"],
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
    for words in [("mqc",), *(("mqc", *names) for names, _ in commands(app))]:
        run = in_process.mqc(*words[1:], "-h")
        assert run.returncode == 0 and "--help" in run.stdout, words


@pytest.mark.slow
def test_random_command_lines() -> None:
    _, faults = try_command_lines(300)
    assert not faults
