"""Time lines of programs in Chrome's trace format, which ui.perfetto.dev and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mqc.backend import Timeline


def chrome_trace(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """The JSON object of the Trace Event Format: a process for each time line, a thread for each unit, and a
    complete event ("X") for each op, in microseconds."""
    events: list[dict[str, Any]] = []
    for pid, line in enumerate(timelines, 1):
        title = f"{line.title}, {'measured' if line.measured else 'modelled'}"
        events.append({"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": title}})
        units = list(dict.fromkeys(span.unit for span in line.spans))
        for tid, unit in enumerate(units, 1):
            named = {"ph": "M", "pid": pid, "tid": tid}
            events.append({"name": "thread_name", **named, "args": {"name": unit}})
            events.append({"name": "thread_sort_index", **named, "args": {"sort_index": tid}})
        for span in line.spans:
            # Perfetto counts in ns, and drops events that overlap: where one ends the next one begins.
            begin, end = round(span.begin * 1e9), round((span.begin + span.seconds) * 1e9)
            times = {"ts": begin / 1000, "dur": (end - begin) / 1000}
            place = {"pid": pid, "tid": units.index(span.unit) + 1}
            facts = {"op": span.kind, **span.facts}
            events.append({"name": span.value, "cat": span.kind, "ph": "X", **place, **times, "args": facts})
    return {"displayTimeUnit": "ns", "traceEvents": events}
