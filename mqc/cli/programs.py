"""Commands that make programs, measure them and describe them."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mqc.backend import parse_options
from mqc.cli.common import (
    AsJson,
    Options,
    PrintAfter,
    PrintBefore,
    PrintChange,
    VerifyEach,
    app,
    number,
    progress,
    say,
    show,
)
from mqc.cli.generation import ProgramPath, Threads, configured
from mqc.errors import InputError
from mqc.files import check_writable, read_text, write_text
from mqc.registry import backend_for
from mqc.runtime.artifact import check_replaceable, read_manifest
from mqc.runtime.program import Program

if TYPE_CHECKING:
    from mqc.compiler.estimate import Estimate


@app.command("compile")
def compile_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="demo, a folder, a .gguf file, a LoRA adapter, or a Hugging Face id"
        ),
    ],
    base: Annotated[
        str | None, typer.Option(help="model that MODEL, a folder with a LoRA adapter, adapts")
    ] = None,
    encodings: Annotated[
        Path | None, typer.Option(help="AIMET encodings of MODEL: round it as they say")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="folder to write")] = None,
    target: Annotated[str, typer.Option(help="see mqc targets")] = "cpu-int8",
    recipe: Annotated[str, typer.Option(help="w8a8, w4a8, w4a8-g64 or a TOML file")] = "w8a8",
    preset: Annotated[
        str | None, typer.Option(help="method: fast, learned, mobilequant, omniquant or smoothquant")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="least share of MACs with 8-bit activations: search for the others")
    ] = None,
    max_loss: Annotated[
        str | None,
        typer.Option(
            help="what rounding may cost in perplexity, e.g. 0.5%: search for the least bits that keep it"
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help='text to observe ranges on; or .jsonl, conversations: {"messages": [...]}'),
    ] = None,
    passes: Annotated[str | None, typer.Option(help="pipeline to run instead of the recipe's")] = None,
    context: Annotated[
        int | None, number("positions of the KV cache; 2,048 or what the model was made for")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="file for the recipe with the precision that was searched")
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="folder to keep the state of learning in, and to go on from")
    ] = None,
    dump_ir: Annotated[Path | None, typer.Option(help="folder for the IR after each pass")] = None,
    print_ir_before: PrintBefore = None,
    print_ir_after: PrintAfter = None,
    print_ir_after_change: PrintChange = False,
    verify_each: VerifyEach = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="say what time, memory and disk it will take, and stop")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compile a model to an integer-only program.

    Under torchrun, processes share the work of learning, and the first writes the program.
    """
    from mqc import api
    from mqc.compiler.instruments import PrintIR
    from mqc.compiler.recipe import load_recipe
    from mqc.learning.training import under_torchrun
    from mqc.runtime.calibration_text import Conversation, conversations_of

    if output is None and not estimate:
        raise InputError("give the folder to write: -o FOLDER; or --estimate, which writes nothing")
    text: str | list[Conversation] | None = None
    if calibration is not None:
        text = read_text(calibration, InputError)
        if calibration.suffix == ".jsonl":
            text = [*conversations_of(text)]
    chosen = load_recipe(recipe, preset)
    if share is not None:
        chosen = replace(chosen, share=share)
    if max_loss is not None:
        chosen = replace(chosen, max_loss=_share(max_loss))
    if output is None or estimate:
        with progress() as report:
            report("estimating", 0.0)
            found = api.estimate(model, target, chosen, base=base, passes=passes, context=context)
            report("estimating", 1.0)
        _show_estimate(found, model, as_json)
        return
    check_replaceable(output)
    check_writable(output, folder=True)
    if plan is not None:
        check_writable(plan)
    for folder in (checkpoints, dump_ir):
        if folder is not None:
            check_writable(folder / "file", folder=True)
    with progress() as report:
        program = api.compile(
            model, target, chosen, base=base, encodings=encodings, calibration=text, passes=passes,
            context=context, checkpoints=checkpoints, dump_ir=dump_ir, verify_each=verify_each,
            progress=report,
            instruments=[PrintIR(print_ir_before, print_ir_after, print_ir_after_change)],
        )  # fmt: skip
        if under_torchrun() and os.environ["RANK"] != "0":
            return
        if plan is not None:
            rules = tuple(program.manifest["precision"])
            searched = replace(
                chosen, precision=(*rules, *chosen.precision), share=0.0, weights8=0.0, max_loss=0.0
            )
            write_text(plan, searched.to_toml())
        report("saving", 0.0)
        program.save(output)
        report("saving", 1.0)
    _describe(output, as_json)


def _share(text: str) -> float:
    """`0.5%` or `0.005`. Raises `InputError` unless it is a share above 0."""
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < math.inf:
        raise InputError(f"--max-loss must be a share above 0, such as 0.5% or 0.005, got {text!r}")
    return share


def _show_estimate(found: Estimate, model: str, as_json: bool) -> None:
    data = {**asdict(found), "total_seconds": sum(found.seconds.values())}
    rows = [
        *((step, f"{seconds:.0f} s") for step, seconds in found.seconds.items()),
        ("in all", f"{data['total_seconds'] / 60:.1f} min"),
        *((step, "not known: on top") for step in found.unknown),
        ("memory", f"{found.memory / 2**30:.1f} GiB"),
        ("temporary files", f"{found.temporary / 1e9:.1f} GB"),
        ("program", f"{found.program / 1e6:.0f} MB"),
    ]
    show(data, as_json, (model,), rows)


@app.command("eval")
def eval_command(
    context: typer.Context,
    path: ProgramPath,
    tasks: Annotated[str | None, typer.Option(help="lm-eval's tasks, by commas, not perplexity")] = None,
    include_path: Annotated[Path | None, typer.Option(help="folder with tasks of your own")] = None,
    limit: Annotated[int | None, number("documents per task; all by default")] = None,
    num_fewshot: Annotated[int | None, number("examples; the task's number by default", least=0)] = None,
    text: Annotated[Path | None, typer.Option(help="text to score, or .jsonl of conversations")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format", help="packaged text to score: text (WikiText-2 test, the default), chat or code"
        ),
    ] = None,
    windows: Annotated[int, number("windows to score")] = 30,
    skip: Annotated[int, number("windows to leave out first", least=0)] = 0,
    length: Annotated[int, number("tokens per window", least=2)] = 512,
    no_float: Annotated[bool, typer.Option("--no-float", help="skip the float model")] = False,
    against: Annotated[Path | None, typer.Option(help="another program, to compare with")] = None,
    threads: Threads = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Perplexity beside the float model's, on the same windows; with --tasks, the tasks of lm-eval.

    With --against, beside another program's too.
    """
    from mqc.cli.evaluation import check_comparable, check_exclusive, show_perplexity, show_tasks

    check_exclusive(context, tasks is not None)
    program = configured(path, threads, option)
    other = None if against is None else configured(against, threads, option)
    if other is not None:
        check_comparable(program, other)
    if tasks is not None:
        show_tasks(program, tasks, include_path, limit, num_fewshot, no_float, other, as_json)
    else:
        size = _folder_bytes(path)
        show_perplexity(program, text, kind, windows, skip, length, no_float, other, size, as_json)


@app.command()
def bench(
    path: ProgramPath,
    prompt_tokens: Annotated[int, number("tokens of the prompt")] = 512,
    new_tokens: Annotated[int, number("tokens to decode")] = 64,
    threads: Threads = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Tokens per second, beside what the machine could do at most; for an NPU, what a model says."""
    from mqc.runtime.benchmark import measure, modelled

    program = configured(path, threads, option)
    if (figures := modelled(program, prompt_tokens, new_tokens)) is not None:
        _show_modelled(figures, as_json)
        return
    with progress() as report:
        data = measure(program, prompt_tokens, new_tokens, lambda share: report("measuring", share))
    rows = [
        (
            "prefill",
            f"{data['prefill_tok_s']:.1f} tok/s of at most {data['prefill_limit_tok_s']:.1f}",
        ),
        ("decode", f"{data['decode_tok_s']:.1f} tok/s of at most {data['decode_limit_tok_s']:.1f}"),
        ("peak memory", f"{data['peak_rss_bytes'] / 1e6:.0f} MB"),
        ("read bandwidth", f"{data['read_bandwidth_bytes_s'] / 1e9:.1f} GB/s"),
        ("int8 peak", f"{data['int8_peak_mac_s'] / 1e9:.1f} GMAC/s"),
        ("threads", str(data["threads"])),
    ]
    show(data, as_json, (f"{prompt_tokens} + {new_tokens} tokens",), rows)


def _show_modelled(data: dict[str, Any], as_json: bool) -> None:
    """A table of figures and one of time by op, with a column for each chip."""
    chips = data["modelled"]

    def row(name: str, text: str, run: str, field: str, unit: float = 1.0) -> tuple[str, ...]:
        return (name, *(text.format(c[run][field] / unit) for c in chips))

    rows: list[tuple[str, ...]] = []
    for run in ("prefill", "decode"):
        rows += [
            row(run, "{:.1f} tok/s", run, "tokens_per_s"),
            row(f"{run}, energy per token", "{:.2f} mJ", run, "joules_per_token", 1e-3),
            row(f"{run}, DDR per token", "{:.2f} MB", run, "memory_bytes_per_token", 1e6),
            (f"{run}, longest at work", *(c[run]["bound"] for c in chips)),
            row(f"{run}, VTCM in use", "{:.2f} MiB", run, "on_chip_bytes", 2**20),
        ]
    names = [c["chip"] for c in chips]
    tokens = f"{data['prompt_tokens']} + {data['new_tokens']} tokens"
    show(data, as_json, [f"{n}, modelled, {tokens}" for n in names], rows)
    if as_json:
        return
    runs = [c[run]["seconds_by_op"] for c in chips for run in ("prefill", "decode")]
    kinds = sorted(
        {kind for run in runs for kind in run}, key=lambda kind: -max(r.get(kind, 0) for r in runs)
    )
    rows = [(kind, *(f"{r.get(kind, 0) * 1e3:.3f}" for r in runs)) for kind in kinds]
    heads = [f"{n}, {run}, modelled ms per token" for n in names for run in ("prefill", "decode")]
    show({}, False, heads, rows)


@app.command()
def export(
    path: ProgramPath,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder to write")],
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Write the files that go to the target: a C project that needs no Python, or ONNX models."""
    check_replaceable(output, exported=True)
    check_writable(output, folder=True)
    target = read_manifest(path)["target"]  # loading takes seconds
    options = parse_options(target, backend_for(target).export_options, option or [])
    program = Program.load(path)
    with progress() as report:
        report("exporting", 0.0)
        program.export(output, **options)
        report("exporting", 1.0)
    files = sorted(file for file in output.rglob("*") if file.is_file())
    data = {str(file.relative_to(output)): file.stat().st_size for file in files}
    rows = [(name, f"{size / 1e6:.2f} MB") for name, size in data.items()]
    show({"path": str(output), "files": data}, as_json, (str(output),), rows)


@app.command()
def info(path: ProgramPath, as_json: AsJson = False) -> None:
    """What a program is: source, recipe, target, sizes."""
    _describe(path, as_json)


def _describe(path: Path, as_json: bool) -> None:
    program = Program.load(path)
    source = program.manifest.get("source", {})
    data = {**program.facts(), "path": str(path), "size_bytes": _folder_bytes(path)}
    unseen, idle = (data.get(name) or [] for name in ("control_tokens_not_seen", "experts_not_chosen"))
    rows = [
        ("source", f"{source.get('id', 'an object')} ({str(source.get('hash', ''))[:12]})"),
        ("target", program.target),
        ("recipe", str(data.get("recipe"))),
        ("prefix tokens", str(data["prefix"])),
        *([("control tokens not in calibration", _few(unseen))] if unseen else []),
        *([("experts not chosen in calibration", _few(idle))] if idle else []),
        ("context", str(data["context"])),
        ("MACs with 8-bit activations", f"{data['mac_share_8bit']:.1%}"),
        *_scales(data.get("scales")),
        ("size on disk", f"{data['size_bytes'] / 1e6:.1f} MB"),
    ]
    show(data, as_json, (str(path),), rows)
    if not as_json and data.get("pipeline"):
        say(_pasteable("passes", str(data["pipeline"])))


def _scales(scales: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Rows about a model that came with scales: how many are its own, and what is to be known of them."""
    if not scales:
        return []

    def counted(lines: list[str]) -> str:
        matrices = sum(line.partition(":")[0].endswith(" weight") for line in lines)
        return f"{matrices} matrices, {len(lines) - matrices} values"

    return [
        ("scales of the model", scales["method"]),
        ("taken from it", counted(scales["given"])),
        ("calibrated", counted(scales["calibrated"])),
        *([("left out", _few(scales["left"], 4))] if scales["left"] else []),
        *([("notes", _few(scales["notes"], 4))] if scales["notes"] else []),
    ]


def _pasteable(title: str, pipeline: str) -> str:
    """A pipeline on a line of its own, as the shell takes it behind `mqc compile MODEL`."""
    return f"{title}:\n--passes {shlex.quote(pipeline)}"


def _few(texts: list[str], most: int = 20) -> str:
    """The first of many texts, and how many more there are: `--json` has them all."""
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


@app.command()
def targets(as_json: AsJson = False) -> None:
    """Targets that programs can be compiled for."""
    from mqc.registry import target_names

    data = {}
    for name in target_names():
        found = backend_for(name)
        data[name] = {
            "backend": found.name,
            "options": {k: v.__name__ for k, v in found.options.items()},
            "export_options": {k: v.__name__ for k, v in found.export_options.items()},
        }
    rows = [
        (n, str(d["backend"]), ", ".join(d["options"]), ", ".join(d["export_options"]) or "none")
        for n, d in data.items()
    ]
    show({"targets": data}, as_json, ("backend", "options of run, eval and bench", "options of export"), rows)


@app.command()
def passes(as_json: AsJson = False) -> None:
    """Passes in the order of the pipelines, with the level they take and give, and the recipes' pipelines."""
    from mqc.compiler.recipe import RECIPES, passes_in_order
    from mqc.registry import pass_class

    data = {}
    for name in passes_in_order():
        found = pass_class(name)
        summary = " ".join((found.__doc__ or "").strip().split("\n\n")[0].split())
        data[name] = {"requires": found.requires, "ensures": found.ensures, "summary": summary}
    rows = [(n, f"{d['requires']} → {d['ensures']}  {d['summary']}") for n, d in data.items()]
    pipelines = {name: str(recipe.pipeline("cpu")) for name, recipe in RECIPES.items()}
    show({"passes": data, "pipelines": pipelines}, as_json, ("level, summary",), rows)
    if not as_json:
        for name, text in pipelines.items():
            say(_pasteable(f"recipe {name} on cpu", text))


def _folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
