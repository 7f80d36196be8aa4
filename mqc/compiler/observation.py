"""Running the float program over calibration windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import Evaluation, Observer
from mqc.calibration import Windows
from mqc.dialects.llm import AttentionOp
from mqc.ir.module import main_function, mqc_ops, returned_value
from mqc.ir.op import MqcOp


def prefix_rows(ctx: CompilerContext, module: ModuleOp) -> Iterator[tuple[MqcOp, torch.Tensor]]:
    """The prefix's keys and values `[prefix tokens, channels]`, each with the op whose later results share
    their cache and so their scale."""
    for op in mqc_ops(module):
        if isinstance(op, AttentionOp) and op.prefix_k is not None and op.prefix_v is not None:
            for value, ref in ((op.k, op.prefix_k), (op.v, op.prefix_v)):
                assert isinstance(value.owner, MqcOp)
                yield value.owner, torch.from_numpy(ctx.weights[ref])


def lockstep(
    ctx: CompilerContext, module: ModuleOp, windows: Windows
) -> Iterator[tuple[MqcOp, list[tuple[torch.Tensor, ...]]]]:
    """Evaluate a float module over all windows at once, op by op: each op with its operands in every
    window, before it is evaluated, so that it may be changed first.

    Each window follows the module's prefix. The last op is not evaluated: nothing reads the logits.
    Memory: the values that are alive between two ops, of all windows.
    """
    evaluations = [Evaluation(module, ctx.weights) for _ in windows]
    block = main_function(module).body.block
    values: list[dict[SSAValue, torch.Tensor]] = [
        dict(zip(block.args, (torch.from_numpy(window), e.position + torch.arange(len(window))), strict=True))
        for e, window in zip(evaluations, windows, strict=True)
    ]
    last_use = {operand: op for op in block.ops for operand in op.operands}
    returned = returned_value(module)
    with torch.no_grad():
        for op in mqc_ops(module):
            operands = [tuple(v[operand] for operand in op.operands) for v in values]
            yield op, operands
            if op.results[0] is returned:
                return
            for e, v, given in zip(evaluations, values, operands, strict=True):
                v[op.results[0]] = op.evaluate(e, *given)
                for operand in set(op.operands):
                    if last_use[operand] is op:
                        del v[operand]


def observe(
    ctx: CompilerContext,
    module: ModuleOp,
    windows: Windows,
    observer: Observer,
    title: str,
    before_window: Callable[[], None] = lambda: None,
) -> None:
    """Evaluate a float module over windows, calling `observer` with every op and its result.

    Each window follows the module's prefix. Time is that of a float forward pass over all tokens;
    memory that of one window.
    """
    evaluation = Evaluation(module, ctx.weights)
    with torch.no_grad():
        for i, window in enumerate(windows):
            evaluation.reset()
            before_window()
            start = evaluation.position
            positions = torch.arange(start, start + len(window))
            evaluation.run(torch.from_numpy(window), positions, observer)
            ctx.progress(title, (i + 1) / len(windows))
