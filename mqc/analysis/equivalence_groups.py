"""Discovery of equivalent transformations: every per-channel scale that a module leaves free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.arrays import Array
from mqc.dialects.equivariance import Constraint, Fix, Tie
from mqc.dialects.llm import LlmOp, shared_tables
from mqc.ir.module import mqc_ops, returned_value
from mqc.ir.op import channels
from mqc.ir.weight_store import WeightStore

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EquivalenceGroups:
    """Free scales of a module.

    count: number of groups, each one free positive number.
    channels: for each value its channels' group `[C]` (−1 where no scale is possible) and the
        sign `[C]` with which the group's scale enters: the channel may be divided by scale^sign.
    """

    count: int
    channels: dict[SSAValue, tuple[Index, Index]]

    def scale_of(self, value: SSAValue, scales: Array) -> Array | None:
        """Divisor of each channel of `value`, `[C]` f32; None if all are 1."""
        if value not in self.channels or not self.count:
            return None
        group, sign = self.channels[value]
        factor = np.where(group >= 0, scales[group] ** sign, 1.0)
        return None if (factor == 1).all() else np.asarray(factor, np.float32)

    def sites(self) -> Index:
        """A number for each group, the same for all groups that some value has together."""
        first: list[Index] = [np.zeros(0, np.int64)]
        second = list(first)
        for group, _ in self.channels.values():
            present = np.unique(group[group >= 0])
            first.append(present[:-1])
            second.append(present[1:])
        return _components(np.concatenate(first), np.concatenate(second), self.count)


def _components(rows: Index, columns: Index, count: int) -> Index:
    """The connected component of each of `count` nodes, by edges between `rows` and `columns`."""
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    label: Index = connected_components(graph, directed=False)[1]
    return label


def discover(module: ModuleOp) -> EquivalenceGroups:
    """Solve the constraints that the ops state (`mqc.dialects.equivariance`).

    Every channel of every value is a node twice, for its scale and its reciprocal; ties join
    nodes, and "must be 1" is one more node. A channel is free if its component holds neither that
    node nor its own reciprocal. Time and memory are linear in the number of channels.
    """
    values: list[SSAValue] = [op.results[0] for op in mqc_ops(module)]
    sizes = np.array([channels(v) for v in values])
    offsets = dict(zip(values, np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist(), strict=True))
    total = int(sizes.sum())
    one = 2 * total
    edges: list[tuple[Index, Index]] = []
    constraints: list[Constraint] = []
    for op in mqc_ops(module):
        assert isinstance(op, LlmOp)
        constraints += op.equivariance()
        if op.given is not None:
            constraints.append(Fix(op.results[0]))
    constraints.append(Fix(returned_value(module)))
    for embedding, linear in shared_tables(module):  # scales would make two tables of one
        constraints += [Fix(embedding.result), Fix(linear.x)]
    for constraint in constraints:
        match constraint:
            case Fix(value):
                if value in offsets:
                    nodes = offsets[value] + np.arange(channels(value))
                    edges.append((nodes, np.full_like(nodes, one)))
            case Tie(a, a_index, b, b_index, sign):
                first, second = offsets[a] + a_index, offsets[b] + b_index
                edges.append((first, second if sign > 0 else second + total))
                edges.append((first + total, second + total if sign > 0 else second))
    rows, columns = (np.concatenate([e[i] for e in edges]) for i in (0, 1))
    label = _components(rows, columns, one + 1)
    plus, minus = label[:total], label[total:one]
    free = (plus != label[one]) & (minus != label[one]) & (plus != minus)
    root = np.where(free, np.minimum(plus, minus), -1)
    names, numbered = np.unique(root, return_inverse=True)
    group: Index = np.where(free, numbered - int(len(names) > 0 and names[0] == -1), -1)
    signs: Index = np.where(plus == root, 1, -1)
    # The first member of a group has sign +1, whichever label was smaller.
    count = int(group.max()) + 1 if free.any() else 0
    first_sign = np.ones(count, np.int64)
    chosen = np.flatnonzero(free)[::-1]
    first_sign[group[chosen]] = signs[chosen]
    if count:
        signs = np.where(free, signs * first_sign[group], 1)
    return EquivalenceGroups(
        count,
        {
            value: (group[start : start + size], signs[start : start + size])
            for (value, start), size in zip(offsets.items(), sizes.tolist(), strict=True)
        },
    )


def apply_scales(weights: WeightStore, module: ModuleOp, groups: EquivalenceGroups, scales: Array) -> bool:
    """Divide every value by its scales and let the ops absorb them. `scales`: one per group.

    Returns whether any op had something to absorb.
    """
    changed = False
    for op in mqc_ops(module):
        assert isinstance(op, LlmOp)
        inputs = [groups.scale_of(value, scales) for value in op.operands]
        output = groups.scale_of(op.results[0], scales)
        if output is not None or any(scale is not None for scale in inputs):
            op.absorb(weights, inputs, output)
            changed = True
    return changed
