"""What the commands share: the app, the consoles, tables and progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mqc.cli.progress import Report, bars, lines
from mqc.cli.text import printable
from mqc.errors import MqcError
from mqc.files import bounded

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
errors = Console(stderr=True)
#: Tables that go to a file or a pipe are not folded.
out = Console(width=None if sys.stdout.isatty() else 160)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
PrintBefore = Annotated[
    str | None,
    typer.Option("--print-ir-before", metavar="[=PASS]", help="print the IR before passes"),
]
PrintAfter = Annotated[
    str | None, typer.Option("--print-ir-after", metavar="[=PASS]", help="print the IR after passes")
]
PrintChange = Annotated[
    bool, typer.Option("--print-ir-after-change", help="print the IR after passes that changed it")
]
Options = Annotated[
    list[str] | None,
    typer.Option("-O", "--option", metavar="NAME=VALUE", help="option of the target, see mqc targets"),
]
VerifyEach = Annotated[
    bool, typer.Option("--verify-each", help="check weights and accumulators too, after each pass")
]


def number(help: str, least: int = 1, most: int = 2**31 - 1) -> Any:
    """An option that takes whole numbers in `[least, most]`."""
    return typer.Option(help=help, min=least, max=most)


#: Options whose value may be left out, on the command line as in MLIR's tools.
OPTIONAL_VALUE = ("--print-ir-before", "--print-ir-after")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mqc {version('mqc')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Compile decoder LLMs to integer-only programs, run them, and find where numbers go wrong."""


def standard_input(kind: type[MqcError]) -> str:
    """The text on standard input. Raises an error of a kind for what is too large, or no text."""
    try:
        return bounded(sys.stdin.buffer).decode("utf-8")
    except ValueError as error:
        raise kind(f"cannot read standard input as UTF-8 text: {error}") from error


def progress() -> AbstractContextManager[Report]:
    """Shows on stderr how far a command is."""
    return bars(errors) if errors.is_terminal else lines(partial(say, console=errors))


def say(text: str, console: Console = out, style: str | None = None) -> None:
    """Print a text as it is: brackets are no markup, long lines are not folded."""
    console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)


def show(data: dict[str, Any], as_json: bool, heads: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    """Print `data` as JSON, or `rows` as a table. `heads` stand over the columns behind the first."""
    if as_json:
        print(json.dumps(data))
        return
    table = Table(header_style="bold")
    for i, head in enumerate(("", *heads)):
        table.add_column(escape(printable(head)), no_wrap=i == 0)
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    out.print(table)
