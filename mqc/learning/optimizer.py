"""AdamW without weight decay, for f32 and for bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from mqc.learning.parameters import local

_BETAS = 0.9, 0.95
_EPSILON = 1e-8
#: Elements that are updated at once: what they are as f32 stays in the caches.
_BLOCK = 1 << 18
#: 16-bit numbers of one state of Philox.
_DRAWN = 16


def optimizers(rates: Sequence[tuple[float, list[torch.Tensor]]], seed: int) -> list[torch.optim.Optimizer]:
    """One for the f32 tensors and one for those of bfloat16, each with a group for every rate."""
    found: list[torch.optim.Optimizer] = []
    for dtype in (torch.float32, torch.bfloat16):
        groups = [{"params": [t for t in ts if t.dtype == dtype], "lr": rate} for rate, ts in rates]
        if groups := [group for group in groups if group["params"]]:
            found.append(
                torch.optim.AdamW(groups, betas=_BETAS, eps=_EPSILON, weight_decay=0.0, fused=True)
                if dtype == torch.float32
                else Bfloat16Adam(groups, seed)
            )
    return found


class Bfloat16Adam(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) without weight decay, of bfloat16 tensors with their moments in bfloat16: 8
    bytes for each parameter with its gradient, where f32 takes 16.

    Computed in f32. Parameters are rounded up or down at random, so that the mean is right (arXiv
    2010.06192): rounded to the nearest, most steps would be lost. The random numbers are those of the seed,
    the step and the place in the whole tensor, so that neither sharding nor an interruption changes a bit.

    A parameter may be sharded by its rows (FSDP2); its moments are of this process's part.
    """

    def __init__(self, groups: list[dict[str, Any]], seed: int) -> None:
        super().__init__(groups, {})
        self._seed = seed
        for parameter in (p for group in self.param_groups for p in group["params"]):
            moments = {name: torch.zeros_like(local(parameter)) for name in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": torch.zeros(()), **moments}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step for every parameter, each of which must have a gradient."""
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                self._update(parameter, group["lr"], number)
                number += 1

    def _update(self, parameter: torch.Tensor, rate: float, number: int) -> None:
        assert parameter.grad is not None
        values, gradient = local(parameter), local(parameter.grad)
        state = self.state[parameter]
        state["step"] += 1
        step = int(state["step"])
        first_moment, second_moment = (1 - beta**step for beta in _BETAS)
        start = _first_element(parameter)
        parts = (t.view(-1).split(_BLOCK) for t in (values, gradient, state["exp_avg"], state["exp_avg_sq"]))
        for value, g, mean, square in zip(*parts, strict=True):
            slope = g.float()
            m = mean.float().lerp_(slope, 1 - _BETAS[0])
            v = square.float().mul_(_BETAS[1]).addcmul_(slope, slope, value=1 - _BETAS[1])
            mean.copy_(m)
            square.copy_(v)
            below = v.div_(second_moment).sqrt_().add_(_EPSILON)
            exact = value.float().addcdiv_(m, below, value=-rate / first_moment)
            noise = _noise((self._seed, step, number), start, exact.numel())
            value.copy_(_rounded_at_random(exact, torch.from_numpy(noise).to(exact.device)))
            start += exact.numel()


def _first_element(parameter: torch.Tensor) -> int:
    """Where this process's part of a tensor begins in the whole. FSDP2 cuts rows as `torch.chunk` does."""
    if not isinstance(parameter, DTensor):
        return 0
    mesh, rows = parameter.device_mesh, parameter.shape[0]
    first = min(mesh.get_local_rank() * -(-rows // mesh.size()), rows)
    return first * (parameter.numel() // rows)


def _noise(key: tuple[int, int, int], start: int, count: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Numbers `start` to `start + count` of a sequence of random 16-bit ones."""
    seed, step, number = key
    words = np.array(
        [seed & 2**64 - 1, (step << 32 | number) & 2**64 - 1], np.uint64
    )  # a list may become f64
    generator = np.random.Philox(key=words, counter=start // _DRAWN)
    skipped = start % _DRAWN
    drawn = generator.random_raw(-(-(skipped + count) // 4))
    return drawn.view(np.uint16)[skipped : skipped + count]


def _rounded_at_random(exact: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """f32 as one of the two bfloat16 numbers beside it, still f32; noise: uint16, all equally likely."""
    bits = exact.view(torch.int32) + noise.to(torch.int32)
    return bits.bitwise_and_(-0x10000).view(torch.float32)
