"""What makes the functions of level `htp` valid beyond their ops."""

from __future__ import annotations

from xdsl.dialects import func
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, TensorType, i64
from xdsl.dialects.func import FuncOp
from xdsl.ir import SSAValue

from mqc.dialects.core import MqcOp, channels, element_type
from mqc.dialects.htp_attention import CausalOp
from mqc.dialects.htp_compute import GatherPositionsOp, GatherTokensOp
from mqc.dialects.htp_core import shape
from mqc.dialects.htp_memory import CacheOp
from mqc.errors import IRError
from mqc.htp_schedule import check_schedule, vtcm_bytes
from mqc.ir import prefix_tokens, returned_value, static_functions


def verify_static_functions(module: ModuleOp) -> None:
    """Each function takes ids and positions of a fixed number of tokens and returns their logits, but for
    @initialize; what indexes tables or the cache stays within them; an allocated schedule holds
    (`check_schedule`). Raises `IRError` naming function and value.
    """
    functions = static_functions(module)
    prefix = len(prefix_tokens(module))
    if "decode" not in functions or ("initialize" in functions) != (prefix > 0):
        raise IRError("level htp needs @decode, and @initialize where there is a prefix")
    for name, function in functions.items():
        wanted = {"decode": 1, "initialize": prefix}.get(name)
        tokens = _check_signature(module, name, function)
        if wanted is None:
            wanted = int(name.removeprefix("prefill_")) if name.removeprefix("prefill_").isdecimal() else 0
        if tokens != wanted:
            raise IRError(f"@{name} has {tokens} tokens; functions are initialize, decode and prefill_N")
        _check_ops(module, name, function)
    if vtcm_bytes(module) is not None:
        check_schedule(module)


def _check_signature(module: ModuleOp, name: str, function: FuncOp) -> int:
    if len(function.body.blocks) != 1:
        raise IRError(f"@{name} must have one block")
    block = function.body.block
    kinds = [arg.type for arg in block.args]
    kind = kinds[0] if kinds else None
    rows = kind.get_shape() if isinstance(kind, TensorType) else ()
    if len(rows) != 1 or rows[0] < 1 or kinds != [TensorType(i64, rows)] * 2:
        raise IRError(f"@{name} must take token ids and positions, each tensor<tokens x i64>")
    last = block.last_op
    if not isinstance(last, func.ReturnOp):
        raise IRError(f"@{name} must end in func.return")
    logits = [(rows[0], channels(returned_value(module)))] if name != "initialize" else []
    if [shape(value) for value in last.operands] != logits:
        raise IRError(f"@{name} must return {f'the logits, {logits[0]}' if logits else 'nothing'}")
    return int(rows[0])


def _check_ops(module: ModuleOp, name: str, function: FuncOp) -> None:
    stated = module.attributes.get("mqc.context")
    context = stated.value.data if isinstance(stated, IntegerAttr) else 0
    block = function.body.block
    ids, positions = block.args
    defined: set[SSAValue] = set(block.args)
    caches: set[tuple[int, str]] = set()
    *ops, last = block.ops
    for op in (*ops, last):
        for operand in op.operands:
            if operand not in defined:
                raise IRError(f"@{name}: {op.name} uses %{operand.name_hint} before it is defined")
        defined.update(op.results)
        if op is last:
            continue
        where = f"@{name}: {op.name} %{op.value_name}" if isinstance(op, MqcOp) else f"@{name}: {op.name}"
        if not isinstance(op, MqcOp) or "htp" not in op.LEVELS:
            raise IRError(f"{where} does not belong to level htp")
        if isinstance(op, GatherTokensOp | GatherPositionsOp):
            most = channels(returned_value(module)) if op.indices is ids else context
            if op.indices is ids and isinstance(op, GatherPositionsOp):
                raise IRError(f"{where} must take its rows by position")
            if op.indices not in (ids, positions) or shape(op.table)[0] < most:
                raise IRError(f"{where} must have a row of its table for each of {most} indices")
        if isinstance(op, CausalOp) and op.get("capacity") < context:
            raise IRError(f"{where} has room for {op.get('capacity')} positions of {context}")
        if isinstance(op, CacheOp):
            key = (op.get("layer"), op.part.data)
            if key in caches:
                raise IRError(f"{where} reads the cache of layer {key[0]} again")
            caches.add(key)
    if any(element_type(value) == i64 for value in last.operands):
        raise IRError(f"@{name} must return logits")
