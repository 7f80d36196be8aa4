"""What `mqc eval` measures: perplexity, or the tasks of lm-eval."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import typer

from mqc.arrays import Array
from mqc.calibration import Windows
from mqc.cli.common import progress, show
from mqc.data import code as packaged_code
from mqc.data import text as packaged_text
from mqc.errors import InputError
from mqc.files import read_text
from mqc.runtime.calibration_text import conversation_windows, conversations_of, packaged_conversations
from mqc.runtime.perplexity import Ids, divergences, log_probabilities, losses, text_windows
from mqc.runtime.program import Program
from mqc.runtime.tokenizer import TOKENIZER, Tokenizer

FOR_PERPLEXITY = ("text", "kind", "windows", "skip", "length")
FOR_TASKS = ("include_path", "limit", "num_fewshot")
_MODELS = "float", "float_prefix", "int", "against"
#: What is compared: names of the figures, of what is measured, and of what it should be.
_PAIRS = {
    "prefix": ("float_prefix", "float"),
    "int": ("int", "float"),
    "rounding": ("int", "float_prefix"),
    "against": ("against", "float"),
    "programs": ("int", "against"),
}
_FIGURES = (
    *(f"{name}_ppl" for name in _MODELS),
    *(f"{name}_{figure}" for name in _PAIRS for figure in ("ratio", "ratio_error", "kl", "greedy")),
)


def check_exclusive(context: typer.Context, tasks: bool) -> None:
    """Raise `InputError` for options that say nothing about what is measured."""
    wrong, why = (FOR_PERPLEXITY, "not with") if tasks else (FOR_TASKS, "only with")
    # By name: typer 0.29 has a click of its own, whose enumerations are not public.
    given = [name for name in wrong if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"]
    if given:
        options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
        raise InputError(f"{', '.join(options[name] for name in given)} goes {why} --tasks")


def check_comparable(program: Program, other: Program) -> None:
    """Raise `InputError` unless token ids mean the same to both."""
    first, second = (json.loads(p.tokenizer.files[TOKENIZER]) for p in (program, other))
    if any(first.get(part) != second.get(part) for part in ("model", "added_tokens")):
        raise InputError(
            "--against needs a program with the same tokenizer: token ids of this one mean others"
        )


def show_tasks(
    program: Program,
    tasks: str,
    include_path: Path | None,
    limit: int | None,
    num_fewshot: int | None,
    no_float: bool,
    against: Program | None,
    as_json: bool,
) -> None:
    """A row per task and metric; as JSON {task: {metric: value}}, the float model's as `float_…`, the other
    program's as `against_…`."""
    from mqc.runtime.lm_eval import evaluate_tasks

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    with progress() as report:

        def beside() -> tuple[Any, Any]:
            from mqc.frontend.float_model import float_source

            report("loading the model", 0.0)
            source = float_source(program.manifest)
            report("loading the model", 1.0)
            return source.model, source.tokenizer

        given = None if no_float else beside
        found = evaluate_tasks(program, names, include_path, limit, num_fewshot, report, given, against)
    data = {
        task: {metric: value if math.isfinite(value) else None for metric, value in values.items()}
        for task, values in found.items()
    }
    others = {"float_": "float model"} if not no_float else {}
    if against is not None:
        others["against_"] = "other program"
    rows = [
        (task, metric, f"{value:.4f}", *(_value(values, f"{prefix}{metric}") for prefix in others))
        for task, values in found.items()
        for metric, value in values.items()
        if not any(metric.startswith(prefix) and metric.removeprefix(prefix) in values for prefix in others)
    ]
    show(data, as_json, ("metric", "program", *others.values()), rows)


def _value(values: dict[str, float], metric: str) -> str:
    return f"{values[metric]:.4f}" if metric in values else ""


def show_perplexity(
    program: Program,
    text: Path | None,
    kind: str | None,
    windows: int,
    skip: int,
    length: int,
    no_float: bool,
    against: Program | None,
    size_bytes: int,
    as_json: bool,
) -> None:
    """How far the integer program is from the float model as transformers runs it.

    As JSON: the perplexities `float_ppl`, `float_prefix_ppl` (the float model behind the program's prefix),
    `int_ppl` and `against_ppl` (the other program). Then how far one is from another: `prefix`, the float
    model behind the prefix from the float model; `int`, the program from the float model; `rounding`, the
    program from the float model behind the prefix; `against`, the other program from the float model; and
    `programs`, the program from the other. Of each, `_ratio` of perplexities with its standard error over the
    windows, `_ratio_error`; `_kl`, the mean KL of the prediction in nats a token; and `_greedy`, the share of
    tokens whose likeliest successors are equal. What was not measured is null, such as what a prefix costs
    where there is none but the tokenizer's own.
    """
    room = min(p.context - len(p.prefix) for p in (program, against) if p is not None)
    if length > room:
        raise InputError(
            f"windows of {length} tokens do not fit the program's context, which has room for {room} behind "
            f"its prefix; give --length {room} or less"
        )
    parts = windows_of(program.tokenizer, text, kind, length, windows, skip)
    data = _compared(program, parts, no_float, against)
    data["mac_share_8bit"] = program.manifest.get("mac_share_8bit")
    data["size_bytes"] = size_bytes
    data |= {"windows": windows, "length": length, "skip": skip, "prefix": list(program.prefix)}
    rows: list[tuple[str, ...]] = [("integer program", f"{data['int_ppl']:.3f}", *_cells(data, "int"))]
    if not no_float:
        rows.insert(0, ("float model", f"{data['float_ppl']:.3f}", "", "", ""))
        if program.prefix != program.tokenizer.in_front:
            behind = f"… behind prefix {data['prefix']}", f"{data['float_prefix_ppl']:.3f}"
            rows.insert(1, (*behind, *_cells(data, "prefix")))
            rows.append(("… to float behind the prefix", "", *_cells(data, "rounding")))
    if against is not None:
        rows.append(("other program", f"{data['against_ppl']:.3f}", *_cells(data, "against")))
        rows.append(("… integer program to it", "", *_cells(data, "programs")))
    rows += [
        ("MACs with 8-bit activations", f"{data['mac_share_8bit']:.1%}", "", "", ""),
        ("size on disk", f"{data['size_bytes'] / 1e6:.1f} MB", "", "", ""),
    ]
    headings = (f"perplexity, {windows} × {length} tokens", "ratio", "KL, nats", "equal greedy tokens")
    columns = 1 if no_float and against is None else len(headings)
    show(data, as_json, headings[:columns], [row[: columns + 1] for row in rows])


def windows_of(
    tokenizer: Tokenizer, path: Path | None, kind: str | None, length: int, count: int, skip: int
) -> list[Ids]:
    """Windows of a file's text or conversations, or of packaged text of a kind.

    Raises `InputError` if there are not so many, or both are given.
    """
    found: Windows
    if kind not in (None, "text", "chat", "code"):
        raise InputError(f"--format must be text, chat or code, got {kind!r}")
    if path is not None and kind is not None:
        raise InputError("give either --text or --format, which names a packaged text")
    if path is not None and path.suffix == ".jsonl":
        found = conversation_windows(tokenizer, conversations_of(read_text(path, InputError)), length)
    elif kind == "chat":
        found = packaged_conversations(tokenizer, "test", length)
    else:
        content = packaged_code("test") if kind == "code" else packaged_text("test")
        if path is not None:
            content = read_text(path, InputError)
        return text_windows(tokenizer.encode(content, start=False), length, count, skip)
    if skip + count > len(found):
        raise InputError(
            f"the conversations make {len(found)} windows of {length} tokens, not {skip} + {count}: lower "
            "--windows, --skip or --length"
        )
    return list(found[skip : skip + count].astype(np.int32))


def _cells(data: dict[str, Any], name: str) -> tuple[str, str, str]:
    if data[f"{name}_kl"] is None:
        return "", "", ""
    error = data[f"{name}_ratio_error"]
    around = "" if error is None else f" ± {error:.4f}"
    ratio = f"{data[f'{name}_ratio']:.4f}{around}"
    return ratio, f"{data[f'{name}_kl']:.4f}", f"{data[f'{name}_greedy']:.1%}"


def _compared(program: Program, parts: list[Ids], no_float: bool, against: Program | None) -> dict[str, Any]:
    """The figures, window by window: of the float model as it is, behind the prefix, and of programs.

    Memory: the log probabilities of a window, of each of them, and its logits.
    """
    runs: dict[str, Callable[[Ids], Array]] = {}
    with progress() as report:
        if not no_float:
            from mqc.frontend.float_model import float_logits, float_source

            report("loading the model", 0.0)
            model = float_source(program.manifest).model
            report("loading the model", 1.0)
            start = program.tokenizer.in_front
            runs["float"] = lambda window: float_logits(model, window, start)
            if program.prefix != start:
                runs["float_prefix"] = lambda window: float_logits(model, window, program.prefix)
        runs["int"] = lambda window: program.logits(window.tolist())
        if against is not None:
            runs["against"] = lambda window: against.logits(window.tolist())
        pairs = {name: pair for name, pair in _PAIRS.items() if runs.keys() >= set(pair)}
        loss: dict[str, list[float]] = {name: [] for name in runs}
        apart: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
        for number, window in enumerate(parts, 1):
            log_p = {name: log_probabilities(run(window)) for name, run in runs.items()}
            for name, given in log_p.items():
                loss[name].append(float(losses(given, window).mean()))
            for name, (measured, reference) in pairs.items():
                kl, equal = divergences(log_p[reference], log_p[measured])
                apart[name].append((float(kl.mean()), float(equal.mean())))
            report("windows", number / len(parts))
    figures: dict[str, Any] = {f"{name}_ppl": float(np.exp(np.mean(values))) for name, values in loss.items()}
    for name, (measured, reference) in pairs.items():
        more = np.array(loss[measured]) - np.array(loss[reference])
        figures[f"{name}_ratio"] = ratio = float(np.exp(more.mean()))
        error = float(ratio * more.std(ddof=1) / len(more) ** 0.5) if len(more) > 1 else None
        figures[f"{name}_ratio_error"] = error
        figures[f"{name}_kl"], figures[f"{name}_greedy"] = (float(mean) for mean in np.mean(apart[name], 0))
    return dict.fromkeys(_FIGURES) | figures
