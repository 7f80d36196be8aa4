"""`mqc debug encodings`: two files of AIMET encodings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mqc.cli.common import AsJson, number, say, show
from mqc.cli.debug import debug
from mqc.errors import InputError
from mqc.files import json_object, read_text

if TYPE_CHECKING:
    from mqc.analysis.aimet import Named


@debug.command("encodings")
def encodings_command(
    first: Annotated[Path, typer.Argument(metavar="A", help="file of AIMET encodings, 0.6.1 or 1.0.0")],
    second: Annotated[Path, typer.Argument(metavar="B", help="another")],
    tolerance: Annotated[
        float, typer.Option(help="relative difference of scales that counts as none")
    ] = 1e-4,
    worst: Annotated[int, number("tensors to list")] = 20,
    as_json: AsJson = False,
) -> None:
    """What B quantizes otherwise than A: bits, zero points, scales, those farthest apart first.

    `mqc export` of a program for an NPU through ONNX writes A; what another tool made of the model may be B.
    """
    import math

    from mqc.debugging.encodings_diff import differences

    if not 0 <= tolerance < 1:
        raise InputError(f"--tolerance must be in [0, 1), got {tolerance}")
    found = differences(_read(first), _read(second), tolerance)
    found.differing.sort(key=lambda d: -abs(math.log(d.ratio)) if d.ratio else -math.inf)
    rows = [
        (
            d.name,
            d.part,
            f"{d.bits[0]} {d.bits[1]}",
            f"{d.zeros[0]} {d.zeros[1]}",
            f"{d.channels[0]} {d.channels[1]}",
            "" if d.ratio is None else f"{d.ratio:.5g}",
        )
        for d in found.differing[:worst]
    ]
    heads = "part", "bits A B", "zero A B", "scales A B", "scale B / A"
    show(asdict(found), as_json, heads, rows)
    if as_json:
        return
    say(f"{found.equal} tensors are alike, {len(found.differing)} are not")
    for path, names in ((first, found.only_first), (second, found.only_second)):
        if names:
            say(f"only in {path}: {len(names)}, such as {', '.join(names[:4])}")


def _read(path: Path) -> list[Named]:
    from mqc.analysis.aimet import read_encodings

    try:
        return read_encodings(json_object(read_text(path, InputError)))
    except ValueError as error:
        raise InputError(f"{path} holds no encodings that are read: {error}") from error
