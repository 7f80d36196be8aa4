"""`observe-ranges`: note on every value the range it takes on calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from xdsl.dialects.builtin import DenseArrayBase, ModuleOp, f64

from mqc.analysis.context import CompilerContext
from mqc.analysis.histogram import Histogram
from mqc.compiler.observation import observe, prefix_rows
from mqc.costs import ModelSize, Work, walk
from mqc.errors import CalibrationError
from mqc.ir.module import gives_logits, mqc_ops
from mqc.ir.op import MqcOp
from mqc.pass_base import Pass

METHODS = ("minmax", "percentile", "mse")


@dataclass(frozen=True)
class ObserveRanges(Pass):
    """Attach to each op `range = [low, high]`, the extremes of its result, and `clip = [low, high]`,
    the range that 8-bit quantization should cover. Logits are not quantized: their `clip` are the extremes.

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
        return walk(size, tokens, logits=True) + Work(elements=tokens * (4 * size.outputs + size.vocabulary))

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        if ctx.calibration is None:
            raise CalibrationError("observe-ranges needs calibration text")
        histograms: dict[MqcOp, Histogram] = {op: Histogram() for op in mqc_ops(module)}
        windows = ctx.calibration.part(self.windows, ctx.calibration.windows.shape[1])

        def note(op: MqcOp, result: Any) -> None:
            if gives_logits(op):
                histograms[op].reach(result)
            else:
                histograms[op].add(result)

        report = partial(ctx.progress, self.name)
        observe(ctx, module, windows, after=note, logits=True, report=report)
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
        return True
