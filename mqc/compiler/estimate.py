"""What a compilation will take, from the size of the model and the pipeline."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mqc.analysis.histogram import Histogram
from mqc.calibration import window_length
from mqc.compiler.pass_manager import Pipeline
from mqc.costs import ModelSize, Work
from mqc.ir.spill import Spill, temporary_bytes
from mqc.numerics.bfloat16 import bfloat16_products

#: Bytes of a process that has imported what compiles.
_BASE_BYTES = 350 << 20
#: Time of writing what was computed from mapped weights over that of what is in memory. By three shapes
#: (docs/measurements.md, sizes).
_MAPPED = 2.0
#: Tokens of the operands that are measured; of the model's matrices so many bytes of each shape, more than
#: caches hold.
_TOKENS, _MATRIX_BYTES = 512, 1 << 26
#: Seconds for each kind of work.
_MEASURED = 0.5
#: Bytes of a program besides weights, for each entry of the vocabulary: the tokenizer.
_TOKEN_BYTES = 90


@dataclass(frozen=True)
class Machine:
    """How much of what `Work` counts a second holds."""

    products: float
    elements: float
    written: float
    calls: float

    def seconds(self, work: Work) -> float:
        """The time that work takes."""
        return (
            work.products / self.products + work.elements / self.elements
            + work.written / self.written + work.calls / self.calls
        )  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """What a compilation will take.

    seconds: of each step, in order.
    unknown: names of the passes that do not say what they do: their time and memory come on top.
    memory: bytes that the system cannot take back (RssAnon), at the peak.
    temporary: bytes of temporary files, at most.
    program: bytes of the program, tokenizer included.
    """

    seconds: dict[str, float]
    unknown: tuple[str, ...]
    memory: int
    temporary: int
    program: int


def measure_machine(size: ModelSize) -> Machine:
    """How fast this machine is now at what a model of some size needs: half a second for each kind of work.

    Products have the model's own shapes: what a machine does of large ones a second, it may not do of small
    ones. The elementwise step is that of a histogram, on which ranges are observed.
    """
    row, matrix = torch.zeros(16), torch.zeros(16, 16)
    values, histogram = torch.randn(_TOKENS, size.widest), Histogram()
    block = np.ones((1 << 10, 1 << 13), np.float32)
    with torch.no_grad(), bfloat16_products():
        return Machine(
            products=_product_rate(size),
            elements=_rate(lambda: histogram.add(values), values.numel()),
            written=_rate(lambda: Spill().write(block.shape, block.dtype, [block * 2]), block.size) / _MAPPED,
            calls=_rate(lambda: row.addmv_(matrix, row), 1),
        )


def _product_rate(size: ModelSize) -> float:
    """Multiply-accumulates a second, by the shapes that most of them are in."""
    counts = Counter(size.matrices)
    heaviest = sorted(counts, key=lambda shape: -counts[shape] * math.prod(shape))[:4]
    macs = seconds = 0.0
    for n, k in heaviest:
        x = torch.randn(_TOKENS, k)
        matrices = cycle([torch.ones(n, k) for _ in range(max(1, _MATRIX_BYTES // (4 * n * k)))])

        def product(x: torch.Tensor = x, matrices: Iterator[torch.Tensor] = matrices) -> None:
            F.linear(x, next(matrices))

        rate = _rate(product, x.numel() * n, _MEASURED / len(heaviest))
        macs += counts[n, k] * n * k
        seconds += counts[n, k] * n * k / rate
    return macs / seconds


def _rate(run: Callable[[], Any], count: int, least: float = _MEASURED) -> float:
    """How often a second `count` things are done, on the whole of at least some seconds."""
    run()
    begin, times = time.perf_counter(), 0
    while (taken := time.perf_counter() - begin) < least:
        run()
        times += 1
    return times * count / taken


def estimate(
    size: ModelSize, pipeline: Pipeline, machine: Machine, positions: int, starting: float
) -> Estimate:
    """Time, memory and disk of compiling a model of some size by a pipeline, for so many positions.

    starting: seconds until the model is read, in which modules are imported.
    """
    length = window_length(positions)
    # What is read of a GGUF file: its tensors, and its vocabulary, entry by entry.
    read = Work() if size.mapped else Work(elements=10 * size.parameters, calls=25 * size.vocabulary)
    steps: list[tuple[str, Work | None]] = [
        ("loading the model", read),
        ("tracing", Work(calls=size.layers * 2e5, elements=6 * size.parameters)),
        ("comparing with the model", Work(calls=5e5, elements=2.5 * size.parameters)),
        *((step.name, step.work(size, length)) for step in pipeline),
    ]
    memory = _BASE_BYTES + max(
        4 * size.logits,  # the table as f32
        _alive(size, max((getattr(p, "windows", 0) for p in pipeline), default=0) * length),
    )
    weights = [getattr(p, "bits", 8) / 8 for p in pipeline if p.name == "quantize-weights"]
    program = size.weights * (weights or [1])[0] + size.logits * (1 if size.tied else 2)
    steps.append(("saving", Work(written=program)))
    seconds = {"starting": starting}
    for name, work in steps:
        if work is not None:
            seconds[name] = seconds.get(name, 0.0) + machine.seconds(work)
    return Estimate(
        seconds,
        tuple(dict.fromkeys(name for name, work in steps if work is None)),
        round(memory),
        temporary_bytes(size.parameters),
        round(program) + _TOKEN_BYTES * size.vocabulary,
    )


def _alive(size: ModelSize, tokens: int) -> int:
    """Bytes of what all windows have between two ops, and of the products of a matrix's inputs."""
    return 4 * round(tokens * (2 * size.hidden + 2.5 * size.widest) + 3 * size.widest**2)
