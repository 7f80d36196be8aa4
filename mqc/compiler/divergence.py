"""How far predictions are from others, without all of their logits at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from mqc.analysis.evaluation import Evaluation
from mqc.arrays import row_blocks
from mqc.compiler.observation import Operands
from mqc.dialects.llm import LinearOp
from mqc.ir.op import MqcOp
from mqc.numerics.bfloat16 import bfloat16_products


def divergences(
    evaluation: Evaluation, op: MqcOp, exact: Operands, others: Sequence[Operands]
) -> list[float]:
    """The mean KL divergence of predictions from exact ones, in nats a token: of each of `others`.

    Logits are compared after the model's softcap. A linear's are computed by `bfloat16_products`, a slice of
    the vocabulary after the other, for all at once: its matrix is read once, and memory does not grow with
    the vocabulary.

    Args:
        op: gives the logits.
        exact, others: its operands `[tokens, channels]`, as many tokens of each.
    """
    tokens = len(exact[0])
    together = [torch.cat(parts) for parts in zip(exact, *others, strict=True)]
    shape = 1 + len(others), tokens
    largest = torch.full(shape, -torch.inf)
    total, difference = torch.zeros(shape), torch.zeros(len(others), tokens)
    with torch.no_grad():
        for logits in _slices(evaluation, op, together):
            part = evaluation.capped(logits).view(*shape, -1)
            larger = torch.maximum(largest, part.amax(-1))
            shrunk = (largest - larger).exp_()
            largest = larger
            first = (part[0] - largest[0, :, None]).exp_()
            for i in range(len(others)):
                gap = torch.linalg.vecdot(first, part[0] - part[i + 1])
                difference[i] = difference[i] * shrunk[0] + gap
            total *= shrunk
            total[0] += first.sum(-1)
            total[1:] += part[1:].sub_(largest[1:, :, None]).exp_().sum(-1)
        logs = largest + total.log()
        found = difference / total[0] - logs[0] + logs[1:]
    return [float(x) for x in found.double().mean(-1)]


def _slices(evaluation: Evaluation, op: MqcOp, operands: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Logits `[tokens, …]` of one part of the vocabulary after the other."""
    if not isinstance(op, LinearOp) or op.weight_scale is not None:
        yield op.evaluate(evaluation, *operands)
        return
    (x,), weight = operands, evaluation.torch(op.weight)
    bias = None if op.bias is None else evaluation.torch(op.bias)
    for rows in row_blocks(tuple(weight.shape)):
        with bfloat16_products():
            yield F.linear(x, weight[rows], None if bias is None else bias[rows])
