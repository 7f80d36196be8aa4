"""What the output loses by rounding one value or one matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.calibration import Windows
from mqc.ir.module import mqc_ops
from mqc.ir.op import MqcOp
from mqc.learning.student import FloatModel
from mqc.learning.training import own_device

#: The error that rounding makes in an op's result `[tokens, channels]`, from the operands and that result.
Noise = Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]


def sensitivities(
    ctx: CompilerContext, module: ModuleOp, noises: Mapping[str, tuple[MqcOp, Noise]], windows: Windows
) -> dict[str, float]:
    """KL divergence of the logits, in nats a token, that each noise alone would cause, to second order.

    A small error e of a value changes the divergence by `½·eᵀ·H·e`, and H is the Fisher information:
    `E[g·gᵀ]`, g the gradient of the log-likelihood of a token drawn from the model's own distribution. Taken
    as independent from element to element, the error gives `½·Σ g²·e²`, for all noises from one backward
    pass a window (as HAWQ-V2, arXiv 1911.03852, and Optimal Brain Surgeon do with their traces).

    Time: three evaluations of the float model on the windows. Memory: the values of one window, and the
    gradients of those that are judged.
    """
    model = FloatModel(ctx, module, own_device())
    by_op: dict[MqcOp, list[tuple[str, Noise]]] = {}
    for name, (op, noise) in noises.items():
        by_op.setdefault(op, []).append((name, noise))
    total = dict.fromkeys(noises, 0.0)
    generator = torch.Generator().manual_seed(0)
    for number, window in enumerate(windows):
        values = model.arguments(window)
        errors: dict[str, torch.Tensor] = {}
        probes: dict[MqcOp, torch.Tensor] = {}
        model.reset()
        result = torch.empty(0)
        for op in mqc_ops(module):
            operands = [values[operand] for operand in op.operands]
            result = model.value(op, operands)
            if op in by_op:
                with torch.no_grad():
                    for name, noise in by_op[op]:
                        errors[name] = noise(operands, result).square_()
                probes[op] = torch.zeros_like(result, requires_grad=True)
                result = result + probes[op]
            values[op.results[0]] = result
        result = model.capped(result)
        # On the CPU: devices draw other tokens from the same seed.
        drawn = torch.multinomial(result.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
        loss = F.cross_entropy(result, drawn.to(model.device), reduction="sum")
        gradients = torch.autograd.grad(loss, list(probes.values()))
        for op, gradient in zip(probes, gradients, strict=True):
            squared = gradient.square()
            for name, _ in by_op[op]:
                total[name] += 0.5 * float((errors[name] * squared).sum()) / windows.size
        ctx.progress("sensitivity", (number + 1) / len(windows))
    return total
