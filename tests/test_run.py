"""`mqc run`: where prompts come from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mqc as package
from mqc.runtime.program import Program
from tests import in_process
from tests.runtime.conftest import program, saved, talker  # noqa: F401  (fixtures)

SHORT = ("--max-new-tokens", 6)


@pytest.fixture(scope="module")
def talking(talker: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    path = tmp_path_factory.mktemp("run") / "talker.mqc"
    talker.save(path)
    return path


def answered(*arguments: object, text: str = "") -> str:
    run = in_process.mqc("run", *arguments, *SHORT, text=text)
    assert run.returncode == 0, run.stderr
    return run.stdout.removesuffix("\n")


def test_prompts_from_files_and_standard_input(talking: Path, tmp_path: Path) -> None:
    want = package.load(talking).generate("hello", 6)
    file = tmp_path / "prompt"
    file.write_text("hello")
    assert answered(talking, "--prompt", "hello") == want
    assert answered(talking, "--prompt", "-", text="hello\n") == want
    assert answered(talking, "--prompt-file", file) == want
    assert answered(talking, "--prompt-file", "-", text="hello") == want


def test_conversations(talking: Path, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "you"},
    ]
    loaded = package.load(talking)
    behind = [{"role": "system", "content": "be"}]
    assert answered(talking, "--chat", "-", text="hi\n") == loaded.generate("hi", 6, chat=True)
    assert answered(talking, "--chat", "hi", "--system", "be") == loaded.generate(
        [*behind, *messages[:1]], 6, chat=True
    )
    for content in (messages, {"messages": messages}):
        (tmp_path / "m.json").write_text(json.dumps(content))
        want = loaded.generate(messages, 6, chat=True)
        assert answered(talking, "--messages", tmp_path / "m.json") == want
        assert answered(talking, "--messages", "-", text=json.dumps(content)) == want
    want = loaded.generate([*behind, *messages], 6, chat=True)
    assert answered(talking, "--messages", tmp_path / "m.json", "--system", "be") == want
    (tmp_path / "m.json").write_text(json.dumps([*behind, *messages]))
    assert answered(talking, "--messages", tmp_path / "m.json", "--system", "other") == want


def test_a_batch(talking: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "hello", "id": 7},
        {"chat": "hi"},
        {"messages": [{"role": "user", "content": "you"}], "text": "old"},
        {"prompt": "h" * 400},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n\n".join(json.dumps(row) for row in rows))
    loaded = package.load(talking)
    want = [
        loaded.generate("hello", 6),
        loaded.generate("hi", 6, chat=True),
        loaded.generate("you", 6, chat=True),
    ]
    run = in_process.mqc("run", talking, "--batch", file, *SHORT)
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert found[:3] == [row | {"text": text} for row, text in zip(rows, want, strict=False)]
    assert "do not fit the context" in found[3]["error"] and "text" not in found[3]
    assert run.returncode == 1 and "1 of 4 lines were refused" in run.stderr
    good = "\n".join(json.dumps(row) for row in rows[:3])
    run = in_process.mqc("run", talking, "--batch", "-", *SHORT, text=good)
    assert run.returncode == 0 and [json.loads(line) for line in run.stdout.splitlines()] == found[:3]


def test_stop_texts(talking: Path) -> None:
    whole = package.load(talking).generate("hello", 6)
    stops = ("--stop", whole[3:5], "--stop", whole[4])
    assert answered(talking, "--prompt", "hello", *stops) == whole[: whole.index(whole[3:5])]


def test_sampling_and_template_options(talking: Path) -> None:
    loaded = package.load(talking)
    sampled = ("--temperature", 2, "--min-p", 0.01, "--repetition-penalty", 1.3, "--seed", 3)
    options = {"temperature": 2.0, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 3}
    assert answered(talking, "--chat", "hi", *sampled) == loaded.generate("hi", 6, chat=True, **options)
    plain = loaded.generate("hi", 6, chat=True, chat_options={"add_generation_prompt": False})
    found = answered(talking, "--chat", "hi", "--template-option", "add_generation_prompt=false")
    assert found == plain != loaded.generate("hi", 6, chat=True)


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (("--prompt", "a", "--chat", "b"), "", "give either"),
        (("--prompt", "a", "--system", "b"), "", "go with conversations"),
        (("--batch", "-", "--json"), "", "leave --json out"),
        (("--batch", "-"), "{", "line 1 is no JSON"),
        (("--batch", "-"), '\n{"prompt": "a", "chat": "b"}', "line 2 must be an object"),
        (("--batch", "-"), "[1]", "line 1 must be an object"),
        (("--batch", "-"), '{"prompt": 1}', "must be a text, got 1"),
        (("--batch", "-"), '{"messages": []}', "must be a list of messages"),
        (("--batch", "-", "--top-p", "7"), '{"prompt": "a"}', "top_p must be in"),
        (("--messages", "-"), "{}", "must be a list of messages"),
        (("--messages", "-"), '[{"content": "a"}]', "must be a list of messages"),
        pytest.param(("--messages", "-"), "[" * 100_000, "is no JSON", id="deep"),
        (("--messages", "/nowhere"), "", "cannot read /nowhere"),
        (("--prompt-file", "/nowhere"), "", "cannot read /nowhere"),
        (("--prompt", "a", "--stop", ""), "", "a stop text is empty"),
    ],
)
def test_refusals(saved: Path, arguments: tuple[str, ...], text: str, message: str) -> None:  # noqa: F811
    run = in_process.mqc("run", saved, *arguments, text=text)
    assert run.returncode == 1 and run.stdout == ""
    assert message in run.stderr.replace("\n", " ") and "Traceback" not in run.stderr
