"""What the commands that run a program share: opening it, and options of generating."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mqc.backend import parse_options
from mqc.cli.common import number
from mqc.errors import InputError
from mqc.registry import backend_for
from mqc.runtime.artifact import read_manifest
from mqc.runtime.program import Program

#: Control characters but the tab and the end of a line.
_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

ProgramPath = Annotated[Path, typer.Argument(metavar="PROGRAM", help="folder written by mqc compile")]
Threads = Annotated[int | None, number("threads; all cores by default")]
EngineKind = Annotated[str, typer.Option(help="target, or oracle for the NumPy semantics")]
System = Annotated[str | None, typer.Option(help="message of the system, in front of the conversation")]
ParseSpecial = Annotated[
    bool, typer.Option("--parse-special", help="take texts of control tokens in messages for these tokens")
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="variable of the chat template, VALUE as JSON or a text"),
]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy; by default as the model's generation_config says")
]
TopK = Annotated[int | None, number("sample among the k most likely")]
TopP = Annotated[float | None, typer.Option(help="sample among the likeliest of this mass")]
MinP = Annotated[
    float | None, typer.Option(help="sample among those of at least this share of the likeliest's chance")
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="above 1 for fewer repetitions; by default as generation_config says")
]
Seed = Annotated[int | None, number("for repeatable samples", least=0)]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="end the answer before this text")]


def configured(path: Path, threads: int | None, option: list[str] | None) -> Program:
    """The program with its engine's options set."""
    target = read_manifest(path)["target"]  # loading takes seconds
    given = parse_options(target, backend_for(target).options, option or [])
    return Program.load(path).configure(**{"threads": threads, **given})


def chat_options(texts: list[str] | None, parse_special: bool) -> dict[str, Any]:
    """Options of `Tokenizer.chat` from the command line. Raises `InputError`."""
    options: dict[str, Any] = {"parse_special": True} if parse_special else {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--template-option takes NAME=VALUE, got {text!r}")
        try:
            options[name] = json.loads(value)
        except (ValueError, RecursionError):
            options[name] = value
    return options


def shown(piece: str) -> str:
    """What a model says, without what would steer a terminal if one shows it."""
    return _STEERS.sub(lambda c: ascii(c[0])[1:-1], piece) if sys.stdout.isatty() else piece
