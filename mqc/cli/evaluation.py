"""What `mqc eval` measures: perplexity, or the tasks of lm-eval."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import typer

from mqc.cli.common import progress, show
from mqc.errors import InputError
from mqc.files import read_text
from mqc.runtime.perplexity import text_windows
from mqc.runtime.program import Program

FOR_PERPLEXITY = ("text", "windows", "skip", "length", "no_float")
FOR_TASKS = ("include_path", "limit", "num_fewshot")


def check_exclusive(context: typer.Context, tasks: bool) -> None:
    """Raise `InputError` for options that say nothing about what is measured."""
    wrong, why = (FOR_PERPLEXITY, "not with") if tasks else (FOR_TASKS, "only with")
    # By name: typer 0.29 has a click of its own, whose enumerations are not public.
    given = [name for name in wrong if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"]
    if given:
        raise InputError(f"{', '.join('--' + n.replace('_', '-') for n in given)} goes {why} --tasks")


def show_tasks(
    program: Program,
    tasks: str,
    include_path: Path | None,
    limit: int | None,
    num_fewshot: int | None,
    as_json: bool,
) -> None:
    """A row per task and metric; as JSON {task: {metric: value}}."""
    from mqc.runtime.lm_eval import evaluate_tasks

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    with progress() as report:
        found = evaluate_tasks(program, names, include_path, limit, num_fewshot, report)
    data = {
        task: {metric: value if math.isfinite(value) else None for metric, value in values.items()}
        for task, values in found.items()
    }
    rows = [
        (task, metric, f"{value:.4f}") for task, values in found.items() for metric, value in values.items()
    ]
    show(data, as_json, ("metric", "value"), rows)


def show_perplexity(
    program: Program,
    text: Path | None,
    windows: int,
    skip: int,
    length: int,
    no_float: bool,
    size_bytes: int,
    as_json: bool,
) -> None:
    """The integer program's perplexity beside the float model's."""
    if text is not None:
        content = read_text(text, InputError)
    else:
        from mqc.data import text as packaged

        content = packaged("test")
    room = program.context - len(program.prefix)
    if length > room:
        raise InputError(
            f"windows of {length} tokens do not fit the program's context, which has room for {room} behind "
            f"its prefix; give --length {room} or less"
        )
    parts = text_windows(program.tokenizer.encode(content, start=False), length, windows, skip)
    data: dict[str, Any] = {"float_ppl": None, "float_prefix_ppl": None}
    with progress() as report:
        if not no_float:
            from mqc.frontend.float_model import float_perplexity, source_model

            model = source_model(program.manifest)
            for key, prefix in (("float_ppl", ()), ("float_prefix_ppl", program.prefix)):
                name = key.replace("_", " ")
                data[key] = float_perplexity(model, parts, prefix, partial(report, name))
        data["int_ppl"] = program.perplexity(
            content, windows, skip, length, progress=lambda share: report("int ppl", share)
        )
    data["ratio"] = None if no_float else data["int_ppl"] / data["float_prefix_ppl"]
    data["mac_share_8bit"] = program.manifest.get("mac_share_8bit")
    data["size_bytes"] = size_bytes
    data |= {"windows": windows, "length": length, "skip": skip, "prefix": list(program.prefix)}
    rows = [("integer program", f"{data['int_ppl']:.3f}")]
    if not no_float:
        rows = [
            ("float model", f"{data['float_ppl']:.3f}"),
            (f"float model, prefix {data['prefix']}", f"{data['float_prefix_ppl']:.3f}"),
            (rows[0][0], f"{rows[0][1]} ({data['ratio']:.4f} × float with the prefix)"),
        ]
    rows += [
        ("MACs with 8-bit activations", f"{data['mac_share_8bit']:.1%}"),
        ("size on disk", f"{data['size_bytes'] / 1e6:.1f} MB"),
    ]
    show(data, as_json, (f"perplexity, {windows} × {length} tokens",), rows)
