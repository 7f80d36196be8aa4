"""`balance-scales`: even out channel magnitudes by equivalent transformations, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.analysis.context import CompilerContext
from mqc.analysis.equivalence_groups import EquivalenceGroups, apply_scales, discover
from mqc.arrays import Array
from mqc.calibration import Windows
from mqc.compiler.observation import observe
from mqc.dialects.llm import LinearOp
from mqc.errors import CalibrationError
from mqc.ir.op import MqcOp
from mqc.pass_base import Pass

#: One 8-bit step of a value, relative to its largest channel: calibration says nothing of channels below it.
FLOOR = 1 / 256

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

    A is the geometric mean over the group's channels, each relative to its value's largest one. Channels that
    calibration hardly sees, below one 8-bit step of their value, do not count beside others, such as a dead
    query head beside the heads that share its keys; alone they count as one step.

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
    present = {sign: np.zeros(groups.count, np.bool_) for sign in (1, -1)}
    weights = np.zeros(groups.count)
    for value, (group, sign) in groups.channels.items():
        low, high = ranges[value]
        peak = np.maximum(-low, high)
        relative = np.maximum(peak / max(float(peak.max()), 1e-30), FLOOR)
        for s in (1, -1):
            chosen = (group >= 0) & (sign == s)
            seen = chosen & (relative > FLOOR)
            np.add.at(logs[s], group[seen], np.log(relative[seen]))
            np.add.at(members[s], group[seen], 1)
            present[s][group[chosen]] = True
        for use in value.uses:
            if isinstance(use.operation, LinearOp):
                column = np.abs(ctx.weights[use.operation.weight]).max(0)
                free = group >= 0
                np.maximum.at(weights, group[free], column[free])
    unseen = {s: np.where(present[s], np.log(FLOOR), 0.0) for s in (1, -1)}
    plus, minus = (np.where(members[s] > 0, logs[s] / np.maximum(members[s], 1), unseen[s]) for s in (1, -1))
    smooth = alpha * plus - (1 - alpha) * np.log(np.maximum(weights, 1e-8))
    meeting = (plus - minus) / 2
    return np.exp(np.clip(np.where(present[-1], meeting, smooth), -10, 10)).astype(np.float32)
