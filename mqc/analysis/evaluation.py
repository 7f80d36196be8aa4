"""Evaluate a module of any level by the semantics its ops declare."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.arrays import Array
from mqc.dialects.quant import uniform
from mqc.ir.module import logit_cap, main_function, main_level, prefix_tokens, returned_value, room
from mqc.ir.op import MqcOp, WeightAttr, channels
from mqc.ir.weight_store import WeightStore
from mqc.tokens import token_ids

Observer = Callable[[MqcOp, Any], None]


class Evaluation:
    """One sequence being evaluated: the module, its weights, and what its ops keep.

    Works on every level; values are torch tensors on `llm` and `quant`, NumPy arrays on `int`.
    Memory grows with the widest set of live values (freed after their last use) and with the
    cache; time is that of the ops. Evaluates @main, or `function`.
    """

    def __init__(self, module: ModuleOp, weights: WeightStore, function: func.FuncOp | None = None) -> None:
        self._function = main_function(module) if function is None else function
        self._weights = weights
        self.prefix = prefix_tokens(module)
        self._last_use = _last_uses(self._function)
        self._latest: tuple[Hashable, Any] | None = None
        self._cap = logit_cap(module)
        self.reset()

    def reset(self) -> None:
        """Forget the sequence: every state is again what a sequence begins with."""
        self.state: dict[str, Any] = {}
        self.position = len(self.prefix)

    def array(self, ref: WeightAttr) -> Array:
        """The constant as a NumPy array."""
        return self._weights[ref]

    def torch(self, ref: WeightAttr) -> Any:
        """The constant as a torch tensor that shares the store's memory."""
        import torch

        return torch.from_numpy(self._weights[ref])

    def rounded(self, value: SSAValue, real: Any) -> Any:
        """A torch tensor of real numbers as the quantized type of a value has them, if it has one."""
        quantized = uniform(value)
        return real if quantized is None else quantized.fake_quantize(real)

    def capped(self, logits: Any) -> Any:
        """Float logits after the model's softcap, if it has one."""
        return logits if self._cap is None else (logits / self._cap).tanh() * self._cap

    def latest(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` makes, kept until it is asked for by another key: memory holds one such thing."""
        if self._latest is None or self._latest[0] != key:
            self._latest = None
            self._latest = key, make()
        return self._latest[1]

    def unused_after(self, op: MqcOp) -> Sequence[SSAValue]:
        """Operands of an op that no later op reads."""
        return self._last_use.get(op, ())

    def run(self, ids: Any, positions: Any, observe: Observer | None = None) -> Any:
        """Logits `[tokens, vocabulary]` of the next `tokens` of the sequence; on the float levels after the
        model's softcap, if it has one.

        Args:
            ids: token ids `[tokens]`, of the level's array type.
            positions: their positions `[tokens]`, prefix included.
            observe: called with every op and its result.
        """
        block = self._function.body.block
        values: dict[SSAValue, Any] = dict(zip(block.args, (ids, positions), strict=True))
        for op in block.ops:
            if isinstance(op, func.ReturnOp):
                self.position += len(ids)
                if not op.operands:
                    return None
                logits = values[op.operands[0]]
                return logits if isinstance(logits, np.ndarray) else self.capped(logits)
            assert isinstance(op, MqcOp)
            result = op.evaluate(self, *(values[operand] for operand in op.operands))
            values[op.results[0]] = result
            if observe is not None:
                observe(op, result)
            for operand in self.unused_after(op):
                values.pop(operand, None)
        raise AssertionError("a verified function ends in func.return")


def check_tokens(module: ModuleOp, ids: Array) -> Array:
    """`ids` `[tokens]` as s32, if they are of the vocabulary and fit behind the prefix.

    Raises `InputError` otherwise.
    """
    return token_ids(ids, channels(returned_value(module)), room(module))


def evaluate(
    module: ModuleOp, weights: WeightStore, ids: Array, observe: Callable[[MqcOp, Array], None] | None = None
) -> Array:
    """Logits `[tokens, vocabulary]` of one sequence behind the module's prefix, as NumPy, on any level.

    Args:
        ids: token ids `[tokens]`.
        observe: called with every op and its result as a NumPy array.

    Raises `InputError` if a token id is out of range or the context has no room.
    """
    ids = check_tokens(module, ids)
    evaluation = Evaluation(module, weights)
    positions = np.arange(evaluation.position, evaluation.position + len(ids))
    if main_level(module) == "int":
        result: Array = evaluation.run(ids, positions, observe)
        return result
    import torch

    def note(op: MqcOp, value: Any) -> None:
        if observe is not None:
            observe(op, value.numpy())

    with torch.no_grad():
        logits = evaluation.run(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(positions), note)
    result = logits.numpy()
    return result


def _last_uses(function: func.FuncOp) -> dict[Any, list[SSAValue]]:
    last: dict[SSAValue, Any] = {}
    for op in function.body.block.ops:
        for operand in op.operands:
            last[operand] = op
    by_op: dict[Any, list[SSAValue]] = {}
    for value, op in last.items():
        by_op.setdefault(op, []).append(value)
    return by_op
