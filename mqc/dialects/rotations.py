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
from scipy.linalg import hadamard
from xdsl.ir import SSAValue

from mqc.arrays import Array
from mqc.dialects.equivariance import Fix

#: Largest factor of a Hadamard matrix: small ones cost less, and more of them read the data more often.
_HADAMARD_SIZE = 16
#: Largest order of a Hadamard matrix that is no power of two.
_PALEY_ORDER = 256
#: Elements that are turned at once, in f64.
_ELEMENTS = 1 << 20


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


@dataclass(frozen=True)
class Rotation:
    """The orthogonal matrix `diag(signs) · (F₁ ⊗ F₂ ⊗ …)`, kept and applied as its small factors.

    signs: ±1, f64 `[width]`. factors: orthogonal, f64 `[n, n]` each; the sizes multiply to the width.
    """

    signs: Array
    factors: tuple[Array, ...]

    def turn(self, array: Array) -> Array:
        """`array · matrix` on each block of `width` columns, `[rows, columns]`, as f32.

        Time: elements · sum of the factors' sizes, which for `2^k` is `16·k/4`: n log n. Memory: the result.
        """
        result = np.empty(array.shape, np.float32)
        step = max(1, _ELEMENTS // array.shape[1])
        for start in range(0, len(array), step):
            result[start : start + step] = self._turned(array[start : start + step])
        return result

    def _turned(self, array: Array) -> Array:
        turned: Array = array.reshape(-1, len(self.signs)) * self.signs
        rest = len(self.signs)
        for factor in self.factors:
            rest //= len(factor)
            blocks = turned.reshape(-1, len(factor), rest)
            # A product with rows, where there are any; many small matrices otherwise.
            turned = blocks[..., 0] @ factor if rest == 1 else factor.T @ blocks
        return turned.reshape(array.shape)


def random_hadamard(width: int, seed: int) -> Rotation:
    """An orthogonal matrix that spreads every channel over all.

    A Hadamard matrix with random signs (QuaRot, arXiv 2404.00456, section 3), a Kronecker product of small
    ones, where a width `odd · 2^k` has one that Paley's constructions give. Otherwise the first factor is a
    random orthogonal matrix, `[odd, odd]`.
    """
    generator = np.random.default_rng(seed)
    power = width & -width
    odd = width // power
    orders = (odd << k for k in range(power.bit_length()) if odd << k <= _PALEY_ORDER)
    found = next((matrix for matrix in map(paley, orders) if matrix is not None), None) if odd > 1 else None
    if found is None:
        found, _ = np.linalg.qr(generator.standard_normal((odd, odd)))
    factors, power = [found], width // len(found)
    while power > 1:
        size = min(power, _HADAMARD_SIZE)
        factors.append(hadamard(size) / np.sqrt(size))
        power //= size
    return Rotation(generator.choice([-1.0, 1.0], width), tuple(factors))


def paley(order: int) -> Array | None:
    """A Hadamard matrix by one of Paley's constructions (J. Math. Phys. 12, 1933), orthogonal, f64.

    I: order q + 1, q a prime of the form 4k + 3. II: order 2(q + 1), q a prime of the form 4k + 1. None for
    other orders.
    """
    if _is_prime(order - 1) and order % 4 == 0:
        skew = _conference(order - 1, -1)
        return (skew + np.eye(order)) / np.sqrt(order)
    q = order // 2 - 1
    if order % 4 == 0 and q % 4 == 1 and _is_prime(q):
        zero, one = np.array([[1, -1], [-1, -1]]), np.array([[1, 1], [1, -1]])
        return (np.kron(_conference(q, 1), one) + np.kron(np.eye(q + 1), zero)) / np.sqrt(order)
    return None


def _conference(q: int, sign: int) -> Array:
    """The bordered matrix of quadratic residues of a prime, `[q + 1, q + 1]`, with zeros on the diagonal."""
    residues = {i * i % q for i in range(1, q)}
    character = np.array([0 if i == 0 else 1 if i in residues else -1 for i in range(q)])
    matrix = np.ones((q + 1, q + 1))
    matrix[0, 0] = 0
    matrix[1:, 0] = sign
    matrix[1:, 1:] = character[(np.arange(q)[:, None] - np.arange(q)) % q]
    return matrix


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
