"""What `mqc eval` measures: perplexity, or the tasks of lm-eval."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer

from mqc.cli.common import progress, show
from mqc.errors import InputError
from mqc.files import read_text
from mqc.runtime.perplexity import Ids, divergences, log_probabilities, losses, perplexity, text_windows
from mqc.runtime.program import Program

FOR_PERPLEXITY = ("text", "windows", "skip", "length", "no_float")
FOR_TASKS = ("include_path", "limit", "num_fewshot")
_FIGURES = (
    "float_ppl", "float_prefix_ppl", "int_ppl", "ratio", "ratio_error",
    "prefix_kl", "prefix_greedy", "int_kl", "int_greedy", "rounding_kl", "rounding_greedy",
)  # fmt: skip


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
    """The integer program's perplexity beside the float model's, and how far their predictions are apart.

    As JSON: `float_ppl`, `float_prefix_ppl` (the float model behind the program's prefix) and `int_ppl`;
    `ratio`, of the last two, with its standard error over the windows, `ratio_error`; `prefix_kl` and
    `int_kl`, the mean KL of the prediction in nats a token from the float model's to that behind the prefix
    and to the program's, `rounding_kl` between these two; `prefix_greedy`, `int_greedy`, `rounding_greedy`,
    the share of tokens whose likeliest successors are equal. What was not measured is null.
    """
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
    data = _integer_alone(program, parts) if no_float else _beside_float(program, parts)
    data["mac_share_8bit"] = program.manifest.get("mac_share_8bit")
    data["size_bytes"] = size_bytes
    data |= {"windows": windows, "length": length, "skip": skip, "prefix": list(program.prefix)}
    rows: list[tuple[str, ...]] = [("integer program", f"{data['int_ppl']:.3f}", "", "")]
    if not no_float:
        around = "" if data["ratio_error"] is None else f" ± {data['ratio_error']:.4f}"
        rows = [
            ("float model", f"{data['float_ppl']:.3f}", "", ""),
            (f"… behind prefix {data['prefix']}", f"{data['float_prefix_ppl']:.3f}", *_cells(data, "prefix")),
            ("integer program", f"{data['int_ppl']:.3f}", *_cells(data, "int")),
            ("… to float behind the prefix", f"{data['ratio']:.4f}{around}", *_cells(data, "rounding")),
        ]
    rows += [
        ("MACs with 8-bit activations", f"{data['mac_share_8bit']:.1%}", "", ""),
        ("size on disk", f"{data['size_bytes'] / 1e6:.1f} MB", "", ""),
    ]
    headings = (f"perplexity, {windows} × {length} tokens", "KL, nats", "equal greedy tokens")
    columns = 1 if no_float else len(headings)
    show(data, as_json, headings[:columns], [row[: columns + 1] for row in rows])


def _cells(data: dict[str, Any], name: str) -> tuple[str, str]:
    return f"{data[f'{name}_kl']:.4f}", f"{data[f'{name}_greedy']:.1%}"


def _integer_alone(program: Program, parts: list[Ids]) -> dict[str, Any]:
    with progress() as report:
        found = perplexity(
            lambda ids: program.logits(ids.tolist()), parts, partial(report, "integer program")
        )
    return dict.fromkeys(_FIGURES) | {"int_ppl": found}


def _beside_float(program: Program, parts: list[Ids]) -> dict[str, Any]:
    """The figures, window by window: of the float model as it is, behind the prefix, and of the program.

    Memory: the log probabilities of a window, three times, and its logits.
    """
    from mqc.frontend.float_model import float_logits, source_model

    with progress() as report:
        report("loading the model", 0.0)
        model = source_model(program.manifest)
        report("loading the model", 1.0)
        loss: dict[str, list[float]] = {"float": [], "float_prefix": [], "int": []}
        apart: dict[str, list[tuple[float, float]]] = {"prefix": [], "int": [], "rounding": []}
        for number, window in enumerate(parts, 1):
            plain = log_probabilities(float_logits(model, window))
            behind = plain
            if program.prefix:
                behind = log_probabilities(float_logits(model, window, program.prefix))
            integer = log_probabilities(program.logits(window.tolist()))
            for name, given in zip(loss, (plain, behind, integer), strict=True):
                loss[name].append(float(losses(given, window).mean()))
            for name, pair in zip(apart, ((plain, behind), (plain, integer), (behind, integer)), strict=True):
                kl, equal = divergences(*pair)
                apart[name].append((float(kl.mean()), float(equal.mean())))
            report("windows", number / len(parts))
    more = np.array(loss["int"]) - np.array(loss["float_prefix"])
    ratio = float(np.exp(more.mean()))
    error = float(ratio * more.std(ddof=1) / len(more) ** 0.5) if len(more) > 1 else None
    figures: dict[str, Any] = {f"{name}_ppl": float(np.exp(np.mean(values))) for name, values in loss.items()}
    for name, pairs in apart.items():
        figures[f"{name}_kl"], figures[f"{name}_greedy"] = (float(mean) for mean in np.mean(pairs, 0))
    return dict.fromkeys(_FIGURES) | figures | {"ratio": ratio, "ratio_error": error}
