"""How parameters are learned: end to end, or layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from xdsl.ir import SSAValue

from mqc.calibration import Windows
from mqc.ir.op import channels
from mqc.learning.activations import Activations
from mqc.learning.segments import Segments
from mqc.learning.sharding import ShardedLayer
from mqc.learning.student import FloatModel, Student, Values
from mqc.learning.training import Checkpoint, Processes, Rates, Schedule, minimize

LOSSES = ("kl", "features", "hidden")

#: Called with what is being done, the share of it that is, and the loss of the last step.
Report = Callable[[str, float, float | None], None]


@dataclass(frozen=True)
class Task:
    """What is learned from what.

    rates: learning rate of each kind of parameter (`Parameters.kinds`); 0 leaves the kind as it is.
    sharded: the student's layers where processes share them out, else empty.
    windows: token ids `[count, length]`.
    bound: bytes of activations that may stay in memory.
    checkpoint: the checkpoint of a part by its name.
    """

    parts: Segments
    student: Student
    teacher: FloatModel
    sharded: list[ShardedLayer]
    windows: Windows
    rates: dict[str, float]
    schedule: Schedule
    processes: Processes
    bound: int
    report: Report
    checkpoint: Callable[[str], Checkpoint]

    def start(self, window: int) -> Values:
        """The arguments of @main for a window."""
        return self.teacher.arguments(self.windows[window])

    def layer(self, number: int, window: int, stream: torch.Tensor, recompute: bool = False) -> torch.Tensor:
        """What a layer of the student makes of what it reads.

        recompute: in the backward pass, rather than keep what is between.
        """
        values = {**self.start(window), self.parts.source(number): stream}
        if self.sharded:
            return self.sharded[number](values, recompute)
        run, ops = self.student.run_ops, self.parts.layers[number]
        return checkpoint(run, ops, values, use_reentrant=False) if recompute else run(ops, values)

    def cache(self, value: SSAValue) -> Activations:
        count, tokens = self.windows.shape
        return Activations(count, tokens, channels(value), self.bound)

    def chosen(self, names: set[str] | None = None) -> Rates:
        """What is learned, with its rates: of all ops, or of those named and the groups' scales."""
        found: list[tuple[float, list[torch.Tensor]]] = []
        for kind, named in self.student.parameters.kinds().items():
            tensors = [t for name, t in named.items() if names is None or name in names or not name]
            rate = self.rates.get(kind, 0.0)
            for t in tensors:
                t.requires_grad_(rate > 0)
            if rate > 0 and tensors:
                found.append((rate, tensors))
        return found


def end_to_end(task: Task, loss: str) -> None:
    """Learn all parameters together against the float model's output: MobileQuant (arXiv 2408.13933,
    section 3.3).

    Args:
        loss: `kl`, the divergence of the logits' distributions, in nats a token; `features`, the squared
            error of what the logits' matrix reads, relative to its mean square; `hidden`, the mean squared
            error of the last hidden state, before the final norm (the published one).

    Where the values of all layers exceed `task.bound`, each layer is evaluated once more in the backward
    pass, so that memory is that of one layer's values and of the streams between them.
    """
    parts, student, teacher = task.parts, task.student, task.teacher
    target = parts.hidden if loss == "hidden" else parts.features
    targets = task.cache(target)
    body = parts.ops[: -len(parts.head)]
    up_to = body if loss == "hidden" else (*body, *parts.head[:-1])

    # Results before and after rounding, and about as much inside the ops.
    held = 12 * task.windows.shape[1] * sum(channels(op.results[0]) for op in body)
    recompute = held > task.bound

    def objective(window: int) -> torch.Tensor:
        arguments = task.start(window)
        stream = student.run_ops(parts.stem, arguments)
        for number in range(len(parts.layers)):
            stream = task.layer(number, window, stream, recompute)
        if window not in targets:
            with torch.no_grad():
                targets[window] = teacher.run_ops(up_to, task.start(window))
        wanted = targets.get(window, student.device)
        if loss == "hidden":
            return F.mse_loss(stream, wanted)
        head = {**arguments, parts.hidden: stream}
        if loss == "features":
            features = student.run_ops(parts.head[:-1], head) if len(parts.head) > 1 else stream
            return F.mse_loss(features, wanted) / wanted.square().mean()
        logits = student.run_ops(parts.head, head)
        with torch.no_grad():
            expected = teacher.value(parts.head[-1], [wanted])
        return divergence(student.capped(logits), teacher.capped(expected))

    reached = None if loss == "kl" else {student.names[op] for op in up_to}
    _minimize(task, "end to end", task.chosen(reached), objective)


def layer_wise(task: Task) -> None:
    """Learn layer after layer, each against the float layer's output, on inputs that come through the layers
    learned before: OmniQuant (arXiv 2308.13137), with the ranges of activations among the parameters.

    The loss is the mean squared error relative to the output's mean square.
    """
    parts, student, teacher = task.parts, task.student, task.teacher
    inputs, wanted = task.cache(parts.source(0)), task.cache(parts.source(0))
    names = student.names
    windows = task.schedule.all_windows(len(task.windows))
    with torch.no_grad():
        for window in windows:
            inputs[window] = student.run_ops(parts.stem, task.start(window))
            wanted[window] = teacher.run_ops(parts.stem, task.start(window))
    for number, layer in enumerate(parts.layers):
        with torch.no_grad():
            for window in windows:
                values = {**task.start(window), parts.source(number): wanted.get(window, student.device)}
                wanted[window] = teacher.run_ops(layer, values)

        def objective(window: int, number: int = number) -> torch.Tensor:
            expected = wanted.get(window, student.device)
            got = task.layer(number, window, inputs.get(window, student.device))
            return F.mse_loss(got, expected) / expected.square().mean()

        title = f"layer {number + 1} of {len(parts.layers)}"
        _minimize(task, title, task.chosen({names[op] for op in layer}), objective)
        with torch.no_grad():
            for window in windows:
                inputs[window] = task.layer(number, window, inputs.get(window, student.device))


def _minimize(task: Task, title: str, rates: Rates, objective: Callable[[int], torch.Tensor]) -> None:
    if not rates:
        return
    state = task.checkpoint(title)
    steps = minimize(rates, objective, len(task.windows), task.schedule, task.processes, state)
    for done, loss in steps:
        task.report(title, done / task.schedule.steps, loss)


def divergence(logits: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """KL(expected ‖ logits) in nats, the mean over tokens. Both `[tokens, vocabulary]`."""
    return F.kl_div(
        F.log_softmax(logits, -1), F.log_softmax(expected, -1), reduction="batchmean", log_target=True
    )
