"""An HTML report of a compilation: one file that needs no network."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from mqc.analysis.ir_text import parse_file
from mqc.arrays import Array
from mqc.compiler.dump import dump_files
from mqc.debugging.ir_diff import Change, diff
from mqc.debugging.ir_graph import svg
from mqc.debugging.precision_plan import Plan
from mqc.debugging.value_report import Comparison, finite
from mqc.debugging.value_trace import Side
from mqc.ir.module import mqc_ops, weight_refs
from mqc.ir.op import MqcOp
from mqc.ir.weight_store import WeightStore
from mqc.runtime.tokenizer import TOKENIZER, Tokenizer

#: Bars of a histogram, and changes listed per pass.
BINS, CHANGES = 48, 60
#: Path and number of the layer that a value belongs to: up to the first number in its name.
_LAYER = re.compile(r"(?P<path>.*?(?:^|\.)(?P<number>\d+))\.")


class Histograms:
    """Collects a histogram of each value, reference and test on the same bins, of one window."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}

    def note(self, name: str, wanted: Array, computed: Array) -> None:
        """Callback for `compare(watch=…)`: real numbers `[tokens, channels]`."""
        if name in self.values:
            return
        low = min(float(wanted.min()), float(computed.min()))
        high = max(float(wanted.max()), float(computed.max()))
        edges = np.linspace(low, high if high > low else low + 1e-9, BINS + 1)
        before, after = (np.histogram(x, edges)[0].tolist() for x in (wanted, computed))
        self.values[name] = {"low": low, "high": high, "before": before, "after": after}


def render(
    folder: Path,
    comparison: Comparison,
    histograms: Histograms,
    plan: Plan,
    recipe: str,
    test: Side,
    threshold_db: float,
) -> str:
    """The report as HTML.

    Args:
        folder: the dumps, for what each pass did.
        comparison, histograms: the test against the reference.
        plan, recipe: what would mend it, and the recipe file for that.
        test: for costs and drawings.

    Size grows with the number of values (about 1 kB each) and of layers (about 16 kB each).
    """
    ops = list(mqc_ops(test.module))
    data = {
        "summary": _summary(comparison, test, threshold_db),
        "values": [
            {**dataclasses.asdict(v), "layer": _layer_number(v.name), "bits": _bits(v.type)}
            for v in comparison.values
        ],
        "histograms": histograms.values,
        "costs": [_cost(op, test.weights) for op in ops],
        "passes": _passes(folder),
        "windows": _windows(folder, comparison),
        "plan": {**dataclasses.asdict(plan), "recipe": recipe},
        "threshold": threshold_db,
    }
    environment = Environment(loader=PackageLoader("mqc.debugging.report", "."), autoescape=True)
    return environment.get_template("report.html").render(
        title=f"{comparison.test} against {comparison.reference}",
        # A closing tag inside a string would end the script element.
        data=json.dumps(finite(data)).replace("<", "\\u003c"),
        graphs=_graphs(ops),
        style=_part("report.css"),
        script=_part("report.js"),
    )


def _windows(folder: Path, comparison: Comparison) -> list[list[tuple[str, float]]]:
    """Of each window the tokens' texts, or their ids where the dumps have no tokenizer, each with the KL of
    the logits behind it."""
    tokenizer = Tokenizer.read(folder) if (folder / TOKENIZER).is_file() else None
    return [
        [(tokenizer.decode([i]) if tokenizer else f"{i} ", kl) for i, kl in zip(ids, behind, strict=True)]
        for ids, behind in comparison.windows
    ]


def _layer_number(name: str) -> int | None:
    found = _LAYER.match(name)
    return int(found["number"]) if found else None


def _summary(comparison: Comparison, test: Side, threshold_db: float) -> dict[str, Any]:
    ops = list(mqc_ops(test.module))
    macs = sum(op.macs() for op in ops)
    return {
        "reference": comparison.reference,
        "test": comparison.test,
        "tokens compared": comparison.tokens,
        "KL of the logits": f"{comparison.kl:.6f} nats per token",
        f"first bad op (local error below {threshold_db:g} dB)": _place(comparison.first_bad(threshold_db)),
        f"first value below {threshold_db:g} dB": _place(comparison.first_below(threshold_db)),
        "largest local error": _place(comparison.worst()),
        "ops": len(ops),
        "multiply-accumulates per token": f"{macs:,}",
        "weights": f"{test.weights.nbytes(weight_refs(test.module)) / 1e6:.1f} MB",
        "values not in the reference": len(comparison.unaligned),
    }


def _place(value: Any) -> str:
    return "none" if value is None else f"%{value.name} ({value.local_db:.1f} dB)"


def _bits(kind: str) -> int | None:
    found = re.search(r"<u(\d+):|^[su]i(\d+)$", kind)
    return int(found[1] or found[2]) if found else None


def _cost(op: MqcOp, weights: WeightStore) -> dict[str, Any]:
    kernel = op.attributes.get("kernel")
    return {
        "name": op.value_name, "op": op.name, "macs": op.macs(), "bytes": weights.nbytes(op.weight_refs()),
        "kernel": getattr(kernel, "data", ""), "layer": _layer_number(op.value_name),
    }  # fmt: skip


def _passes(folder: Path) -> list[dict[str, Any]]:
    files = dump_files(folder)
    result = []
    before = parse_file(files[0])
    for path in files[1:]:
        after = parse_file(path)
        changes = diff(before, after)
        count = {kind: sum(c.kind == kind for c in changes) for kind in ("added", "removed", "changed")}
        result.append({"name": path.stem, **count, "changes": [_change(c) for c in changes[:CHANGES]]})
        before = after
    return result


def _change(change: Change) -> dict[str, Any]:
    fields = [list(field) for field in change.fields] if change.kind == "changed" else []
    return {"kind": change.kind, "value": change.value, "op": change.op, "fields": fields}


def _graphs(ops: list[MqcOp]) -> dict[str, str]:
    layers: dict[str, list[MqcOp]] = {}
    for op in ops:
        if found := _LAYER.match(op.value_name):
            layers.setdefault(found["path"], []).append(op)
    return {path: svg(layer) for path, layer in layers.items()}


def _part(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
