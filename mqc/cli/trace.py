"""`mqc debug trace`: when each op runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mqc.cli.common import AsJson, Options, errors, number, progress, say, show
from mqc.cli.debug import debug

if TYPE_CHECKING:
    from mqc.backend import Timeline


@debug.command("trace")
def trace_command(
    path: Annotated[Path, typer.Argument(metavar="PROGRAM", help="folder of a compiled program")],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON file to write")] = Path("trace.json"),
    prompt_tokens: Annotated[int, number("tokens of the prompt")] = 128,
    new_tokens: Annotated[int, number("tokens to decode")] = 4,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Write when each op runs, for ui.perfetto.dev or chrome://tracing, and print what takes longest.

    On the CPU it is measured. For an NPU it is modelled: the matrix unit, HVX, and copies of the DMA queue.
    """
    from mqc.backend import parse_options
    from mqc.debugging.chrome_trace import chrome_trace
    from mqc.files import check_writable, write_text
    from mqc.registry import backend_for
    from mqc.runtime.program import Program

    check_writable(output)
    program = Program.load(path)
    runs = backend_for(program.target)
    options = parse_options(program.target, runs.options, option or [])
    with progress() as report:
        report("running", 0.0)
        lines = runs.timelines(program.module, program.weights, prompt_tokens, new_tokens, **options)
        report("running", 1.0)
    write_text(output, json.dumps(chrome_trace(lines)))
    _show_time(lines, as_json)
    if not as_json:
        say(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)", errors)


def _show_time(lines: Sequence[Timeline], as_json: bool) -> None:
    """Seconds by unit and kind of op, the longest first."""
    data, rows = [], []
    for line in lines:
        totals: dict[tuple[str, str], float] = {}
        for span in line.spans:
            key = span.unit, span.value if span.kind in ("call", "function") else span.kind
            totals[key] = totals.get(key, 0.0) + span.seconds
        for (unit, kind), seconds in sorted(totals.items(), key=lambda item: (item[0][0], -item[1])):
            data.append(
                {"on": line.title, "measured": line.measured, "unit": unit, "kind": kind, "seconds": seconds}
            )
            rows.append((f"{line.title}: {unit}", kind, f"{seconds * 1e3:.3f} ms"))
    show({"time": data}, as_json, ("of", "time"), rows)
