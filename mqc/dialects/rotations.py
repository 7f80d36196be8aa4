"""Rotations that leave the float function unchanged: how they move through ops, and which a module allows.

Multiplying a value `[tokens, channels]` from the right by an orthogonal matrix changes nothing if every op
that touches it either absorbs the matrix in its weights or passes it on: `rms_norm` without gain keeps the
length of a vector, attention sums values with one weight per head. An op states what it demands:

- `Alike(a, b, width)`: `a` and `b` are turned by one matrix `[width, width]`, block of channels by block;
- `Fix(value)`: the value must not be turned.

What an op does not mention is free for it: it absorbs any rotation there (`LlmOp.turn`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx
import numpy as np
from xdsl.ir import SSAValue

from mqc.arrays import Array
from mqc.dialects.equivariance import Fix


@dataclass(frozen=True)
class Alike:
    """`a` and `b` are turned by one matrix, applied to each block of `width` channels."""

    a: SSAValue
    b: SSAValue
    width: int


RotationRule = Alike | Fix


@dataclass(frozen=True)
class Rotatable:
    """Values that one free rotation turns, in order of definition, and the width of its matrix."""

    values: tuple[SSAValue, ...]
    width: int


def rotatable(rules: Iterable[RotationRule]) -> list[Rotatable]:
    """Every free rotation of the values that the rules tie. Time is linear in their number.

    Values tied to one that is fixed, or by different widths, are not free.
    """
    graph: nx.Graph[SSAValue] = nx.Graph()
    fixed: set[SSAValue] = set()
    for rule in rules:
        if isinstance(rule, Fix):
            fixed.add(rule.value)
        else:
            graph.add_edge(rule.a, rule.b, width=rule.width)
    found = []
    for component in nx.connected_components(graph):
        widths = {width for _, _, width in graph.subgraph(component).edges(data="width")}
        if len(widths) == 1 and not component & fixed:
            found.append(Rotatable(tuple(v for v in graph if v in component), widths.pop()))
    return found


def random_hadamard(width: int, seed: int) -> Array:
    """An orthogonal matrix f64 `[width, width]` that spreads every channel over all.

    For a power of two, a Hadamard matrix with random signs (QuaRot, arXiv 2404.00456, section 3). Any
    other width is `odd · 2^k`: the Kronecker product of a random orthogonal matrix and a Hadamard matrix.
    """
    generator = np.random.default_rng(seed)
    power = width & -width
    matrix, _ = np.linalg.qr(generator.standard_normal((width // power, width // power)))
    while len(matrix) < width:
        matrix = np.kron(matrix, np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2))
    return np.asarray(matrix * generator.choice([-1.0, 1.0], width)[:, None], np.float64)


def turn_columns(array: Array, matrix: Array) -> Array:
    """`array · matrix` on each block of `len(matrix)` columns, `[rows, columns]`, as f32."""
    width = len(matrix)
    blocks = array.reshape(len(array), -1, width).astype(np.float64)
    turned: Array = (blocks @ matrix).reshape(array.shape).astype(np.float32)
    return turned
