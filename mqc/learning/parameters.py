"""What is learned: the grids of values and weights, and the transformations between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import torch

from mqc.dialects.llm import LinearOp
from mqc.ir import gives_logits
from mqc.weight_store import Array

#: Start of a weight's clipping: the grid covers the sigmoid of this times the largest weight, as in
#: OmniQuant's code (arXiv 2308.13137).
UNCLIPPED = 4.0

Named = dict[str, torch.Tensor]


@dataclass
class Parameters:
    """Tensors that are learned, by kind and by the name of the op.

    scales: logarithm of the scale of every equivalence group, `[groups]`, under the one name "".
    steps, zeros: logarithm of the scale, and zero point, of a quantized value, `[1]` each.
    clipping: logit of the share of the largest weight that the grid covers, `[outputs, groups]`.
    weight_steps: logarithm of an integer matrix's scales, `[outputs]`.
    biases: what is added to a matrix product, `[outputs]`.
    """

    scales: Named = field(default_factory=dict)
    steps: Named = field(default_factory=dict)
    zeros: Named = field(default_factory=dict)
    clipping: Named = field(default_factory=dict)
    weight_steps: Named = field(default_factory=dict)
    biases: Named = field(default_factory=dict)

    def kinds(self) -> dict[str, Named]:
        return {kind: getattr(self, kind) for kind in self.__dataclass_fields__}


@dataclass(frozen=True)
class WeightGrid:
    """How float matrices will be rounded, to the nearest, while what surrounds them is learned.

    bits: 8 or 4; matrices that give the logits, and those whose result's name matches a glob of `keep8`,
        have 8.
    group: input channels that share a step, 0 for all.
    """

    bits: int
    group: int = 0
    keep8: tuple[str, ...] = ()

    def _shape(self, op: LinearOp) -> tuple[int, int]:
        """Bits, and number of groups of input channels."""
        if gives_logits(op) or any(fnmatchcase(op.value_name, glob) for glob in self.keep8):
            return 8, 1
        inputs = op.weight.shape[1]
        return self.bits, inputs // self.group if self.group else 1

    def initial(self, op: LinearOp) -> Array:
        """Logits of the shares that the grid covers at the start, `[outputs, groups]`."""
        return np.full((op.weight.shape[0], self._shape(op)[1]), UNCLIPPED, np.float32)

    def steps(
        self,
        op: LinearOp,
        weight: torch.Tensor,
        clipping: torch.Tensor,
        log_in: torch.Tensor | None,
        log_out: torch.Tensor | None,
    ) -> torch.Tensor:
        """Steps of the transformed matrix, `[outputs, groups]`."""
        return self._grid(op, _transformed(weight, log_in, log_out), clipping)[1][..., 0]

    def round(
        self,
        op: LinearOp,
        weight: torch.Tensor,
        clipping: torch.Tensor,
        log_in: torch.Tensor | None,
        log_out: torch.Tensor | None,
    ) -> torch.Tensor:
        """`weight` `[outputs, inputs]` as it is after it is transformed, rounded and transformed back."""
        bits, _ = self._shape(op)
        blocks, step = self._grid(op, _transformed(weight, log_in, log_out), clipping)
        stored = blocks / step
        stored = stored + (torch.round(stored) - stored).detach()
        stored = stored.clamp(-(1 << (bits - 1)) + (bits == 8), (1 << (bits - 1)) - 1)
        rounded = (stored * step).view_as(weight)
        return _transformed(
            rounded, None if log_in is None else -log_in, None if log_out is None else -log_out
        )

    def _grid(
        self, op: LinearOp, weight: torch.Tensor, clipping: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        bits, groups = self._shape(op)
        blocks = weight.view(len(weight), groups, -1)
        peak = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-12)
        return blocks, peak * torch.sigmoid(clipping)[..., None] / ((1 << (bits - 1)) - 1)


def _transformed(
    weight: torch.Tensor, log_in: torch.Tensor | None, log_out: torch.Tensor | None
) -> torch.Tensor:
    if log_in is not None:
        weight = weight * log_in.exp()
    if log_out is not None:
        weight = weight * (-log_out).exp()[:, None]
    return weight
