"""Running the float program over calibration windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import Evaluation
from mqc.calibration import Windows
from mqc.dialects.llm_core import LlmOp
from mqc.ir.module import main_function, mqc_ops, returned_value
from mqc.ir.op import MqcOp, channels
from mqc.numerics.bfloat16 import bfloat16_products

#: Rows that are computed together, as many windows as that is; more are no faster.
ROWS = 512
#: Logits that are computed together.
_LOGITS = 1 << 25


def prefix_rows(ctx: CompilerContext, module: ModuleOp) -> Iterator[tuple[MqcOp, torch.Tensor]]:
    """The rows `[prefix tokens, channels]` that the prefix leaves in ops' states (keys, values, what a
    convolution read), each with the op whose later results stand behind them and so share their scale."""
    for op in mqc_ops(module):
        assert isinstance(op, LlmOp)
        for name, operand in op.PREFIX.items():
            ref = op.ref(name)
            if ref is not None and operand is not None:
                yield getattr(op, operand).owner, torch.from_numpy(ctx.weights[ref])


Operands = tuple[torch.Tensor, ...]


def observe(
    ctx: CompilerContext,
    module: ModuleOp,
    windows: Windows,
    *,
    before: Callable[[MqcOp, list[Operands]], None] = lambda op, operands: None,
    after: Callable[[MqcOp, torch.Tensor], torch.Tensor | None] = lambda op, result: None,
    logits_every: int = 0,
    together: int | None = None,
    report: Callable[[float], None] = lambda share: None,
) -> None:
    """Evaluate a float module over all windows, op by op, so that each weight is read once.

    Each window follows the module's prefix. Rows of several windows, one below the other, are computed
    together, by `bfloat16_products`. Time is that of a float forward pass over all tokens; memory that of the
    values that are alive between two ops, of all windows.

    Args:
        windows: token ids `[windows, tokens]`.
        before: called with every op and its operands in each group of windows, before it is evaluated; it may
            change the op.
        after: called with every op and its result `[windows · tokens, channels]` of one group after another;
            with the logits of some tokens after those of others. What it returns takes the result's place.
        logits_every: the logits are computed for every so many tokens; 0: for none.
        together: windows of a group; as many as 512 tokens are if None.
        report: called with the share that is done.
    """
    evaluation = Evaluation(module, ctx.weights)
    length = windows.shape[1]
    together = together or max(ROWS // length, 1)
    positions = evaluation.position + torch.arange(length)
    block = main_function(module).body.block
    values: list[dict[SSAValue, torch.Tensor]] = [
        dict(zip(block.args, (group.reshape(-1), positions.repeat(len(group))), strict=True))
        for group in torch.split(torch.from_numpy(windows), together)
    ]
    ops, returned = list(mqc_ops(module)), returned_value(module)
    with torch.no_grad():
        for number, op in enumerate(ops, 1):
            operands = [tuple(v[operand] for operand in op.operands) for v in values]
            before(op, operands)
            last = op.results[0] is returned
            if last and not logits_every:
                return
            if last:
                some = [tuple(x[::logits_every] for x in given) for given in operands]
                for part in _few_tokens(some, channels(returned)):
                    with bfloat16_products():
                        result = op.evaluate(evaluation, *part)
                    after(op, result)
                return
            for v, given in zip(values, operands, strict=True):
                with bfloat16_products():
                    result = in_windows(op, evaluation, given, length)
                instead = after(op, result)
                result = result if instead is None else instead
                for operand in evaluation.unused_after(op):
                    v.pop(operand, None)
                v[op.results[0]] = result
            report(number / len(ops))


def _few_tokens(operands: list[Operands], vocabulary: int) -> Iterator[Operands]:
    tokens = max(1, _LOGITS // vocabulary)
    for given in operands:
        yield from zip(*(torch.split(x, tokens) for x in given), strict=True)


def in_windows(op: MqcOp, evaluation: Evaluation, operands: Operands, length: int) -> torch.Tensor:
    """The op's result in windows of some length, one below the other."""
    if not op.states():
        result: torch.Tensor = op.evaluate(evaluation, *operands)
        return result
    parts = []
    for window in zip(*(torch.split(x, length) for x in operands), strict=True):
        evaluation.reset()
        parts.append(op.evaluate(evaluation, *window))
    return torch.cat(parts)
