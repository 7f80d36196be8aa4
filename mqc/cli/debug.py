"""`mqc debug`: where numbers go wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from mqc.cli.common import AsJson, Options, app, errors, number, progress, say, show
from mqc.cli.modules import folder_of, is_program, read_module, token_ids
from mqc.errors import InputError
from mqc.files import read_text

if TYPE_CHECKING:
    from mqc.arrays import Array
    from mqc.compiler.recipe import Recipe
    from mqc.debugging.precision_plan import Plan
    from mqc.debugging.tensor_dumps import Recorded
    from mqc.debugging.value_report import Comparison, ValueReport
    from mqc.debugging.value_trace import Side

debug = typer.Typer(no_args_is_help=True, help="Find the value that went wrong first, and why.")
app.add_typer(debug, name="debug")

#: Tokens on which single ops are judged, and how many of the worst if one is bad.
ATTRIBUTION_TOKENS = 32
WORST = 48

Text = Annotated[Path | None, typer.Option(help="text to run on; the calibration windows by default")]
Backend = Annotated[str | None, typer.Option(help="take TEST's values from this backend, e.g. cpu")]


@debug.command("compare")
def compare_command(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="dump folder, .mlir or program")],
    test: Annotated[
        Path | None,
        typer.Argument(metavar="[TEST]", help="the same kinds, or a folder of a device's tensors"),
    ] = None,
    backend: Backend = None,
    option: Options = None,
    text: Text = None,
    ids: Annotated[
        str | None,
        typer.Option(help="token ids of the device's run, by commas; by default its file input_ids"),
    ] = None,
    windows: Annotated[int, number("windows to compare")] = 1,
    length: Annotated[int, number("tokens per window")] = 128,
    threshold: Annotated[float, typer.Option(help="dB below which a value is bad")] = 10.0,
    attribution: Annotated[bool, typer.Option(help="measure what each op alone does to the logits")] = True,
    worst: Annotated[int, number("values to list")] = 12,
    plan: Annotated[Path | None, typer.Option(help="file for the recipe that mends what was found")] = None,
    node_data: Annotated[
        Path | None, typer.Option(help="folder for a file of each figure, for mqc debug explore")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two levels, dumps or engines on the same tokens, value by value.

    With one dump folder: its last float module against its last. With one program: the oracle
    against the target's engine. With a program and a folder of tensors, called as the values (.npy, .raw
    of QNN, .tensorproto of ONNX Runtime): the oracle against what was computed elsewhere. The KL that each
    op causes alone is measured for all ops, or, if a bad one was found, for the 48 with the largest local
    errors.
    """
    from mqc.debugging.tensor_dumps import is_tensor_folder
    from mqc.files import check_writable, write_text
    from mqc.ir.module import room

    if plan is not None:
        check_writable(plan)
    if node_data is not None:
        check_writable(node_data, folder=True)
    paths = [path for path in (test, reference) if path is not None]
    tensors = test is not None and is_tensor_folder(test)
    if ids is not None and not tensors:
        raise InputError("--ids goes with a folder of a device's tensors")
    if tensors and (backend or option or text):
        raise InputError("--backend, -O and --text do not go with a device's tensors, whose run is over")
    if test is not None and tensors:
        one, two, run = device_sides(reference, test, ids)
        parts = [run.ids]
        if run.unknown:
            say(f"{len(run.unknown)} files are no value's: {', '.join(run.unknown[:worst])}", errors)
    else:
        one, two = sides(reference, test, backend, option)
        parts = token_windows(paths, text, windows, min(length, room(two.module)))
    result, mended = judge(one, two, parts, threshold, attribution)
    base = base_recipe(paths)
    if as_json:
        show(_data(result, mended, base, threshold), True, (), [])
    else:
        _print(result, mended, base, threshold, worst)
    if node_data is not None:
        _write_node_data(node_data, result)
    if plan is None:
        return
    if mended is not None and (mended.precision or mended.keep8):
        write_text(plan, mended.recipe(base).to_toml())
    else:
        say(f"{plan} was not written: precision mends nothing here", errors)


@debug.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DUMPS", help="dump folder")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML file to write")] = Path("report.html"),
    text: Text = None,
    windows: Annotated[int, number("windows to compare")] = 1,
    length: Annotated[int, number("tokens per window")] = 128,
    threshold: Annotated[float, typer.Option(help="dB below which a value is bad")] = 10.0,
    attribution: Annotated[bool, typer.Option(help="measure what each op alone does to the logits")] = True,
) -> None:
    """Write one HTML file: errors, ranges, histograms, plan, costs, graph, and what each pass did."""
    from mqc.debugging.precision_plan import Plan
    from mqc.debugging.report import Histograms, render
    from mqc.files import check_writable, write_text
    from mqc.ir.module import room

    check_writable(output)
    one, two = sides(folder, None, None)
    ids = token_windows([folder], text, windows, min(length, room(two.module)))
    histograms = Histograms()
    result, mended = judge(one, two, ids, threshold, attribution, histograms.note)
    plan = mended or Plan((), (), 0.0, ())
    recipe = plan.recipe(base_recipe([folder])).to_toml()
    write_text(output, render(folder, result, histograms, plan, recipe, two, threshold))
    say(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)", errors)


def judge(
    one: Side,
    two: Side,
    ids: list[Array],
    threshold: float,
    attribution: bool,
    watch: Callable[[str, Array, Array], None] = lambda name, wanted, computed: None,
) -> tuple[Comparison, Plan | None]:
    """Compare on windows of token ids, find what each op costs, and what would mend it.

    There is no plan if the logits are equal, a backend computed them, or the test is not at level
    `int`: precision mends nothing then.
    """
    from mqc.debugging.compare import attribute, compare
    from mqc.debugging.precision_plan import propose
    from mqc.ir.module import main_level

    with progress() as report:
        result = compare(one, two, ids, watch, report)
        if attribution and two.backend is None:
            ranked = sorted(result.values, key=lambda v: v.local_db)
            found = result.first_bad(threshold) is not None
            names = [v.name for v in (ranked[:WORST] if found else ranked)]
            attribute(result, one, two, ids[0][:ATTRIBUTION_TOKENS], names, report)
    if two.backend is not None or result.kl == 0 or main_level(two.module) != "int":
        return result, None
    return result, propose(result, two.module)


def sides(
    reference: Path, test: Path | None, backend: str | None, option: list[str] | None = None
) -> tuple[Side, Side]:
    """The two programs that paths and a backend's name, with options of its engine, stand for."""
    from mqc.backend import parse_options
    from mqc.compiler.dump import dump_files, read_dump
    from mqc.debugging.value_trace import Side
    from mqc.ir.module import level
    from mqc.registry import backend as backend_named

    chosen = backend_named(backend) if backend is not None else None
    options = parse_options(chosen.name, chosen.options, option or []) if chosen else {}
    if test is None and is_program(reference):
        from mqc.registry import backend_for
        from mqc.runtime.program import Program

        program = Program.load(reference)
        runs = chosen or backend_for(program.target)
        options = parse_options(program.target, runs.options, option or [])
        oracle = Side("the oracle", program.module, program.weights)
        return oracle, Side(f"backend {runs.name}", program.module, program.weights, runs, options)
    if test is None:
        loaded = [(path, *read_dump(path)) for path in dump_files(_folder(reference))]
        floats = [entry for entry in loaded if level(entry[1]) == "llm"]
        if not floats or level(loaded[-1][1]) == "llm":
            raise InputError(
                f"the folder {reference} needs a dump of level llm and a later one, its last is "
                f"{loaded[-1][0].name}; did the compilation finish? To compare two files, give both"
            )
        last, final = floats[-1], loaded[-1]
        return Side(last[0].name, *last[1:]), Side(final[0].name, *final[1:], backend=chosen, options=options)
    one, two = read_module(reference), read_module(test)
    return Side(str(reference), *one), Side(str(test), *two, backend=chosen, options=options)


def _write_node_data(folder: Path, result: Comparison) -> None:
    from mqc.debugging.model_explorer import METRICS, node_data
    from mqc.files import write_text

    os.makedirs(folder, exist_ok=True)
    for metric in METRICS:
        write_text(folder / f"{metric}.json", json.dumps(node_data(result, metric)))
    say(f"wrote {', '.join(f'{metric}.json' for metric in METRICS)} to {folder}", errors)


def device_sides(reference: Path, folder: Path, ids: str | None) -> tuple[Side, Side, Recorded]:
    """The oracle of a program, and what a folder of tensors says that its values were elsewhere."""
    from mqc.debugging.tensor_dumps import read_tensors
    from mqc.debugging.value_trace import Side

    one = Side(str(reference), *read_module(reference))
    run = read_tensors(folder, one, None if ids is None else token_ids(ids))
    return one, Side(str(folder), one.module, one.weights, run), run


def _folder(path: Path) -> Path:
    if not os.path.isdir(path):
        raise InputError(f"{path} is no folder of dumps; to compare two files, give both")
    return path


def token_windows(paths: list[Path], text: Path | None, windows: int, length: int) -> list[Any]:
    """Windows of token ids: of a text, of a dump's calibration data, or of the packaged text.

    The tokenizer is that of the program or of the dump folder.
    """
    from mqc.calibration import Calibration
    from mqc.compiler.dump import CALIBRATION
    from mqc.runtime.perplexity import text_windows
    from mqc.runtime.tokenizer import TOKENIZER, Tokenizer

    folders = [folder_of(path) for path in paths]
    saved = [folder / CALIBRATION for folder in folders if os.path.isfile(folder / CALIBRATION)]
    if text is None and saved:
        return list(Calibration.load(saved[0]).part(windows, length))
    tokenizers = [folder for folder in folders if os.path.isfile(folder / TOKENIZER)]
    if not tokenizers:
        raise InputError(f"none of {', '.join(map(str, folders))} holds {CALIBRATION} or {TOKENIZER}")
    if text is None:
        from mqc.data import text as packaged

        content = packaged("calibration")
    else:
        content = read_text(text, InputError)
    ids = Tokenizer.read(tokenizers[0]).encode(content, start=False)
    return list(np.asarray(text_windows(ids, length, windows, 0)))


def base_recipe(paths: list[Path]) -> Recipe:
    """The recipe of a dump folder, or the default one."""
    from mqc.compiler.dump import RECIPE
    from mqc.compiler.recipe import Recipe, load_recipe

    for folder in (folder_of(path) for path in paths):
        if os.path.isfile(folder / RECIPE):
            return load_recipe(folder / RECIPE)
    return Recipe()


def _data(result: Comparison, plan: Plan | None, base: Recipe, threshold: float) -> dict[str, Any]:
    from mqc.debugging.value_report import finite

    def named(value: ValueReport | None) -> str | None:
        return None if value is None else value.name

    data = {
        "reference": result.reference, "test": result.test, "tokens": result.tokens, "kl": result.kl,
        "threshold_db": threshold, "first_bad": named(result.first_bad(threshold)),
        "first_below": named(result.first_below(threshold)), "worst": named(result.worst()),
        "unaligned": result.unaligned, "windows": result.windows,
        "values": [dataclasses.asdict(v) for v in result.values],
        "plan": None if plan is None else dataclasses.asdict(plan),
        "recipe": None if plan is None else plan.recipe(base).to_toml(),
    }  # fmt: skip
    return finite(data)


def _print(result: Comparison, plan: Plan | None, base: Recipe, threshold: float, worst: int) -> None:
    say(f"{result.reference}  against  {result.test}, {result.tokens} tokens")
    if all(math.isinf(v.sqnr_db) and v.sqnr_db > 0 for v in result.values):
        say(f"all {len(result.values)} values are equal")
        return
    listed = sorted(result.values, key=lambda v: v.local_db)[:worst]
    rows = [_row(value) for value in listed if not math.isinf(value.local_db)]
    heads = "op", "type", "local dB", "cumul. dB", "cosine", "max error", "clipped", "used", "KL alone"
    show({}, False, heads, rows)
    bad, below, most = result.first_bad(threshold), result.first_below(threshold), result.worst()
    say(f"KL of the logits: {result.kl:.6f} nats per token")
    say(
        f"first bad op (local error below {threshold:g} dB): {_where(bad)}\n"
        f"first value below {threshold:g} dB, earlier errors included: {_where(below)}\n"
        f"largest local error: {_where(most)}"
    )
    if any(v.kl for v in result.values):
        costly = sorted(result.values, key=lambda v: -(v.kl or 0))[:worst]
        total = sum(v.kl or 0 for v in result.values)
        rows = [(f"%{v.name}", short(v.type), f"{v.kl:.6f}", f"{(v.kl or 0) / total:.1%}") for v in costly]
        show({}, False, ("type", "KL alone", "share of the sum"), rows)
    if plan is not None and (plan.precision or plan.keep8):
        say(f"a recipe that mends {plan.mended:.0%} of it (--plan FILE writes it, --recipe takes it):\n")
        say(plan.recipe(base).to_toml())
    if plan is not None and plan.beyond:
        say(f"no precision mends: {', '.join('%' + name for name in plan.beyond[:worst])}", errors)


def _row(v: ValueReport) -> tuple[str, ...]:
    share = ["" if x is None else f"{x:.2%}" for x in (v.clipped, v.used)]
    return (
        f"%{v.name}", v.op, short(v.type), f"{v.local_db:.1f}", f"{v.sqnr_db:.1f}", f"{v.cosine:.5f}",
        f"{v.max_error:.4g}", *share, "" if v.kl is None else f"{v.kl:.6f}",
    )  # fmt: skip


def short(kind: str) -> str:
    """`u8 0.0379:170` for a quantized type: storage, scale to four digits, zero point."""
    found = re.fullmatch(r"!quant\.uniform<(\w+):f32, ([^:]+):(-?\d+)>", kind)
    return f"{found[1]} {float(found[2]):.4g}:{found[3]}" if found else kind


def _where(value: ValueReport | None) -> str:
    if value is None:
        return "none"
    place = f", {value.loc}" if value.loc else ""
    return (
        f"%{value.name} ({value.op}{place}): local {value.local_db:.1f} dB, cumulative {value.sqnr_db:.1f} dB"
    )
