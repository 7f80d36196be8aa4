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
from mqc.compiler.observation import observe
from mqc.dialects.llm import LinearOp
from mqc.errors import CalibrationError
from mqc.ir.op import MqcOp
from mqc.pass_base import Pass

#: One 8-bit step of a value, relative to its largest channel: calibration says nothing of channels below it.
FLOOR = 1 / 256


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
        magnitudes = _channel_magnitudes(ctx, module, self.windows)
        scales = _closed_form(ctx, groups, magnitudes, self.alpha)
        return apply_scales(ctx.weights, module, groups, scales)


def _channel_magnitudes(ctx: CompilerContext, module: ModuleOp, count: int) -> dict[SSAValue, Array]:
    """Largest magnitude of every channel of every value."""
    assert ctx.calibration is not None
    magnitudes: dict[SSAValue, Any] = {}

    def note(op: MqcOp, result: Any) -> None:
        peak = torch.maximum(result.amax(0), -result.amin(0)).double().numpy()
        value = op.results[0]
        seen = magnitudes.get(value)
        magnitudes[value] = peak if seen is None else np.maximum(seen, peak)

    windows = ctx.calibration.part(count, ctx.calibration.windows.shape[1])
    observe(ctx, module, windows, BalanceScales.name, after=note)
    return magnitudes


def _closed_form(
    ctx: CompilerContext,
    groups: EquivalenceGroups,
    magnitudes: dict[SSAValue, Array],
    alpha: float,
) -> Array:
    logs = {1: np.zeros(groups.count), -1: np.zeros(groups.count)}
    members = {1: np.zeros(groups.count), -1: np.zeros(groups.count)}
    reciprocal = np.zeros(groups.count, np.bool_)
    weights = np.zeros(groups.count)
    for value, (group, sign) in groups.channels.items():
        if not (group >= 0).any():
            continue
        peak = magnitudes[value]
        relative = peak / max(float(peak.max()), 1e-30)
        reciprocal[group[(group >= 0) & (sign < 0)]] = True
        for s in (1, -1):
            seen = (group >= 0) & (sign == s) & (relative > FLOOR)
            np.add.at(logs[s], group[seen], np.log(relative[seen]))
            np.add.at(members[s], group[seen], 1)
        for use in value.uses:
            if isinstance(use.operation, LinearOp):
                column = np.abs(ctx.weights[use.operation.weight]).max(0)
                free = group >= 0
                np.maximum.at(weights, group[free], column[free])
    plus, minus = (
        np.where(members[s] > 0, logs[s] / np.maximum(members[s], 1), np.log(FLOOR)) for s in (1, -1)
    )
    smooth = alpha * plus - (1 - alpha) * np.log(np.maximum(weights, 1e-8))
    meeting = (plus - minus) / 2
    return np.exp(np.clip(np.where(reciprocal, meeting, smooth), -10, 10)).astype(np.float32)
