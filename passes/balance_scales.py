"""`balance-scales`: even out channel magnitudes by equivalent transformations, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.analysis.context import CompilerContext
from mqc.analysis.equivalence_groups import EquivalenceGroups, apply_scales, discover
from mqc.analysis.evaluation import Evaluation
from mqc.arrays import Array, row_blocks
from mqc.calibration import Windows
from mqc.compiler.observation import Operands, in_windows, observe
from mqc.costs import ModelSize, Work, walk
from mqc.dialects.llm import LinearOp
from mqc.dialects.quant import affine_range
from mqc.errors import CalibrationError
from mqc.ir.module import returned_value
from mqc.ir.op import MqcOp, channels
from mqc.pass_base import Pass

#: One 8-bit step of a value, relative to its largest channel: calibration says nothing of channels below it.
FLOOR = 1 / 256
#: What scales may cost before they are withdrawn, in dB of SQNR: below that it is the windows' noise.
TOLERANCE = 0.5
#: Windows that the check takes, and tokens of each; logits are computed for every eighth of them.
CHECKED, EVERY = (2, 256), 8

#: Lowest and highest element of every channel `[C]` of every value.
Ranges = dict[SSAValue, tuple[Array, Array]]


@dataclass(frozen=True)
class BalanceScales(Pass):
    """Divide channels by scales that the surrounding weights absorb; the float function is kept.

    The scales are found, not listed: every op states how scales move through it, and
    `mqc.analysis.equivalence_groups` solves for those that are free: grids of the model's own are not. Each
    group's scale is

    1. `A^alpha / W^(1−alpha)` for values that linears read (SmoothQuant, arXiv 2211.10438, eq. 4):
       A is the magnitude of the channel, W the largest weight that multiplies it;
    2. `sqrt(A₊ / A₋)` where values with reciprocal scales meet (queries and keys).

    A is the geometric mean over the group's channels, each relative to its value's largest one. Channels that
    calibration hardly sees, below one 8-bit step of their value, do not count beside others, such as a dead
    query head beside the heads that share its keys; alone they count as one step.

    Scales must prove themselves: each op that reads scaled values is evaluated on other windows with 8-bit
    operands and weights, with the scales and without. Scales that some value has together stand and fall
    together: they are withdrawn if they raise the noise of these ops' results, relative to the results and
    added up, by more than 0.5 dB.

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

    def work(self, size: ModelSize, length: int) -> Work:
        windows, tokens = CHECKED
        judged = Work(products=3 * windows * tokens * size.weights, elements=12 * size.weights)
        return walk(size, self.windows * length + windows * tokens) + judged + Work(written=size.weights)

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        if ctx.calibration is None:
            raise CalibrationError("balance-scales needs calibration text")
        groups = discover(module)
        if not groups.count:
            return False
        length = ctx.calibration.windows.shape[1]
        ranges = _channel_ranges(ctx, module, ctx.calibration.part(self.windows, length))
        scales = _closed_form(ctx, groups, ranges, self.alpha)
        others = ctx.calibration.others(self.windows, *CHECKED)
        worse = _noisier(ctx, module, groups, ranges, scales, others)
        return apply_scales(ctx.weights, module, groups, np.where(worse, np.float32(1), scales))


def _channel_ranges(ctx: CompilerContext, module: ModuleOp, windows: Windows) -> Ranges:
    found: Ranges = {}

    def note(op: MqcOp, result: torch.Tensor) -> None:
        low, high = result.amin(0).double().numpy(), result.amax(0).double().numpy()
        seen = found.get(op.results[0], (low, high))
        found[op.results[0]] = np.minimum(seen[0], low), np.maximum(seen[1], high)

    observe(
        ctx, module, windows, after=note, report=lambda share: ctx.progress(BalanceScales.name, 0.6 * share)
    )
    return found


def _closed_form(
    ctx: CompilerContext,
    groups: EquivalenceGroups,
    ranges: Ranges,
    alpha: float,
) -> Array:
    logs = {1: np.zeros(groups.count), -1: np.zeros(groups.count)}
    members = {1: np.zeros(groups.count), -1: np.zeros(groups.count)}
    reciprocal = np.zeros(groups.count, np.bool_)
    weights = np.zeros(groups.count)
    for value, (group, sign) in groups.channels.items():
        if not (group >= 0).any():
            continue
        peak = np.maximum(-ranges[value][0], ranges[value][1])
        relative = peak / max(float(peak.max()), 1e-30)
        reciprocal[group[(group >= 0) & (sign < 0)]] = True
        for s in (1, -1):
            seen = (group >= 0) & (sign == s) & (relative > FLOOR)
            np.add.at(logs[s], group[seen], np.log(relative[seen]))
            np.add.at(members[s], group[seen], 1)
        for use in value.uses:
            if isinstance(use.operation, LinearOp):
                weight = ctx.weights[use.operation.weight]
                column = np.maximum(weight.max(0), -weight.min(0))
                free = group >= 0
                np.maximum.at(weights, group[free], column[free])
    plus, minus = (
        np.where(members[s] > 0, logs[s] / np.maximum(members[s], 1), np.log(FLOOR)) for s in (1, -1)
    )
    smooth = alpha * plus - (1 - alpha) * np.log(np.maximum(weights, 1e-8))
    meeting = (plus - minus) / 2
    return np.exp(np.clip(np.where(reciprocal, meeting, smooth), -10, 10)).astype(np.float32)


def _noisier(
    ctx: CompilerContext,
    module: ModuleOp,
    groups: EquivalenceGroups,
    ranges: Ranges,
    scales: Array,
    windows: Windows,
) -> Array:
    """Whether a scale is one of those that raise the noise of the ops that read their values, by group."""
    site = groups.sites()
    noise = np.zeros((2, groups.count))  # by site, without and with scales
    evaluation = Evaluation(module, ctx.weights)
    length, logits = windows.shape[1], returned_value(module)

    def judge(op: MqcOp, operands: list[Operands]) -> None:
        found = {value: groups.scale_of(value, scales) for value in op.operands}
        divisors = {value: scale for value, scale in found.items() if scale is not None}
        if not divisors:
            return
        unscaled = {value: np.ones(channels(value), np.float32) for value in divisors}
        power, errors = 0.0, np.zeros(2)
        if op.results[0] is logits:
            operands = [tuple(x[::EVERY] for x in given) for given in operands]
        for given in operands:
            exact = in_windows(op, evaluation, given, length)
            power += float(exact.norm()) ** 2
            for i, chosen in enumerate((unscaled, divisors)):
                rounded = tuple(
                    _rounded(x, ranges[value], chosen[value]) if value in chosen else x
                    for value, x in zip(op.operands, given, strict=True)
                )
                if isinstance(op, LinearOp):
                    errors[i] += _noise_of_product(ctx, op, rounded, chosen[op.x], exact)
                else:
                    result = in_windows(op, evaluation, rounded, length)
                    errors[i] += float((result - exact).norm()) ** 2
        places = {int(site[groups.channels[value][0].max()]) for value in divisors}
        noise[:, sorted(places)] += (errors / max(power, 1e-30))[:, None]

    observe(
        ctx, module, windows, before=judge,
        report=lambda share: ctx.progress(BalanceScales.name, 0.6 + 0.4 * share),
    )  # fmt: skip
    worse: Array = noise[1] > noise[0] * 10 ** (TOLERANCE / 10)
    return worse[site]


def _rounded(x: torch.Tensor, limits: tuple[Array, Array], scale: Array) -> torch.Tensor:
    """A value `[tokens, C]` as its 8-bit type has it, with each channel divided by its scale meanwhile."""
    low, high = float((limits[0] / scale).min()), float((limits[1] / scale).max())
    factor = torch.from_numpy(scale)
    return affine_range(low, high, 8).fake_quantize(x / factor) * factor


def _noise_of_product(
    ctx: CompilerContext, op: LinearOp, operands: Operands, scale: Array, exact: torch.Tensor
) -> float:
    """The squared error of a product with 8-bit weights, whose columns are multiplied by scales meanwhile."""
    error, weight = 0.0, ctx.weights[op.weight]
    bias = None if op.bias is None else torch.from_numpy(ctx.weights[op.bias])
    chosen = None if op.gates is None or op.get("expert_axis") == 1 else op.spread(operands[1] != 0)
    for rows in row_blocks(weight.shape):
        result = F.linear(
            operands[0], _rounded_weight(weight[rows], scale), None if bias is None else bias[rows]
        )
        if chosen is not None:
            result = result * chosen[:, rows]
        error += float((result - exact[:, rows]).norm()) ** 2
    return error


def _rounded_weight(weight: Array, scale: Array) -> torch.Tensor:
    """A matrix `[outputs, C]` as 8 bits hold it, with each column multiplied by its scale meanwhile."""
    factor = torch.from_numpy(scale)
    scaled = torch.from_numpy(weight) * factor
    largest = torch.maximum(scaled.amax(1, keepdim=True), -scaled.amin(1, keepdim=True))
    step = largest.clamp_min(1e-30) / 127
    return scaled.div_(step).round_().mul_(step).div_(factor)
