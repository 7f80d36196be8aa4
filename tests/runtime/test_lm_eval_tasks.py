"""Tasks of lm-eval on a tiny program, with data on this disk: from Python and on the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from mqc.cli.programs import app
from mqc.errors import InputError
from mqc.runtime import lm_eval
from mqc.runtime.lm_eval import ProgramLM, evaluate_tasks
from mqc.runtime.program import Program
from tests.compiled import lower_for_cpu
from tests.models import tiny_model
from tests.runtime.conftest import compiled
from tests.runtime.test_lm_eval import likelihood, requests

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
CHOICES = [
    {"question": "the sun is", "choices": ["hot", "cold", "x", "wet"], "label": 0},
    {"question": "one and one", "choices": ["a", "b", "c"], "label": 2},
    {"question": "ice is", "choices": ["hot", "cold"], "label": 0},
]
TEXTS = [{"text": "hello world"}, {"text": "the quick brown fox jumps over the lazy dog. " * 5}]
PROMPTS = [{"question": "hello", "answer": ""}, {"question": "world", "answer": "no"}]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of each kind, their data beside them."""
    folder = tmp_path_factory.mktemp("tasks")

    def write(name: str, documents: list[dict[str, Any]], **config: Any) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
        data = {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")}
        common = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **config}))

    def metrics(*names: str) -> list[dict[str, str]]:
        return [{"metric": name} for name in names]

    write(
        "tiny_choice", CHOICES, output_type="multiple_choice", doc_to_text="{{question}}",
        doc_to_choice="{{choices}}", doc_to_target="label", metric_list=metrics("acc", "acc_norm"),
    )  # fmt: skip
    write(
        "tiny_text", TEXTS, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
        metric_list=metrics("word_perplexity", "byte_perplexity"),
    )  # fmt: skip
    write(
        "tiny_answer", PROMPTS, output_type="generate_until", doc_to_text="{{question}}",
        doc_to_target="{{answer}}", metric_list=metrics("exact_match"),
        generation_kwargs={"until": ["e", "o"], "max_gen_toks": 8},
    )  # fmt: skip
    (folder / "tiny_group.yaml").write_text(
        yaml.safe_dump(
            {
                "group": "tiny_group", "task": ["tiny_choice"],
                "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
            }
        )
    )  # fmt: skip
    (folder / "far.yaml").write_text(
        yaml.safe_dump({"task": "far", "dataset_path": "nobody/nothing", "test_split": "test"})
    )
    return folder


@pytest.fixture(autouse=True)
def without_their_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading lm-eval's own task files takes 10 s."""
    manager = lm_eval.TaskManager
    monkeypatch.setattr(
        lm_eval,
        "TaskManager",
        lambda include_path=None, include_defaults=False: manager(
            include_path=include_path, include_defaults=False
        ),
    )


def test_tasks(program: Program, tasks: Path) -> None:
    found = evaluate_tasks(program, ["tiny_[at]*", "tiny_group"], tasks)
    assert set(found) == {"tiny_choice", "tiny_text", "tiny_answer", "tiny_group"}
    encode = program.tokenizer.encode
    right = []
    for document in CHOICES:
        values = [
            likelihood(program, encode(document["question"]), encode(" " + choice))[0]
            for choice in document["choices"]
        ]
        right.append(int(np.argmax(values)) == document["label"])
    assert found["tiny_choice"]["acc"] == pytest.approx(np.mean(right))
    assert found["tiny_group"]["acc"] == found["tiny_choice"]["acc"]
    texts = [document["text"] for document in TEXTS]
    totals = ProgramLM(program).loglikelihood_rolling(
        requests("loglikelihood_rolling", *((t,) for t in texts))
    )
    words = sum(len(text.split()) for text in texts)
    # lm-eval counts what is between white space, and what follows the last one too.
    assert found["tiny_text"]["word_perplexity"] == pytest.approx(
        np.exp(-sum(totals) / (words + 1)), rel=1e-9
    )
    answers = [program.generate(d["question"], 8).replace("o", "e").split("e")[0] for d in PROMPTS]
    exact = [a == d["answer"] for a, d in zip(answers, PROMPTS, strict=True)]
    assert found["tiny_answer"]["exact_match"] == np.mean(exact)


def test_beside_the_float_model(program: Program, tasks: Path) -> None:
    """Its own metrics, and the share of documents to which the two give other answers."""
    model = tiny_model("llama")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=program.tokenizer._tokenizer, bos_token="<unk>", eos_token="<eos>"
    )
    found = evaluate_tasks(program, ["tiny_choice", "tiny_[at]*"], tasks, beside=lambda: (model, tokenizer))
    encode = program.tokenizer.encode

    def float_likelihood(context: list[int], scored: list[int]) -> float:
        with torch.no_grad():
            logits = model(torch.tensor([context + scored])).logits[0].double().log_softmax(-1)
        rows = logits[len(context) - 1 : -1]
        return float(rows.gather(1, torch.tensor(scored)[:, None]).sum())

    chosen: dict[str, list[int]] = {"program": [], "float": []}
    for document in CHOICES:
        pairs = [(encode(document["question"]), encode(" " + choice)) for choice in document["choices"]]
        chosen["program"].append(int(np.argmax([likelihood(program, *pair)[0] for pair in pairs])))
        chosen["float"].append(int(np.argmax([float_likelihood(*pair) for pair in pairs])))
    right = [a == d["label"] for a, d in zip(chosen["float"], CHOICES, strict=True)]
    assert found["tiny_choice"]["float_acc"] == pytest.approx(np.mean(right))
    changed = np.mean(np.array(chosen["program"]) != np.array(chosen["float"]))
    assert found["tiny_choice"]["changed_answers"] == changed
    assert "changed_answers" not in found["tiny_text"] and "changed_answers" in found["tiny_answer"]
    alone = evaluate_tasks(program, ["tiny_choice", "tiny_[at]*"], tasks)
    for name, values in alone.items():
        assert values.items() <= found[name].items() and f"float_{next(iter(values))}" in found[name]


def test_against_another_program(program: Program, tasks: Path) -> None:
    other = compiled("cpu-int8", lower_for_cpu, hidden_act="gelu")
    names = ["tiny_choice", "tiny_[at]*"]
    found, *alone = (
        evaluate_tasks(program, names, tasks, against=other),
        *(evaluate_tasks(one, names, tasks) for one in (program, other)),
    )
    for name, values in found.items():
        mine, others = (metrics[name] for metrics in alone)
        assert mine.items() <= values.items()
        assert {f"against_{metric}": value for metric, value in others.items()}.items() <= values.items()
    same = evaluate_tasks(program, names, tasks, against=program)
    assert same["tiny_choice"]["changed_against"] == same["tiny_answer"]["changed_against"] == 0.0
    assert found["tiny_answer"]["changed_against"] > 0 and "changed_against" not in found["tiny_text"]


def test_limit_and_examples(program: Program, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[str] = []
    score = ProgramLM.loglikelihood
    monkeypatch.setattr(
        ProgramLM, "loglikelihood", lambda self, r: contexts.extend(i.args[0] for i in r) or score(self, r)
    )
    evaluate_tasks(program, ["tiny_choice"], tasks, limit=1)
    assert contexts == ["the sun is"] * 4
    contexts.clear()
    evaluate_tasks(program, ["tiny_choice"], tasks, limit=1, num_fewshot=1)
    assert len(contexts) == 4 and contexts[0].endswith("\n\nthe sun is")


def test_refused_tasks(program: Program, tasks: Path) -> None:
    with pytest.raises(InputError, match="lm-eval has no task tiny_choise, other") as caught:
        evaluate_tasks(program, ["tiny_choise", "tiny_text", "other"], tasks)
    assert caught.value.__notes__[0].startswith("near it: ") and "tiny_choice" in caught.value.__notes__[0]
    assert "--include-path FOLDER" in caught.value.__notes__[-1]
    for arguments, message in (
        ((["tiny_text"], tasks / "none"), "is not a folder"),
        (([], tasks), "no task without a name"),
        ((["tiny_text"], tasks, 0), "limit must be"),
        ((["tiny_text"], tasks, 1, -1), "num_fewshot must be"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_tasks(program, *arguments)


def test_data_that_is_missing(program: Program, tasks: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((tasks / "tiny_text.yaml").read_text())
    config["dataset_kwargs"]["data_files"]["test"] = str(tmp_path / "none.jsonl")
    (tmp_path / "lost.yaml").write_text(yaml.safe_dump({**config, "task": "lost"}))
    with pytest.raises(InputError, match=r"cannot load lost: FileNotFoundError"):
        evaluate_tasks(program, ["lost"], tmp_path)


def mqc(*arguments: object, code: str = "pass") -> subprocess.CompletedProcess[str]:
    """The command line with no network; `code` runs first."""
    code = f"import sys; {code}; sys.argv[0] = 'mqc'; from mqc.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )  # fmt: skip


def test_command_line(program: Program, saved: Path, tasks: Path) -> None:
    names = "tiny_choice,tiny_answer"
    run = mqc("eval", saved, "--tasks", names, "--include-path", tasks, "--limit", 2, "--no-float", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == evaluate_tasks(program, names.split(","), tasks, limit=2)


def test_command_line_without_network(saved: Path, tasks: Path) -> None:
    run = mqc("eval", saved, "--tasks", "far", "--include-path", tasks, "--no-float")
    assert run.returncode == 1 and not run.stdout
    assert "InputError: the data of far cannot be reached" in run.stderr
    assert "is there a network?" in run.stderr and "Traceback" not in run.stderr


def test_command_line_without_lm_eval(saved: Path) -> None:
    run = mqc("eval", saved, "--tasks", "arc_easy", code="sys.modules['lm_eval'] = None")
    assert run.returncode == 1
    assert 'InputError: tasks need lm-eval: pip install "mqc[lm-eval]"' in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "a", "--windows", "3", "--format", "chat"), "--format, --windows goes not with --tasks"),
        (("--limit", "3", "--include-path", "x"), "--include-path, --limit goes only with --tasks"),
    ],
)
def test_options_that_exclude_each_other(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["eval", "x.mqc", *arguments])
    assert isinstance(result.exception, InputError) and message in str(result.exception)


def test_the_page(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    Path("tasks").mkdir()
    for kind, file in (("json", "capitals.jsonl"), ("yaml", "capitals.yaml")):
        [block] = re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.S)
        Path("tasks", file).write_text(block)
    assert set(evaluate_tasks(program, ["capitals"], Path("tasks"))["capitals"]) == {"acc", "acc_stderr"}
