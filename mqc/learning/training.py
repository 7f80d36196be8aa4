"""The training loop: AdamW on a cosine, resumable, and shared among processes."""

from __future__ import annotations

import atexit
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mqc.arrays import Array
from mqc.errors import ArtifactError
from mqc.files import check_regular, replacing
from mqc.learning.optimizer import optimizers
from mqc.learning.parameters import local

#: Share of the learning rate that is left at the end, as in the published recipe (1e-3 to 1e-4).
_LAST = 0.1
#: Steps over which the rate rises from 0.
_WARM_UP = 5
#: Steps between two checkpoints.
_SAVE_EVERY = 10

Rates = Sequence[tuple[float, list[torch.Tensor]]]


def own_device() -> torch.device:
    """This process's CUDA device, the one of its number under `torchrun`; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def under_torchrun() -> bool:
    """Whether `torchrun` started this process, beside others or not."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is: those that `torchrun` started, else one."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Join the group of processes that the environment describes (RANK and WORLD_SIZE), until this one
        ends."""
        if not under_torchrun():
            return cls()
        if not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size())

    def gather(self, number: int) -> list[int]:
        """A number of every process."""
        found = [number] * self.count
        if self.count > 1:
            dist.all_gather_object(found, number)
        return found

    def sum(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.count > 1:
            flat = torch.cat([t.reshape(-1) for t in tensors])
            dist.all_reduce(flat)
            for t, total in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
                t.copy_(total.view_as(t))


@dataclass(frozen=True)
class Schedule:
    """steps: of the optimizer. batch: windows a step, over all processes. seed: of the windows' order."""

    steps: int
    batch: int
    seed: int

    def rate(self, step: int) -> float:
        """Share of the learning rate at a step: linear warm-up, then a cosine down to a tenth."""
        cosine = _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return min(1.0, (step + 1) / _WARM_UP) * cosine

    def windows(self, step: int, count: int) -> list[int]:
        """Numbers of the windows of a step, of `count`; each epoch has an order of its own."""
        numbers = range(step * self.batch, (step + 1) * self.batch)
        return [int(_order(self.seed + n // count, count)[n % count]) for n in numbers]

    def all_windows(self, count: int) -> list[int]:
        """Numbers of the windows of all steps, in ascending order."""
        return sorted({window for step in range(self.steps) for window in self.windows(step, count)})


def _order(seed: int, count: int) -> Array:
    return np.random.default_rng(seed).permutation(count)


class Checkpoint:
    """The state of one optimization in a safetensors file, of each process in its own, replaced as a whole;
    nothing if `path` is None."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def load(self) -> tuple[int, dict[str, torch.Tensor]]:
        """Steps done, and tensors by name. `(0, {})` if there is no file. Raises `ArtifactError`."""
        if self.path is None or not os.path.exists(self.path):
            return 0, {}
        check_regular(self.path, ArtifactError)
        try:
            with safe_open(self.path, framework="pt") as file:
                step = (file.metadata() or {})["step"]
                return int(step), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ArtifactError(f"{self.path} is no checkpoint; delete it to begin anew: {error}") from error

    def save(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as partial:
                save_file(
                    {n: t.detach().cpu().contiguous() for n, t in tensors.items()},
                    partial,
                    {"step": str(step)},
                )


def minimize(
    rates: Rates,
    loss: Callable[[int], torch.Tensor],
    windows: int,
    schedule: Schedule,
    processes: Processes,
    checkpoint: Checkpoint,
) -> Iterator[tuple[int, float]]:
    """Minimize the mean of `loss(window)` over windows `0 … windows − 1` by AdamW without weight decay
    (`mqc.learning.optimizer`).

    Yields the steps done and the loss, for each step that the checkpoint does not have. With a checkpoint, an
    interrupted run ends where an uninterrupted one would, to the bit. Several processes share a step's
    windows and add up their gradients, but for tensors that they share out, whose gradients are sums already:
    the result is that of one process but for the order of summation.

    Args:
        rates: learning rate of each list of tensors, which must require gradients.
    """
    tensors = [t for _, group in rates for t in group]
    found = optimizers(rates, schedule.seed)
    groups = [(group, group["lr"]) for optimizer in found for group in optimizer.param_groups]
    start, saved = checkpoint.load()
    if len(done := set(processes.gather(start))) > 1:
        raise ArtifactError(
            f"the checkpoints of {processes.count} processes beside {checkpoint.path} are of steps "
            f"{sorted(done)}; delete them to begin anew"
        )
    if saved:
        _restore(found, tensors, saved, checkpoint)
    for step in range(start, schedule.steps):
        for group, rate in groups:
            group["lr"] = rate * schedule.rate(step)
        # Not None: what no window of this process reaches has a gradient too, for the sum.
        for t in tensors:
            t.grad = torch.zeros_like(t) if t.grad is None else t.grad.zero_()
        total = torch.zeros(1, device=local(tensors[0]).device)
        for window in schedule.windows(step, windows)[processes.rank :: processes.count]:
            value = loss(window) / schedule.batch
            value.backward()  # type: ignore[no-untyped-call]
            total += value.detach()
        processes.sum([total, *(t.grad for t in tensors if local(t) is t and t.grad is not None)])
        for optimizer in found:
            optimizer.step()
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == schedule.steps:
            checkpoint.save(step + 1, _state(found, tensors))
        yield step + 1, float(total)


def _state(found: list[torch.optim.Optimizer], tensors: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    states = _states(found)
    state = {}
    for i, t in enumerate(tensors):
        state[f"{i}/value"] = local(t)
        state |= {f"{i}/{name}": value for name, value in states[t].items()}
    return state


def _states(found: list[torch.optim.Optimizer]) -> dict[torch.Tensor, dict[str, Any]]:
    """What optimizers keep of each tensor, to read or to fill."""
    return {t: o.state[t] for o in found for group in o.param_groups for t in group["params"]}


def _restore(
    found: list[torch.optim.Optimizer],
    tensors: list[torch.Tensor],
    saved: dict[str, torch.Tensor],
    checkpoint: Checkpoint,
) -> None:
    states = _states(found)
    for i, t in enumerate(tensors):
        value = saved.get(f"{i}/value")
        if value is None or value.shape != local(t).shape:
            raise ArtifactError(f"{checkpoint.path} is of another model; delete it to begin anew")
        with torch.no_grad():
            local(t).copy_(value)
        for name in ("step", "exp_avg", "exp_avg_sq"):
            if f"{i}/{name}" in saved:
                kept = saved[f"{i}/{name}"]
                states[t][name] = kept.to(local(t).device)
