"""`observe-ranges`: note on every value the range it takes on calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from xdsl.dialects.builtin import DenseArrayBase, ModuleOp, f64

from mqc.analysis.context import CompilerContext
from mqc.analysis.histogram import Histogram
from mqc.compiler.observation import observe, prefix_rows
from mqc.costs import ModelSize, Work, walk
from mqc.dialects.llm import RouteOp
from mqc.errors import CalibrationError
from mqc.ir.module import gives_logits, mqc_ops, set_experts_not_chosen
from mqc.ir.op import MqcOp
from mqc.pass_base import Pass

METHODS = ("minmax", "percentile", "mse")
#: Of how many tokens one has its logits looked at: their extremes set a unit, and 32 bits hold larger ones.
LOGITS_EVERY = 8


@dataclass(frozen=True)
class ObserveRanges(Pass):
    """Attach to each op `range = [low, high]`, the extremes of its result, and `clip = [low, high]`,
    the range that 8-bit quantization should cover. Logits are not quantized: their `clip` are the extremes,
    of every eighth token. The module's `mqc.not_chosen` lists experts that no token chose: nothing is known
    of their results, which have the ranges of others'.

    Options:
        method: how `clip` is chosen: `minmax` takes the extremes, `percentile` leaves out `outside_ppm`
            parts per million of the values, `mse` minimizes the squared error of an 8-bit grid.
        outside_ppm: values left outside by `percentile`, in parts per million.
        windows: number of calibration windows to observe.
    """

    name = "observe-ranges"
    needs_calibration: ClassVar[bool] = True
    method: str = "percentile"
    outside_ppm: float = 1.0
    windows: int = 16

    def __post_init__(self) -> None:
        self.expect_one_of("method", METHODS)
        self.expect(0 <= self.outside_ppm < 1e6, f"outside_ppm must be in [0, 1e6), got {self.outside_ppm}")
        self.expect(self.windows >= 1, f"windows must be 1 or more, got {self.windows}")

    def work(self, size: ModelSize, length: int) -> Work:
        tokens = self.windows * length
        some = tokens / LOGITS_EVERY
        logits = Work(products=some * size.logits, elements=some * size.vocabulary)
        return walk(size, tokens) + logits + Work(elements=tokens * 4 * size.outputs)

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        if ctx.calibration is None:
            raise CalibrationError("observe-ranges needs calibration text")
        histograms: dict[MqcOp, Histogram] = {op: Histogram() for op in mqc_ops(module)}
        windows = ctx.calibration.part(self.windows, ctx.calibration.windows.shape[1])
        chosen: dict[str, Any] = {}

        def note(op: MqcOp, result: Any) -> None:
            if isinstance(op, RouteOp):
                chosen[op.value_name] = (result != 0).any(0) | chosen.get(op.value_name, False)
            if gives_logits(op):
                histograms[op].reach(result)
            else:
                histograms[op].add(result)

        report = partial(ctx.progress, self.name)
        observe(ctx, module, windows, after=note, logits_every=LOGITS_EVERY, report=report)
        for op, rows in prefix_rows(ctx, module):
            histograms[op].add(rows)
        for op, histogram in histograms.items():
            clip = histogram.low, histogram.high
            method = "minmax" if gives_logits(op) else self.method
            if method == "percentile":
                clip = histogram.percentile(self.outside_ppm * 1e-6)
            elif method == "mse":
                clip = histogram.least_squares(8)
            full = [histogram.low, histogram.high]
            op.attributes["range"] = DenseArrayBase.from_list(f64, full)
            op.attributes["clip"] = DenseArrayBase.from_list(f64, list(clip))
        never = {name: torch.nonzero(~some)[:, 0].tolist() for name, some in chosen.items() if not some.all()}
        if never:
            set_experts_not_chosen(
                module, [f"%{name}: {', '.join(map(str, n))}" for name, n in never.items()]
            )
        return True
