"""Rounding to a grid that is itself learned."""

from __future__ import annotations

from typing import Any

import torch


class FakeQuantize(torch.autograd.Function):
    """`(clamp(round(x / d) + z, low, high) − z) · d` with `d = exp(log_step)`, and z `zero` as an integer.

    The gradient passes straight through the rounding, so that it is 1 for values inside the range and 0 for
    those that are clipped; the step's is that of LSQ (arXiv 1902.08153, equation 3) for log d, and the zero
    point's that of LSQ+ (arXiv 2004.09576, equation 6).

    Args:
        x: `[tokens, channels]`.
        log_step: logarithm of the step, `[channels]` or `[1]`.
        zero: zero point, a number.
        low, high: least and largest stored integer.

    Saved are x, the step and the result.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, log_step: torch.Tensor, zero: torch.Tensor, low: int, high: int
    ) -> torch.Tensor:
        step = log_step.exp()
        origin = min(max(round(float(zero)), low), high)
        ctx.bounds = low - origin, high - origin
        y = (x / step).round_().clamp_(*ctx.bounds).mul_(step)
        ctx.save_for_backward(x, step, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        x, step, y = ctx.saved_tensors
        low, high = ctx.bounds
        # The gradient where x is within the range, which ends half a step beyond the last integers.
        passed = torch.ops.aten.hardtanh_backward(gradient, x / step, low - 0.5, high + 0.5)
        of_step = of_zero = None
        if ctx.needs_input_grad[1]:
            # d · dy/dd: y − x inside, y outside.
            of_step = (y * gradient).sub_(passed * x)
            of_step = of_step.sum().reshape(step.shape) if step.numel() == 1 else of_step.sum(0)
        if ctx.needs_input_grad[2]:
            of_zero = ((passed - gradient) * step).sum().reshape(1)
        return passed, of_step, of_zero, None, None


class RoundedSum(torch.autograd.Function):
    """`clamp(round(integers + offsets), low, high)`, f32; the gradient of the offsets is that of the result
    (arXiv 1308.3432).

    Args:
        integers: int8. offsets: bfloat16, of the same shape.
    """

    @staticmethod
    def forward(ctx: Any, integers: torch.Tensor, offsets: torch.Tensor, low: int, high: int) -> torch.Tensor:
        return offsets.float().add_(integers).round_().clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, gradients[0].bfloat16(), None, None
