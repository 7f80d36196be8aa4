"""What makes the functions of level `htp` valid beyond their ops."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp, TensorType, i64
from xdsl.dialects.func import FuncOp
from xdsl.ir import Attribute, SSAValue

from mqc.analysis.htp_schedule import check_schedule, homes, vtcm_bytes
from mqc.dialects.htp_attention import CacheWriteOp, CausalOp, MatMulValuesOp
from mqc.dialects.htp_compute import FullyConnectedOp, GatherPositionsOp, GatherTokensOp
from mqc.dialects.htp_core import shape, space
from mqc.dialects.htp_memory import (
    CacheOp,
    ConstantOp,
    DmaLoadOp,
    DmaStoreOp,
    DmaWaitOp,
    EmptyOp,
)
from mqc.errors import IRError
from mqc.ir.module import context_length, function_ops, prefix_tokens, returned_value, static_functions
from mqc.ir.op import MqcOp, channels, element_type, s32


def verify_static_functions(module: ModuleOp) -> None:
    """Each function takes ids and positions of a fixed number of tokens and returns their logits, but for
    @initialize; what indexes tables or the cache stays within them; caches have one shape in all functions;
    what is made in parts is made whole; an allocated schedule holds (`check_schedule`).

    `mqc.analysis.htp_equivalence` checks that the functions compute what @main says: that takes the weights.
    Raises `IRError` naming function and value.
    """
    functions = static_functions(module)
    prefix = len(prefix_tokens(module))
    if "decode" not in functions or ("initialize" in functions) != (prefix > 0):
        raise IRError("level htp needs @decode, and @initialize where there is a prefix")
    kept: dict[str, Attribute] = {}
    capacities: set[int] = set()
    for name, function in functions.items():
        wanted = {"decode": 1, "initialize": prefix}.get(name)
        tokens = _check_signature(module, name, function)
        if wanted is None:
            wanted = int(name.removeprefix("prefill_")) if name.removeprefix("prefill_").isdecimal() else 0
        if tokens != wanted:
            raise IRError(f"@{name} has {tokens} tokens; functions are initialize, decode and prefill_N")
        _check_order(name, function)
        for op in function_ops(function):
            _Check(module, name, function, tokens, op).run()
            if isinstance(op, CacheOp) and kept.setdefault(op.state, op.result.type) != op.result.type:
                raise IRError(f"@{name}: the state {op.state} has another size in another function")
            if isinstance(op, CausalOp | CacheWriteOp):
                capacities.add(op.get("capacity"))
        _check_logits(name, function)
    if len(capacities) > 1:
        raise IRError(f"caches must have one capacity, not {sorted(capacities)}")
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
    logits = [(rows[0], channels(returned_value(module)), s32)] if name != "initialize" else []
    if [(*shape(value), element_type(value)) for value in last.operands] != logits:
        raise IRError(f"@{name} must return {f'the logits, {logits[0][:2]}' if logits else 'nothing'}")
    return int(rows[0])


def _check_order(name: str, function: FuncOp) -> None:
    block = function.body.block
    defined: set[SSAValue] = set(block.args)
    kept: set[str] = set()
    for op in block.ops:
        for operand in op.operands:
            if operand not in defined:
                raise IRError(f"@{name}: {op.name} uses %{operand.name_hint} before it is defined")
        defined.update(op.results)
        if not isinstance(op, func.ReturnOp) and (not isinstance(op, MqcOp) or "htp" not in op.LEVELS):
            raise IRError(f"@{name}: {op.name} does not belong to level htp")
        if isinstance(op, CacheOp):
            if op.state in kept:
                raise IRError(f"@{name}: %{op.value_name} reads the state {op.state} again")
            kept.add(op.state)


@dataclass(frozen=True)
class _Check:
    """What an op must be within its function."""

    module: ModuleOp
    name: str
    function: FuncOp
    tokens: int
    op: MqcOp

    def expect(self, condition: bool, message: str) -> None:
        if not condition:
            raise IRError(f"@{self.name}: {self.op.name} %{self.op.value_name} {message}")

    def run(self) -> None:
        op, context = self.op, context_length(self.module)
        ids, positions = self.function.body.block.args
        if isinstance(op, GatherTokensOp | GatherPositionsOp):
            by_id = op.indices is ids
            most = channels(returned_value(self.module)) if by_id else context
            self.expect(not (by_id and isinstance(op, GatherPositionsOp)), "must take its rows by position")
            self.expect(
                op.indices in (ids, positions) and shape(op.table)[0] >= most,
                f"must have a row of its table for each of {most} indices",
            )
        if isinstance(op, CausalOp):
            self.expect(
                op.get("capacity") >= context,
                f"has room for {op.get('capacity')} positions of {context}",
            )
            self.expect(op.tokens_seen() == self.tokens, f"must have rows of {self.tokens} tokens")
        if isinstance(op, CacheWriteOp):
            self.expect(shape(op.x)[0] == self.tokens, f"must write {self.tokens} rows")
            self.expect(isinstance(op.cache_in.owner, CacheOp), "must write to an htp.cache")
        if isinstance(op, DmaLoadOp):
            sources = ConstantOp | CacheWriteOp
            self.expect(isinstance(op.x.owner, sources), "must copy a constant or a cache that was written")
        if isinstance(op, EmptyOp):
            self.filled(op)
        if vtcm_bytes(self.module) is not None and isinstance(op.results[0].type, TensorType):
            self.expect(space(op.results[0].type) is not None, "lies in no memory; run tile-htp")

    def filled(self, op: EmptyOp) -> None:
        """The columns of an empty value are written, each once, before anything else reads it."""
        value: SSAValue = op.result
        columns: list[tuple[int, int]] = []
        while value.has_one_use():
            (use,) = value.uses
            user = use.operation
            if isinstance(user, DmaStoreOp) and user.dest is value:
                columns.append((user.get("first"), channels(user.x)))
                (wait,) = user.result.uses if user.result.has_one_use() else (use,)
                value = wait.operation.results[0] if isinstance(wait.operation, DmaWaitOp) else user.x
            elif isinstance(user, FullyConnectedOp) and user.dest is value:
                columns.append((user.get("first"), user.get("outputs")))
                value = user.result
            elif isinstance(user, MatMulValuesOp) and user.dest is value:
                dim = user.get("head_dim")
                columns.append((user.get("head") * dim, user.get("heads") * dim))
                value = user.result
            else:
                break
        end = 0
        for first, count in sorted(columns):
            self.expect(first == end, f"has columns from {end} on that are not written, or twice")
            end = first + count
        self.expect(end == channels(op.result), f"has columns from {end} on that are not written")


def _check_logits(name: str, function: FuncOp) -> None:
    """What is stored to DDR is the logits."""
    last = function.body.block.last_op
    assert last is not None
    home = homes(function)
    returned = {home[value] for value in last.operands}
    for op in function_ops(function):
        if isinstance(op, DmaStoreOp) and home[op.result] not in returned:
            raise IRError(f"@{name}: htp.dma_store %{op.value_name} must store to the logits")
