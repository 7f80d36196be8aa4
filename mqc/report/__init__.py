"""An HTML report of a compilation: one file that needs no network."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from xdsl.dialects.builtin import ModuleOp

from mqc.dialects.core import MqcOp, WeightAttr
from mqc.dump import dump_files
from mqc.ir import mqc_ops
from mqc.ir_diff import Change, diff
from mqc.ir_graph import svg
from mqc.ir_text import parse_module, read_text
from mqc.precision_plan import Plan
from mqc.value_report import Comparison, finite
from mqc.weight_store import Array, numpy_dtype

#: Bars of a histogram, and changes listed per pass.
BINS, CHANGES = 48, 60


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
    module: ModuleOp,
    threshold_db: float,
) -> str:
    """The report as HTML.

    Args:
        folder: the dumps, for what each pass did.
        comparison, histograms: the test against the reference.
        plan, recipe: what would mend it, and the recipe file for that.
        module: the test, for costs and drawings.

    Size grows with the number of values (about 1 kB each) and of layers (about 16 kB each).
    """
    data = {
        "summary": _summary(comparison, module, threshold_db),
        "values": [
            {**dataclasses.asdict(v), "layer": layer_of(v.name), "bits": _bits(v.type)}
            for v in comparison.values
        ],
        "histograms": histograms.values,
        "costs": [_cost(op) for op in mqc_ops(module)],
        "passes": _passes(folder),
        "plan": {**dataclasses.asdict(plan), "recipe": recipe},
        "threshold": threshold_db,
    }
    environment = Environment(loader=PackageLoader("mqc.report", "."), autoescape=True)
    return environment.get_template("report.html").render(
        title=f"{comparison.test} against {comparison.reference}",
        # A closing tag inside a string would end the script element.
        data=json.dumps(finite(data)).replace("<", "\\u003c"),
        graphs=_graphs(module),
        style=_part("report.css"),
        script=_part("report.js"),
    )


def layer_of(name: str) -> int | None:
    """Number of the layer that a value belongs to: the first number in its path."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(found[1]) if found else None


def _summary(comparison: Comparison, module: ModuleOp, threshold_db: float) -> dict[str, Any]:
    ops = list(mqc_ops(module))
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
        "weights": f"{sum(_weight_bytes(ops).values()) / 1e6:.1f} MB",
        "values not in the reference": len(comparison.unaligned),
    }


def _place(value: Any) -> str:
    return "none" if value is None else f"%{value.name} ({value.local_db:.1f} dB)"


def _bits(kind: str) -> int | None:
    found = re.search(r"<u(\d+):|^[su]i(\d+)$", kind)
    return int(found[1] or found[2]) if found else None


def _weight_bytes(ops: list[MqcOp]) -> dict[str, int]:
    refs = {
        str(ref): math.prod(ref.shape) * numpy_dtype(ref.type.get_element_type()).itemsize
        for op in ops
        for ref in op.properties.values()
        if isinstance(ref, WeightAttr)
    }
    return refs


def _cost(op: MqcOp) -> dict[str, Any]:
    weights = sum(_weight_bytes([op]).values())
    kernel = op.attributes.get("kernel")
    return {
        "name": op.value_name, "op": op.name, "macs": op.macs(), "bytes": weights,
        "kernel": getattr(kernel, "data", ""), "layer": layer_of(op.value_name),
    }  # fmt: skip


def _passes(folder: Path) -> list[dict[str, Any]]:
    files = dump_files(folder)
    result = []
    before = parse_module(read_text(files[0]), str(files[0]))
    for path in files[1:]:
        after = parse_module(read_text(path), str(path))
        changes = diff(before, after)
        count = {kind: sum(c.kind == kind for c in changes) for kind in ("added", "removed", "changed")}
        result.append({"name": path.stem, **count, "changes": [_change(c) for c in changes[:CHANGES]]})
        before = after
    return result


def _change(change: Change) -> dict[str, Any]:
    fields = [list(field) for field in change.fields] if change.kind == "changed" else []
    return {"kind": change.kind, "value": change.value, "op": change.op, "fields": fields}


def _graphs(module: ModuleOp) -> dict[str, str]:
    names = [op.value_name for op in mqc_ops(module)]
    drawings = {}
    for name in names:
        found = re.match(r"(.*?(?:^|\.)(\d+))\.", name)
        if found and found[1] not in drawings:
            drawings[found[1]] = svg(module, f"{found[1]}.*")
    return drawings


def _part(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
