"""`learn-ranges`: learn activation ranges, and with them transformations and the clipping of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import ClassVar

import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.rewriter import Rewriter

from mqc.analysis.context import CompilerContext
from mqc.analysis.histogram import Histogram
from mqc.analysis.ir_text import print_module
from mqc.calibration import Windows
from mqc.compiler.observation import prefix_rows
from mqc.compiler.precision_rules import check_groups, grouped
from mqc.dialects.llm import LinearOp, LlmOp
from mqc.dialects.quant import affine_range, uniform
from mqc.errors import CalibrationError, RecipeError
from mqc.ir.module import mqc_ops
from mqc.ir.op import MqcOp, channels, tensor
from mqc.learning.allocator import keep_freed_memory, return_large_blocks
from mqc.learning.methods import LOSSES, Task, end_to_end, layer_wise
from mqc.learning.parameters import WeightGrid
from mqc.learning.segments import segments
from mqc.learning.sharding import shard
from mqc.learning.student import FloatModel, Student, check_reference
from mqc.learning.training import Checkpoint, Processes, Schedule, own_device
from mqc.pass_base import Pass

METHODS = ("mse-grid", "layer-wise", "end-to-end")


@dataclass(frozen=True)
class LearnRanges(Pass):
    """Learn the ranges of quantized values; with them, before weights are quantized, the scale of every
    equivalence group and the clipping of weights, and after, the weights' scales and integers; and biases.

    All of it is folded: the integer program costs nothing more, but for biases that were not there.

    Methods:

    1. `mse-grid`: each value's range alone, the one of a grid with the least squared error;
    2. `layer-wise`: layer after layer against the float layer's output (OmniQuant, arXiv 2308.13137), but not
       the embedding and what comes after the last layer;
    3. `end-to-end`: everything together against the float model's output (MobileQuant, arXiv 2408.13933).

    Steps of integers pass their gradient straight through the rounding (LSQ, arXiv 1902.08153). AdamW without
    weight decay, the rate on a cosine down to a tenth. The same seed gives the same bits on one machine; an
    interrupted run goes on where it was if the context has a folder for checkpoints; under `torchrun`,
    processes share the windows of a step, so that `batch` must be their number or more. The process keeps
    the memory that it frees.

    Options:
        method: one of the three.
        steps: of the optimizer; of each layer with `layer-wise`.
        samples, length: calibration windows, and tokens of each, to learn from; at most those there are.
        batch: windows a step.
        lr_scales, lr_ranges, lr_zeros, lr_biases: learning rates of the logarithms of groups' scales and of
            ranges, of zero points, and of biases. What has 0 stays as it is, which groups must once weights
            are integers. Learned biases are part of the float function for passes that follow.
        lr_clipping: of the logits of the clipping of weights that are still float.
        lr_weights, lr_rounding: of the logarithms of integer weights' scales, and of the integers themselves
            (but for the logits' matrix; of a matrix that ops share, each has its own then), which start as
            near to the float weights as rounds to what they are.
        loss: `kl`, `features` or `hidden` (`mqc.learning.methods.end_to_end`).
        weight_bits, group, keep8: how float weights will be quantized: rounded so, to the nearest, while
            learning. 0 bits leaves them float.
        seed: of the windows' order.
        memory: MiB of activations; beyond, layers are evaluated again for the gradient and cached
            activations live in a memory-mapped file.

    A step takes about three evaluations of the float model on its windows, five with `lr_rounding`. Memory
    for `lr_rounding` is 8 bytes a weight (offsets from the integers, gradient and two moments in bfloat16),
    shared out among processes under torchrun; for `lr_clipping`, five times the float weights of the layers
    learned together.
    """

    name = "learn-ranges"
    requires: ClassVar[str] = "quant"
    ensures: ClassVar[str] = "quant"
    needs_calibration: ClassVar[bool] = True
    method: str = "end-to-end"
    steps: int = 100
    samples: int = 256
    length: int = 256
    batch: int = 1
    lr_scales: float = 0.0
    lr_ranges: float = 3e-3
    lr_zeros: float = 0.0
    lr_clipping: float = 0.0
    lr_weights: float = 0.0
    lr_rounding: float = 0.0
    lr_biases: float = 0.0
    loss: str = "kl"
    weight_bits: int = 0
    group: int = 0
    keep8: tuple[str, ...] = ()
    seed: int = 0
    memory: int = 2048

    def __post_init__(self) -> None:
        self.expect_one_of("method", METHODS)
        self.expect_one_of("loss", LOSSES)
        self.expect_one_of("weight_bits", (0, 4, 8))
        for name in ("steps", "samples", "length", "batch"):
            self.expect(getattr(self, name) >= 1, f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("group", "memory"):
            self.expect(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for field in fields(self):
            if field.name.startswith("lr_"):
                rate = getattr(self, field.name)
                self.expect(rate >= 0, f"{field.name} must not be negative, got {rate}")

    def check(self, module: ModuleOp, before: Sequence[Pass]) -> None:
        check_groups(grouped(module, self.weight_bits, self.keep8, before), self.group)
        for op in mqc_ops(module):
            if (isinstance(op, LlmOp) and op.given is not None) or (isinstance(op, LinearOp) and op.fixed):
                raise RecipeError(
                    f"learn-ranges would change integers and ranges that the model came with, such as those "
                    f"of %{op.value_name}: take a recipe without learn and tune, or the float model"
                )

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        if ctx.calibration is None:
            raise CalibrationError("learn-ranges needs calibration text")
        windows = ctx.calibration.part(self.samples, self.length)
        check_reference(module, self.name)
        device = own_device()
        processes = Processes.join(device)
        sharing = processes.count > 1 and self.lr_rounding > 0
        if sharing:
            return_large_blocks()
        else:
            keep_freed_memory()
        teacher = FloatModel(ctx, module, device)
        if self.method == "mse-grid":
            _mse_grid(ctx, module, teacher, windows)
            return True
        grid = WeightGrid(self.weight_bits, self.group, self.keep8) if self.weight_bits else None
        student = Student(ctx, module, device, grid, rounding=self.lr_rounding > 0)
        rates = {
            "scales": self.lr_scales,
            "steps": self.lr_ranges,
            "zeros": self.lr_zeros,
            "clipping": self.lr_clipping,
            "weight_steps": self.lr_weights,
            "offsets": self.lr_rounding,
            "biases": self.lr_biases,
        }
        start = hashlib.sha256(
            f"{version('mqc')} {torch.__version__} {self} {print_module(module)}".encode() + windows.tobytes()
        ).hexdigest()

        def checkpoint(part: str) -> Checkpoint:
            rank = f"-{processes.rank}-of-{processes.count}" if processes.count > 1 else ""
            name = f"{self.name}-{start[:16]}-{part.replace(' ', '-')}{rank}.safetensors"
            return Checkpoint(None if ctx.checkpoints is None else ctx.checkpoints / name)

        def report(part: str, share: float, loss: float | None) -> None:
            measured = "" if loss is None else f": loss {loss:.4g}"
            ctx.progress(f"{self.name}, {part}{measured}", share)

        kinds = student.parameters.kinds()
        for kind, option, needs in (
            ("scales", "lr_scales", "float weights, with channels between them"),
            ("clipping", "lr_clipping", "float weights, and weight_bits"),
            ("weight_steps", "lr_weights", "weights that quantize-weights has rounded"),
            ("offsets", "lr_rounding", "weights that quantize-weights has rounded"),
        ):
            if rates[kind] and not kinds[kind]:
                raise RecipeError(f"learn-ranges: {option} has nothing to learn here: it needs {needs}")
        if self.batch % processes.count:
            raise RecipeError(
                f"learn-ranges: {processes.count} processes share the windows of a step evenly, and there "
                f"are batch={self.batch}; give a multiple of {processes.count}"
            )
        parts = segments(module)
        task = Task(
            parts,
            student,
            teacher,
            shard(student, parts.layers, processes.count) if sharing else [],
            windows,
            rates,
            Schedule(self.steps, self.batch, self.seed),
            processes,
            self.memory << 20,
            report,
            checkpoint,
        )
        if self.method == "layer-wise":
            layer_wise(task)
        else:
            end_to_end(task, self.loss)
        student.fold()
        return True


def _mse_grid(ctx: CompilerContext, module: ModuleOp, model: FloatModel, windows: Windows) -> None:
    histograms: dict[MqcOp, Histogram] = {op: Histogram() for op in mqc_ops(module)}
    with torch.no_grad():
        for number, window in enumerate(windows):
            for op, result in model.walk(histograms, model.arguments(window)):
                histograms[op].add(result.cpu())
            ctx.progress(LearnRanges.name, (number + 1) / len(windows))
    for op, rows in prefix_rows(ctx, module):
        histograms[op].add(rows)
    for op, histogram in histograms.items():
        kind = uniform(op.results[0])
        if kind is not None:
            learned = affine_range(*histogram.least_squares(kind.bits), kind.bits)
            Rewriter.replace_value_with_new_type(op.results[0], tensor(learned, channels(op.results[0])))
