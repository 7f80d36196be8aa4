"""What makes a module valid beyond its ops: checked after every pass and on all text that is read."""

from __future__ import annotations

import math
from typing import NoReturn

from xdsl.dialects import func
from xdsl.dialects.builtin import IntegerAttr, ModuleOp
from xdsl.ir import Operation, SSAValue
from xdsl.utils.exceptions import VerifyException

from mqc.analysis.htp_verification import verify_static_functions
from mqc.analysis.values import check_values
from mqc.errors import IRError
from mqc.ir.module import (
    level,
    logit_cap,
    main_function,
    main_level,
    prefix_tokens,
    static_functions,
    weight_refs,
)
from mqc.ir.op import INDICES, MqcOp, channels
from mqc.ir.weight_store import WeightStore

#: Most positions of a KV cache; kernels count them in 32 bits.
MAX_CONTEXT = 1 << 20


def verify_module(module: ModuleOp) -> None:
    """Verify each op, and that the module is one program: time grows with the number of ops.

    @main takes token ids and positions and returns logits; every value is defined before it is
    used; every op belongs to the module's level; every table has a row for each index it can be
    given; states have names of their own, and those that grow start with the prefix. Raises `IRError`
    naming op and value.
    """
    try:
        module.verify()
    except VerifyException as error:
        raise IRError(str(error)) from error
    stage = main_level(module)
    function = main_function(module)
    functions = static_functions(module) if level(module) == "htp" else {}
    if len(list(module.ops)) != 1 + len(functions) or len(function.body.blocks) != 1:
        raise IRError("a module holds one function, @main, of one block")
    if level(module) == "htp":
        verify_static_functions(module)
    block = function.body.block
    *ops, last = block.ops
    if [arg.type for arg in block.args] != [INDICES, INDICES]:
        raise IRError(f"@main must take token ids and positions, each {INDICES}")
    if not isinstance(last, func.ReturnOp) or len(last.operands) != 1:
        raise IRError("@main must end in func.return of the logits")
    defined: set[SSAValue] = set(block.args)
    for op in (*ops, last):
        for operand in op.operands:
            if operand not in defined:
                raise IRError(f"{_name(op)} uses %{operand.name_hint} before it is defined")
        if op is not last and (not isinstance(op, MqcOp) or stage not in op.LEVELS):
            raise IRError(f"{_name(op)} does not belong to level {stage}")
        defined.update(op.results)
    if last.operands[0] in block.args:
        raise IRError("@main must return the logits of an op")
    _verify_program(module, [op for op in ops if isinstance(op, MqcOp)], channels(last.operands[0]))


def _verify_program(module: ModuleOp, ops: list[MqcOp], vocabulary: int) -> None:
    stated = module.attributes.get("mqc.context")
    context = stated.value.data if isinstance(stated, IntegerAttr) else 0
    if not 1 <= context <= MAX_CONTEXT:
        raise IRError(f"mqc.context must be an integer in [1, {MAX_CONTEXT}]")
    prefix = prefix_tokens(module)
    if len(prefix) >= context or any(not 0 <= token < vocabulary for token in prefix):
        raise IRError(f"mqc.prefix must be fewer than {context} tokens of the vocabulary of {vocabulary}")
    cap = logit_cap(module)
    if cap is not None and not 0 < cap < math.inf:
        raise IRError(f"mqc.logit_cap must be a number above 0, got {cap}")
    ids, _ = main_function(module).body.block.args
    kept: dict[str, MqcOp] = {}
    for op in ops:
        for index, rows in op.lookups():
            most = vocabulary if index is ids else context
            if rows < most:
                _fail(op, f"has tables of {rows} rows, and its indices go up to {most - 1}")
        limit = op.position_limit()
        if limit is not None and limit < context:
            _fail(op, f"has constants of {limit} positions, and mqc.context is {context}")
        for state in op.states():
            if state.name in kept:
                _fail(op, f"keeps state {state.name}, as %{kept[state.name].value_name} does")
            kept[state.name] = op
            rows = (*state.initial.shape, 0)[0] if state.initial is not None else 0
            if state.grows and rows != len(prefix):
                _fail(op, f"has {rows} prefix rows, and mqc.prefix has {len(prefix)} tokens")


def verify_fully(module: ModuleOp, weights: WeightStore) -> None:
    """Also read every weight: its shape, dtype, hash and values; and prove that no accumulator overflows.

    Time grows with the bytes of the weights. Raises `IRError` or `ArtifactError`.
    """
    verify_module(module)
    weights.check(set(weight_refs(module)))
    check_values(module, weights)


def _name(op: Operation) -> str:
    return f"{op.name} %{op.value_name}" if isinstance(op, MqcOp) else op.name


def _fail(op: MqcOp, message: str) -> NoReturn:
    raise IRError(f"{_name(op)} {message}")
