"""Drawings of a part of a module, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from itertools import pairwise

import networkx as nx
from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.ir import SSAValue

from mqc.errors import InputError
from mqc.ir.module import mqc_ops
from mqc.ir.op import MqcOp

#: Pixels.
_ROW, _COLUMN, _BOX_WIDTH, _BOX_HEIGHT = 74, 190, 172, 46
#: More ops than this make a drawing nobody reads.
MAX_OPS = 400

_FILL = {"linear": "#dbeafe", "attention": "#fde68a", "norm": "#dcfce7", "lut": "#fce7f3", "add": "#e5e7eb"}


@dataclass(frozen=True)
class Box:
    """What a node shows. title: op kind; name: value name; note: its type."""

    title: str
    name: str
    note: str


def select(module: ModuleOp, values: str) -> list[MqcOp]:
    """The ops whose value name matches a glob.

    Raises `InputError` if there are none, or more than `MAX_OPS`.
    """
    chosen = [op for op in mqc_ops(module) if fnmatchcase(op.value_name, values)]
    if not chosen:
        raise InputError(f"no value is called {values!r}; try 'layers.0.*' or '*'")
    if len(chosen) > MAX_OPS:
        raise InputError(f"{len(chosen)} ops match {values!r}; choose at most {MAX_OPS}, e.g. 'layers.0.*'")
    return chosen


def graph(ops: Sequence[MqcOp]) -> nx.DiGraph:
    """The ops, and dashed boxes for the values that enter.

    Nodes are value names with attributes `box` and `inside`.
    """
    drawn = nx.DiGraph()
    results = {op.results[0] for op in ops}
    for op in ops:
        for operand in op.operands:
            if operand not in results and _key(operand) not in drawn:
                title = operand.owner.name if isinstance(operand.owner, MqcOp) else "argument"
                drawn.add_node(_key(operand), box=Box(title, _key(operand), _kind(operand)), inside=False)
        drawn.add_node(op.value_name, box=Box(op.name, op.value_name, _kind(op.results[0])), inside=True)
        drawn.add_edges_from((_key(operand), op.value_name) for operand in op.operands)
    return drawn


def svg(ops: Sequence[MqcOp]) -> str:
    """An SVG drawing of `graph`, producers above users.

    Rows are by longest path; long edges bend around the boxes between; boxes are ordered in their
    rows by the mean place of their neighbours. Time is linear in ops and edges, times the rows
    that edges cross.
    """
    drawn = graph(ops)
    rows = _rows(drawn)
    routed, paths = _with_bends(drawn, rows)
    placed = nx.multipartite_layout(routed, _ordered(routed, rows), align="horizontal")
    widest = max(sum(rows[n] == row for n in routed) for row in set(rows.values()))
    height = max(rows.values()) + 1
    columns = sorted({round(float(x), 9) for x, _ in placed.values()})
    span = max(columns[-1] - columns[0], 1e-9)
    width = widest * _COLUMN

    def x(node: str) -> float:
        share = (float(placed[node][0]) - columns[0]) / span if len(columns) > 1 else 0.5
        return _COLUMN / 2 + share * (width - _COLUMN)

    def y(node: str) -> float:
        return 20 + _BOX_HEIGHT / 2 + rows[node] * _ROW

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height * _ROW + 20}" '
        f'viewBox="0 0 {width} {height * _ROW + 20}" font-family="sans-serif" font-size="11">'
    ]
    for path in paths:
        points = [(x(node), y(node)) for node in path]
        parts.append(f'<path d="{_curve(points)}" fill="none" stroke="#94a3b8"/>')
    for node, data in drawn.nodes(data=True):
        parts.append(_box(x(node), y(node), data["box"], data["inside"]))
    return "\n".join([*parts, "</svg>\n"])


def _rows(drawn: nx.DiGraph) -> dict[str, int]:
    rows: dict[str, int] = {}
    for node in nx.topological_sort(drawn):
        rows[node] = max((rows[p] + 1 for p in drawn.predecessors(node)), default=0)
    # What enters stands just above its first user.
    for node, data in drawn.nodes(data=True):
        if not data["inside"]:
            rows[node] = min(rows[user] for user in drawn.successors(node)) - 1
    return rows


def _with_bends(drawn: nx.DiGraph, rows: dict[str, int]) -> tuple[nx.DiGraph, list[list[str]]]:
    """The graph with a point in every row that an edge crosses; `rows` gets the points' rows."""
    routed = nx.DiGraph()
    routed.add_nodes_from(drawn)
    paths = []
    for a, b in drawn.edges:
        path = [a]
        for row in range(rows[a] + 1, rows[b]):
            path.append(f"{a} -> {b} @ {row}")
            rows[path[-1]] = row
        path.append(b)
        nx.add_path(routed, path)
        paths.append(path)
    return routed, paths


def _ordered(routed: nx.DiGraph, rows: dict[str, int]) -> dict[int, list[str]]:
    """The nodes of each row, in the order in which it shows them."""
    place = {node: float(i) for i, node in enumerate(routed)}
    by_row: dict[int, list[str]] = {}
    for node in routed:
        by_row.setdefault(rows[node], []).append(node)
    for sweep in range(8):
        neighbours = routed.predecessors if sweep % 2 == 0 else routed.successors
        for row in sorted(by_row, reverse=sweep % 2 == 1):
            nodes = by_row[row]
            mean = {}
            for node in nodes:
                near = [place[n] for n in neighbours(node)]
                mean[node] = sum(near) / len(near) if near else place[node]
            nodes.sort(key=mean.__getitem__)
            for i, node in enumerate(nodes):
                place[node] = i - len(nodes) / 2
    return by_row


def _curve(points: list[tuple[float, float]]) -> str:
    path = f"M{points[0][0]:.0f},{points[0][1]:.0f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        path += f" C{x0:.0f},{middle:.0f} {x1:.0f},{middle:.0f} {x1:.0f},{y1:.0f}"
    return path


def _box(x: float, y: float, box: Box, inside: bool) -> str:
    left, top = x - _BOX_WIDTH / 2, y - _BOX_HEIGHT / 2
    kind = box.title.split(".")[-1]
    fill = next((colour for key, colour in _FILL.items() if key in kind), "#f8fafc")
    dash = "" if inside else ' stroke-dasharray="4 3"'
    short = box.name if len(box.name) <= 28 else "…" + box.name[-27:]
    return (
        f"<g><title>%{escape(box.name)} = {escape(box.title)} : {escape(box.note)}</title>"
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6" '
        f'fill="{fill if inside else "#ffffff"}" stroke="#475569"{dash}/>'
        f'<text x="{x:.0f}" y="{top + 13:.0f}" text-anchor="middle" font-weight="bold">'
        f"{escape(box.title)}</text>"
        f'<text x="{x:.0f}" y="{top + 26:.0f}" text-anchor="middle" font-size="10">{escape(short)}</text>'
        f'<text x="{x:.0f}" y="{top + 39:.0f}" text-anchor="middle" font-size="9" fill="#64748b">'
        f"{escape(box.note)}</text></g>"
    )


def _key(value: SSAValue) -> str:
    return value.name_hint or "value"


def _kind(value: SSAValue) -> str:
    assert isinstance(value.type, TensorType)
    element = str(value.type.get_element_type()).removeprefix("!quant.uniform")
    return f"{'x'.join(str(d) if d >= 0 else '?' for d in value.type.get_shape())} {element}"
