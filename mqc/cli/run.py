"""The command that completes prompts and answers messages, one or many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mqc.cli.common import AsJson, Options, app, number, standard_input
from mqc.cli.generation import (
    EngineKind,
    MinP,
    ParseSpecial,
    ProgramPath,
    RepetitionPenalty,
    Seed,
    Stop,
    System,
    Temperature,
    TemplateOption,
    Threads,
    TopK,
    TopP,
    chat_options,
    configured,
    shown,
)
from mqc.errors import InputError
from mqc.files import read_text
from mqc.runtime.program import Program
from mqc.runtime.sampling import Sampling
from mqc.runtime.tokenizer import Message

#: What is given to a program: a text to complete, or a conversation to answer.
Request = str | list[Message]


@app.command()
def run(
    path: ProgramPath,
    prompt: Annotated[str | None, typer.Option(help="text to complete; - reads standard input")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="file with a text to complete")] = None,
    chat: Annotated[
        str | None, typer.Option(help="message to answer, by the chat template; - reads standard input")
    ] = None,
    messages: Annotated[
        Path | None, typer.Option(help='JSON file of a conversation: [{"role": "user", "content": "…"}]')
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(help='JSON lines, each with "prompt", "chat" or "messages"; answers are JSON lines too'),
    ] = None,
    system: System = None,
    max_new_tokens: Annotated[int | None, number("most tokens to add; 100, or what fits the context")] = None,
    stop: Stop = None,
    parse_special: ParseSpecial = False,
    template_option: TemplateOption = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    threads: Threads = None,
    option: Options = None,
    engine: EngineKind = "target",
    as_json: AsJson = False,
) -> None:
    """Complete a prompt, answer a message or a conversation, or do so for each line of a file.

    Of files `-` is standard input.
    """
    ways = {
        "--prompt": prompt, "--prompt-file": prompt_file, "--chat": chat, "--messages": messages,
        "--batch": batch,
    }  # fmt: skip
    if sum(given is not None for given in ways.values()) != 1:
        raise InputError(f"give either {', '.join(list(ways)[:-1])} or --batch")
    if (prompt is not None or prompt_file is not None) and (system or parse_special or template_option):
        raise InputError("--system, --parse-special and --template-option go with conversations")
    if batch is not None and as_json:
        raise InputError("--batch gives JSON lines; leave --json out")
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "chat_options": chat_options(template_option, parse_special),
        "stop": stop or (), "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "seed": seed, "engine": engine,
    }  # fmt: skip
    if batch is not None:
        rows = [(row, _request(row, system)) for row in _rows(_content(batch))]
        _answer_all(configured(path, threads, option), rows, options)
        return
    request: Request
    if messages is not None:
        request = _behind(system, _conversation(_json(_content(messages), str(messages)), str(messages)))
    elif chat is not None:
        request = _behind(system, [{"role": "user", "content": _text(chat)}])
    else:
        request = _content(prompt_file) if prompt_file is not None else _text(prompt or "")
    program = configured(path, threads, option)
    text = program.generate(
        request, chat=not isinstance(request, str), **options,
        stream=None if as_json else lambda piece: print(shown(piece), end="", flush=True),
    )  # fmt: skip
    print(json.dumps({"text": text}) if as_json else "")


def _answer_all(
    program: Program, rows: list[tuple[dict[str, Any], Request]], options: dict[str, Any]
) -> None:
    """A JSON line for each request: its own fields and `text`, or `error` if it was refused.

    Raises `InputError` in the end if one was.
    """
    given = {name: options[name] for name in Sampling.__dataclass_fields__}
    Sampling.of_model(program.tokenizer.generation, **given)  # what is wrong in all lines is said once
    refused = 0
    for row, request in rows:
        try:
            result = {"text": program.generate(request, chat=not isinstance(request, str), **options)}
        except InputError as error:
            result = {"error": str(error)}
            refused += 1
        print(json.dumps(row | result), flush=True)
    if refused:
        raise InputError(f'{refused} of {len(rows)} lines were refused; see their "error"')


def _rows(content: str) -> list[dict[str, Any]]:
    """The objects of JSON lines, without empty lines. Raises `InputError`."""
    found = []
    for number_, line in enumerate(content.split("\n"), 1):
        if line.strip():
            row = _json(line, f"line {number_}")
            if not isinstance(row, dict) or len({"prompt", "chat", "messages"} & set(row)) != 1:
                raise InputError(f'line {number_} must be an object with "prompt", "chat" or "messages"')
            found.append(row)
    return found


def _request(row: dict[str, Any], system: str | None) -> Request:
    if "messages" in row:
        return _behind(system, _conversation(row["messages"], "messages"))
    text = row.get("prompt", row.get("chat"))
    if not isinstance(text, str):
        raise InputError(f"a prompt or message must be a text, got {text!r}")
    return text if "prompt" in row else _behind(system, [{"role": "user", "content": text}])


def _behind(system: str | None, messages: list[Message]) -> list[Message]:
    """A conversation with a message of the system, if one was given and it has none."""
    if system is None or messages[0].get("role") == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _conversation(given: Any, where: str) -> list[Message]:
    """Messages that are a list, or stand in an object under `messages`. Raises `InputError`."""
    messages = given.get("messages") if isinstance(given, dict) else given
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages)
    ):
        raise InputError(f'{where} must be a list of messages: [{{"role": "user", "content": "…"}}, …]')
    return list(messages)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}") from error


def _content(path: Path) -> str:
    """The text of a file, or with `-` of standard input."""
    return standard_input(InputError) if str(path) == "-" else read_text(path, InputError)


def _text(given: str) -> str:
    """A text of the command line; `-` is standard input, without the end of its last line."""
    return standard_input(InputError).removesuffix("\n") if given == "-" else given
