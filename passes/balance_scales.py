"""`balance-scales`: even out channel magnitudes by equivalent transformations, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.analysis.context import CompilerContext
from mqc.analysis.equivalence_groups import EquivalenceGroups, apply_scales, discover
from mqc.analysis.evaluation import Evaluation
from mqc.arrays import Array
from mqc.calibration import Windows
from mqc.compiler.observation import lockstep, observe
from mqc.dialects.llm import LinearOp
from mqc.dialects.quant import affine_range
from mqc.errors import CalibrationError
from mqc.ir.module import returned_value
from mqc.ir.op import MqcOp
from mqc.pass_base import Pass

#: A channel below one 8-bit step of its value's largest one counts as that: calibration says no more of it.
FLOOR = 1 / 256
#: What scales may cost before they are withdrawn, in dB of SQNR: below that it is the windows' noise.
TOLERANCE = 0.5
#: Tokens of each window that the check takes; logits are computed for every eighth of them.
CHECKED, EVERY = 256, 8

#: Lowest and highest element of every channel `[C]` of every value.
Ranges = dict[SSAValue, tuple[Array, Array]]


@dataclass(frozen=True)
class BalanceScales(Pass):
    """Divide channels by scales that the surrounding weights absorb; the float function is kept.

    The scales are found, not listed: every op states how scales move through it, and
    `mqc.analysis.equivalence_groups` solves for those that are free. Each group's scale is

    1. `A^alpha / W^(1−alpha)` for values that linears read (SmoothQuant, arXiv 2211.10438, eq. 4):
       A is the magnitude of the channel, W the largest weight that multiplies it;
    2. `sqrt(A₊ / A₋)` where values with reciprocal scales meet (queries and keys).

    A is the geometric mean over the group's values, each relative to its value's largest channel. Of the
    channels that a value has in the group, such as the query heads of a key head, the largest counts. A
    channel that calibration hardly sees counts as one 8-bit step of its value.

    Scales must prove themselves: ops are evaluated one by one on other windows with 8-bit operands, with
    the scales and without. Scales that share a value stand and fall together. They are withdrawn where they
    raise the noise of the ops that read their values by more than 0.5 dB. (The noise is relative to the
    power of an op's result, and added over these ops.)

    Options:
        alpha: how much of the magnitude moves into the weights, 0 to 1.
        windows: number of calibration windows to observe.
    """

    name = "balance-scales"
    needs_calibration: ClassVar[bool] = True
    alpha: float = 0.5
    windows: int = 8

    def __post_init__(self) -> None:
        self.expect(0 <= self.alpha <= 1, f"alpha must be in [0, 1], got {self.alpha}")
        self.expect(self.windows >= 1, f"windows must be 1 or more, got {self.windows}")

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        if ctx.calibration is None:
            raise CalibrationError("balance-scales needs calibration text")
        groups = discover(module)
        length = ctx.calibration.windows.shape[1]
        ranges = _channel_ranges(ctx, module, ctx.calibration.part(self.windows, length))
        scales = _closed_form(ctx, groups, ranges, self.alpha)
        others = ctx.calibration.others(self.windows, 2, CHECKED)
        scales = _proven(ctx, module, groups, ranges, scales, others)
        return apply_scales(ctx.weights, module, groups, scales)


def _channel_ranges(ctx: CompilerContext, module: ModuleOp, windows: Windows) -> Ranges:
    found: dict[SSAValue, tuple[Any, Any]] = {}

    def note(op: MqcOp, result: Any) -> None:
        low, high = (x.double().numpy() for x in torch.aminmax(result, dim=0))
        seen = found.get(op.results[0])
        found[op.results[0]] = (
            (low, high) if seen is None else (np.minimum(seen[0], low), np.maximum(seen[1], high))
        )

    observe(ctx, module, windows, note, BalanceScales.name)
    return found


def _closed_form(ctx: CompilerContext, groups: EquivalenceGroups, ranges: Ranges, alpha: float) -> Array:
    logs = {sign: np.zeros(groups.count) for sign in (1, -1)}
    members = {sign: np.zeros(groups.count) for sign in (1, -1)}
    weights = np.zeros(groups.count)
    for value, (group, sign) in groups.channels.items():
        low, high = ranges[value]
        peak = np.maximum(-low, high)
        relative = np.maximum(peak / max(float(peak.max()), 1e-30), FLOOR)
        for s in (1, -1):
            chosen = (group >= 0) & (sign == s)
            present, place = np.unique(group[chosen], return_inverse=True)
            largest = np.zeros(len(present))
            np.maximum.at(largest, place, relative[chosen])
            logs[s][present] += np.log(largest)
            members[s][present] += 1
        for use in value.uses:
            if isinstance(use.operation, LinearOp):
                column = np.abs(ctx.weights[use.operation.weight]).max(0)
                free = group >= 0
                np.maximum.at(weights, group[free], column[free])
    plus, minus = (logs[s] / np.maximum(members[s], 1) for s in (1, -1))
    smooth = alpha * plus - (1 - alpha) * np.log(np.maximum(weights, 1e-8))
    meeting = (plus - minus) / 2
    return np.exp(np.clip(np.where(members[-1] > 0, meeting, smooth), -10, 10)).astype(np.float32)


def _proven(
    ctx: CompilerContext,
    module: ModuleOp,
    groups: EquivalenceGroups,
    ranges: Ranges,
    scales: Array,
    windows: Windows,
) -> Array:
    """The scales, 1 where they do not prove themselves: see `BalanceScales`."""
    site, unscaled = _sites(groups), np.ones_like(scales)
    noise = np.zeros((2, groups.count))  # by site: relative to the results' power, without and with scales
    for op, operands in lockstep(ctx, module, windows):
        touched = [value for value in op.operands if groups.scale_of(value, scales) is not None]
        if not touched:
            continue
        rows = slice(None, None, EVERY if op.results[0] is returned_value(module) else 1)
        power, errors = 0.0, np.zeros(2)
        for given in operands:
            exact = op.evaluate(Evaluation(module, ctx.weights), *(x[rows] for x in given))
            power += float(exact.norm()) ** 2
            for i, chosen in enumerate((unscaled, scales)):
                rounded = (
                    _rounded(x[rows], ranges[value], groups.scale_of(value, chosen))
                    if value in touched
                    else x[rows]
                    for value, x in zip(op.operands, given, strict=True)
                )
                result = op.evaluate(Evaluation(module, ctx.weights), *rounded)
                errors[i] += float((result - exact).norm()) ** 2
        places = {int(site[groups.channels[value][0].max()]) for value in touched}
        noise[:, sorted(places)] += (errors / max(power, 1e-30))[:, None]
    worse = noise[1] > noise[0] * 10 ** (TOLERANCE / 10)
    return np.where(worse[site], np.float32(1), scales)


def _rounded(x: torch.Tensor, limits: tuple[Array, Array], scale: Array | None) -> torch.Tensor:
    """A value `[tokens, C]` as its 8-bit type has it, with each channel divided by its scale meanwhile."""
    assert scale is not None
    low, high = (float(end) for end in ((limits[0] / scale).min(), (limits[1] / scale).max()))
    factor = torch.from_numpy(scale)
    return affine_range(low, high, 8).fake_quantize(x / factor) * factor


def _sites(groups: EquivalenceGroups) -> Array:
    """A number for each group, the same for all groups that some value has together."""
    edges = []
    for group, _ in groups.channels.values():
        present = np.unique(group[group >= 0])
        edges.append(np.stack([present[:-1], present[1:]]))
    rows, columns = np.concatenate([np.zeros((2, 0), np.int64), *edges], axis=1)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(groups.count, groups.count))
    label: Array = connected_components(graph, directed=False)[1]
    return label
