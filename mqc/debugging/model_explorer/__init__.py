"""IR text and comparisons in Google's Model Explorer: an extension for `.mlir` files, and data of nodes.

`main.py` is the extension, which Model Explorer loads by this package's name.
"""

from __future__ import annotations

import math
from typing import Any

from mqc.debugging.value_report import Comparison, ValueReport

#: The extension's name among Model Explorer's adapters.
ADAPTER = "mqc"
#: From the worst to the best.
_RED, _WHITE = "#dc2626", "#ffffff"
#: What a file of node data shows of a value, by the file's name; whether a large figure is a bad one.
METRICS = {
    "local_db": ("local error, dB", False),
    "sqnr_db": ("error with all before it, dB", False),
    "kl": ("KL of the logits by this op alone, nats a token", True),
    "clipped": ("share beyond the type's range", True),
    "used": ("share of the type's steps in use", False),
}


def node_data(comparison: Comparison, metric: str) -> dict[str, Any]:
    """What Model Explorer shows at the nodes of @main for one of `METRICS`: its JSON object of node data.

    Values without a finite figure, such as those that are equal, have no entry.
    """
    title, large_is_bad = METRICS[metric]
    figures = {value.name: _figure(value, metric) for value in comparison.values}
    ends = (_WHITE, _RED) if large_is_bad else (_RED, _WHITE)
    graph = {
        "name": title,
        "results": {name: {"value": figure} for name, figure in figures.items() if figure is not None},
        "gradient": [{"stop": stop, "bgColor": colour} for stop, colour in enumerate(ends)],
    }
    return {"main": graph}


def _figure(value: ValueReport, metric: str) -> float | None:
    figure = getattr(value, metric)
    return float(figure) if figure is not None and math.isfinite(figure) else None
