"""What is learned: the grids of values and weights, and the transformations between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from mqc.arrays import Array
from mqc.compiler.precision_rules import group_size, matrix_bits
from mqc.dialects.llm import LinearOp
from mqc.numerics.weight_rounding import bounds

#: Start of a weight's clipping: the grid covers the sigmoid of this times the largest weight, as in
#: OmniQuant's code (arXiv 2308.13137).
UNCLIPPED = 4.0

Named = dict[str, torch.Tensor]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor that processes may share out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that processes may share out; all of them must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@dataclass
class Parameters:
    """Tensors that are learned, by kind and by the name of the op.

    scales: logarithm of the scale of every equivalence group, `[groups]`, under the one name "".
    steps, zeros: logarithm of the scale, and zero point, of a quantized value, `[1]` each.
    clipping: logit of the share of the largest weight that the grid covers, `[outputs, groups]`.
    weight_steps: logarithm of an integer matrix's scales, `[outputs]`.
    offsets: what is added to an integer matrix before it is rounded again, in steps, bfloat16
        `[outputs, inputs]`; of this process its rows, where processes share them (`mqc.learning.sharding`).
    biases: what is added to a matrix product, `[outputs]`.
    """

    scales: Named = field(default_factory=dict)
    steps: Named = field(default_factory=dict)
    zeros: Named = field(default_factory=dict)
    clipping: Named = field(default_factory=dict)
    weight_steps: Named = field(default_factory=dict)
    offsets: Named = field(default_factory=dict)
    biases: Named = field(default_factory=dict)

    def kinds(self) -> dict[str, Named]:
        return {kind: getattr(self, kind) for kind in self.__dataclass_fields__}


@dataclass(frozen=True)
class WeightGrid:
    """How float matrices will be rounded, to the nearest, while what surrounds them is learned.

    bits, group, keep8: as `quantize-weights` will be given them.
    """

    bits: int
    group: int = 0
    keep8: tuple[str, ...] = ()

    def _shape(self, op: LinearOp) -> tuple[int, int]:
        """Bits, and number of groups of input channels."""
        bits = matrix_bits(op, self.bits, self.keep8)
        return bits, op.weight.shape[1] // group_size(op, self.group) if bits == 4 else 1

    def initial(self, op: LinearOp) -> Array:
        """Logits of the shares that the grid covers at the start, `[outputs, groups]`."""
        return np.full((op.weight.shape[0], self._shape(op)[1]), UNCLIPPED, np.float32)

    def steps(self, op: LinearOp, weight: torch.Tensor, clipping: torch.Tensor) -> torch.Tensor:
        """Steps `[outputs, groups]` for the matrix `weight` `[outputs, inputs]` of an op."""
        bits, groups = self._shape(op)
        peak = weight.view(len(weight), groups, -1).abs().amax(-1).clamp(min=1e-12)
        return peak * torch.sigmoid(clipping) / bounds(bits)[1]

    def round(self, op: LinearOp, weight: torch.Tensor, clipping: torch.Tensor) -> torch.Tensor:
        """`weight` `[outputs, inputs]` rounded to the grid; the gradient passes straight through."""
        bits, groups = self._shape(op)
        step = self.steps(op, weight, clipping)[..., None]
        stored = weight.view(len(weight), groups, -1) / step
        stored = stored + (torch.round(stored) - stored).detach()
        return (stored.clamp(*bounds(bits)) * step).view_as(weight)
