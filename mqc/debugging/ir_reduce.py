"""Delta debugging: the smallest module for which something still fails."""

from __future__ import annotations

from collections.abc import Callable

from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.verification import verify_module
from mqc.errors import IRError
from mqc.ir.module import main_function, mqc_ops
from mqc.ir.op import MqcOp

Fails = Callable[[ModuleOp], bool]


def reduce_module(
    module: ModuleOp, fails: Fails, progress: Callable[[int], None] = lambda ops: None
) -> ModuleOp:
    """A module made from `module` by leaving ops out, for which `fails` still holds.

    Three steps are repeated until none helps (Zeller and Hildebrandt, "Simplifying and isolating
    failure-inducing input", 2002, over ops): return an earlier value; let the users of a run of ops
    take one of their operands of the same type; drop ops that nothing uses. Candidates that do not
    verify are not tried. `fails` runs about n log n times for n ops at most; `progress` gets the
    number of ops left. Raises `IRError` if `fails(module)` does not hold.
    """
    if not fails(module):
        raise IRError("nothing to reduce: the command does not fail on the whole module")
    best = module
    shrunk = True
    while shrunk:
        before = len(list(mqc_ops(best)))
        best = _shorten(best, fails)
        progress(len(list(mqc_ops(best))))
        best = _bypass(best, fails, progress)
        shrunk = len(list(mqc_ops(best))) < before
    return best


def _shorten(module: ModuleOp, fails: Fails) -> ModuleOp:
    """Return earlier values, in steps that halve."""
    step = len(list(mqc_ops(module))) // 2
    while step:
        last = len(list(mqc_ops(module))) - 1 - step
        candidate = _returning(module, last) if last >= 0 else None
        if candidate is not None and fails(candidate):
            module = candidate
        else:
            step //= 2
    return module


def _bypass(module: ModuleOp, fails: Fails, progress: Callable[[int], None]) -> ModuleOp:
    """Leave out runs of ops, the last first, in runs whose length halves."""
    size = len(list(mqc_ops(module))) // 2
    while size:
        end = len(list(mqc_ops(module)))
        while end > 0:
            candidate = _without(module, max(end - size, 0), end)
            if candidate is not None and fails(candidate):
                module = candidate
                progress(len(list(mqc_ops(module))))
            end = min(end - size, len(list(mqc_ops(module))))
        size //= 2
    return module


def _returning(module: ModuleOp, index: int) -> ModuleOp | None:
    copy = module.clone()
    ops = list(mqc_ops(copy))
    return _checked(copy, ops[index])


def _without(module: ModuleOp, begin: int, end: int) -> ModuleOp | None:
    copy = module.clone()
    changed = False
    for op in list(mqc_ops(copy))[begin:end]:
        same = [operand for operand in op.operands if operand.type == op.results[0].type]
        if same and isinstance(same[0].owner, MqcOp):
            op.results[0].replace_all_uses_with(same[0])
            changed = True
    returned = main_function(copy).body.block.last_op
    assert returned is not None
    owner = returned.operands[0].owner
    return _checked(copy, owner) if changed and isinstance(owner, MqcOp) else None


def _checked(module: ModuleOp, last: MqcOp) -> ModuleOp | None:
    """The module ending in `last`, without ops that nothing uses; None if it does not verify."""
    function = main_function(module)
    block = function.body.block
    returned = block.last_op
    assert returned is not None
    block.erase_op(returned)
    block.add_op(func.ReturnOp(last.results[0]))
    inputs = [arg.type for arg in block.args]
    function.function_type = type(function.function_type).from_lists(inputs, [last.results[0].type])
    for op in reversed(list(mqc_ops(module))):
        if not any(True for _ in op.results[0].uses):
            block.erase_op(op)
    try:
        verify_module(module)
    except IRError:
        return None
    return module
