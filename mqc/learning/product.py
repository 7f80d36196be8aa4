"""The matrix product that learning spends its time on."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`x · weightᵀ`, f32: x `[tokens, inputs]`, weight `[outputs, inputs]`. Differentiable in both.

    On a CPU by oneDNN, results and gradients alike: torch's own choice is MKL, which keeps to AVX2 on AMD.
    """
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return F.linear(x.to_mkldnn(), weight).to_dense()
    return F.linear(x, weight)
