"""Commands that work on IR text: `mqc opt` and `mqc ir …`."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from mqc.cli.common import (
    AsJson,
    PrintAfter,
    PrintBefore,
    PrintChange,
    VerifyEach,
    app,
    errors,
    number,
    progress,
    say,
    show,
)  # fmt: skip
from mqc.cli.modules import folder_of, read_module, token_ids
from mqc.compiler.reproducer import REPRODUCER, reproducer_folder
from mqc.errors import InputError
from mqc.files import check_writable

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

ir = typer.Typer(no_args_is_help=True, help="Compare, run, verify, draw and reduce IR text.")
app.add_typer(ir, name="ir")

File = Annotated[Path, typer.Argument(metavar="FILE", help="IR text, with its weights in the same folder")]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="give weights that no file holds random values by name")
]


@app.command()
def opt(
    path: File,
    passes: Annotated[str, typer.Option(help="pipeline: name{option=value},…")] = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="file to write, its weights beside it")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="windows that a dump wrote (calibration.safetensors)")
    ] = None,
    random_weights: RandomWeights = False,
    generic: Annotated[
        bool, typer.Option("--generic", help="write ops in generic form, as mlir-opt reads them")
    ] = False,
    print_ir_before: PrintBefore = None,
    print_ir_after: PrintAfter = None,
    print_ir_after_change: PrintChange = False,
    verify_each: VerifyEach = False,
) -> None:
    """Read IR text, run passes, verify, write IR text.

    Calibration windows are read from calibration.safetensors beside FILE if they are not given.
    """
    from mqc.analysis.context import CompilerContext
    from mqc.analysis.ir_text import print_module
    from mqc.analysis.verification import verify_fully
    from mqc.calibration import Calibration
    from mqc.compiler.dump import CALIBRATION, write_module
    from mqc.compiler.instruments import PrintIR
    from mqc.compiler.pass_manager import Pipeline

    if output is not None:
        check_writable(output)
    pipeline = Pipeline.parse(passes)
    module, weights = read_module(path, random_weights)
    ctx = CompilerContext(weights)
    windows = calibration or folder_of(path) / CALIBRATION
    if calibration is not None or os.path.isfile(windows):
        ctx.calibration = Calibration.load(windows)
    if verify_each:
        verify_fully(module, weights)
    watching = [PrintIR(print_ir_before, print_ir_after, print_ir_after_change)]
    # What already is a reproducer needs no copy, which would hold the weights again.
    reproducer = None if path.name == REPRODUCER else reproducer_folder()
    pipeline.run(ctx, module, watching, verify_each=verify_each, reproducer=reproducer)
    if output is None:
        sys.stdout.write(print_module(module, generic))
    else:
        write_module(output, module, ctx.weights, generic=generic)


@ir.command("diff")
def diff_command(
    before: Annotated[Path, typer.Argument(metavar="A")],
    after: Annotated[Path, typer.Argument(metavar="B")],
    values: Annotated[str, typer.Option(help="only values whose name matches this glob")] = "*",
    as_json: AsJson = False,
) -> None:
    """What B changed against A, op by op, aligned by value names."""
    from fnmatch import fnmatchcase

    from mqc.analysis.ir_text import parse_file
    from mqc.debugging.ir_diff import diff, render

    one, two = (parse_file(path) for path in (before, after))
    changes = [change for change in diff(one, two) if fnmatchcase(change.value, values)]
    if as_json:
        print(json.dumps({"changes": [dataclasses.asdict(change) for change in changes]}))
    else:
        say(render(changes))


@ir.command("run")
def run_command(
    path: File,
    ids: Annotated[str | None, typer.Option(help="token ids, separated by commas")] = None,
    random: Annotated[int, number("number of random tokens, if no ids are given")] = 16,
    seed: Annotated[int, number("of the random tokens", least=0)] = 0,
    values: Annotated[str | None, typer.Option(help="also show values whose name matches this glob")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="safetensors file for the logits and the values")
    ] = None,
    random_weights: RandomWeights = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate IR text on tokens, by the semantics that its ops declare."""
    from fnmatch import fnmatchcase

    from safetensors.numpy import save_file

    from mqc.analysis.evaluation import evaluate
    from mqc.files import replacing
    from mqc.ir.module import level, returned_value, room
    from mqc.ir.op import MqcOp, channels
    from mqc.ir.weight_store import content_hash

    if output is not None:
        check_writable(output)
    module, weights = read_module(path, random_weights)
    vocabulary = channels(returned_value(module))
    if ids is None and random > room(module):
        raise InputError(f"--random {random} does not fit the context, which has room for {room(module)}")
    tokens = (
        token_ids(ids) if ids is not None else np.random.default_rng(seed).integers(0, vocabulary, random)
    )
    kept: dict[str, Any] = {}

    def note(op: MqcOp, value: Any) -> None:
        if values is not None and fnmatchcase(op.value_name, values):
            kept[op.value_name] = np.ascontiguousarray(value)

    logits = evaluate(module, weights, tokens, note)
    kept["logits"] = np.ascontiguousarray(logits)
    if output is not None:
        with replacing(output) as partial:
            save_file(kept, partial)
    best = np.argsort(-logits[-1].astype(np.float64), kind="stable")[:5].tolist()
    facts = {
        name: {
            "shape": list(value.shape), "dtype": str(value.dtype), "min": value.min().item(),
            "max": value.max().item(), "mean": float(value.mean()), "sha256": content_hash(value),
        }
        for name, value in kept.items()
    }  # fmt: skip
    data = {"level": level(module), "ids": tokens.tolist(), "next": best, "values": facts}
    rows = [
        (
            name,
            f"{f['dtype']}{f['shape']}",
            *(f"{f[key]:.6g}" for key in ("min", "max", "mean")),
            str(f["sha256"]),
        )
        for name, f in facts.items()
    ]
    show(data, as_json, ("type", "min", "max", "mean", "sha256"), rows)
    if not as_json:
        say(f"likeliest next tokens: {', '.join(map(str, best))}")


@ir.command("verify")
def verify_command(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…")],
    text_only: Annotated[bool, typer.Option("--text-only", help="do not read the weights")] = False,
    as_json: AsJson = False,
) -> None:
    """Check IR text: syntax, types, structure; and its weights by hash, and that no accumulator overflows."""
    from mqc.analysis.ir_text import parse_file
    from mqc.analysis.verification import verify_fully
    from mqc.ir.module import level, mqc_ops

    data, rows = {}, []
    for path in paths:
        if text_only:
            module = parse_file(path)
        else:
            module, weights = read_module(path)
            verify_fully(module, weights)
        count = len(list(mqc_ops(module)))
        data[str(path)] = {"level": level(module), "ops": count}
        rows.append((str(path), level(module), str(count)))
    show(data, as_json, ("level", "ops"), rows)


@ir.command("graph")
def graph_command(
    path: File,
    values: Annotated[str, typer.Option(help="glob of value names")] = "layers.0.*",
    output: Annotated[Path, typer.Option("-o", "--output", help="SVG file to write")] = Path("graph.svg"),
) -> None:
    """Draw the ops whose value names match a glob, e.g. a layer, as SVG."""
    from mqc.analysis.ir_text import parse_file
    from mqc.debugging.ir_graph import select, svg
    from mqc.files import write_text

    write_text(output, svg(select(parse_file(path), values)))


@ir.command("reduce")
def reduce_command(
    path: File,
    command: Annotated[
        str, typer.Option(help="shell command that fails on the module; {} stands for its file")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write, its weights beside it")],
    match: Annotated[str, typer.Option(help="text that the output of a failure must hold")] = "",
    random_weights: RandomWeights = False,
) -> None:
    """Shrink a module while a command keeps failing on it (exit code other than 0)."""
    from mqc.compiler.dump import write_module
    from mqc.debugging.ir_reduce import reduce_module
    from mqc.ir.module import mqc_ops

    check_writable(output)
    module, weights = read_module(path, random_weights)
    if "{}" not in command:
        raise InputError("the command must hold {}, which stands for the module's file")
    total = len(list(mqc_ops(module)))
    runs = 0
    with tempfile.TemporaryDirectory(prefix="mqc-reduce-") as folder, progress() as report:
        candidate = Path(folder) / REPRODUCER

        def fails(tried: ModuleOp) -> bool:
            nonlocal runs
            runs += 1
            write_module(candidate, tried, weights)
            line = command.replace("{}", shlex.quote(str(candidate)))
            done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
            return done.returncode != 0 and match in done.stdout + done.stderr

        smallest = reduce_module(module, fails, lambda ops: report("reducing", 1 - ops / total))
    write_module(output, smallest, weights)
    say(f"{total} ops reduced to {len(list(mqc_ops(smallest)))} by {runs} runs: {output}", errors)
