"""Experts that all are computed on stacks `[experts, tokens, …]`, with 0 for what they were not chosen by.

A model may repeat its tokens for each expert, multiply them by weights that are 0 where an expert was not
chosen, and add up what the experts give. These values are kept as the classes below until the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch.fx import Node
from xdsl.ir import SSAValue

from mqc.dialects.llm import GateOp, MulOp
from mqc.dialects.llm_elementwise import ActivationOp
from mqc.frontend.builder import Builder
from mqc.frontend.lanes import Elementwise, Gated, Lanes, Linear, lanes_of
from mqc.frontend.layout import VIEWS
from mqc.frontend.nodes import op_name, shape_of
from mqc.frontend.routing import Everywhere
from mqc.frontend.source import module_path
from mqc.ir.op import channels


@dataclass(frozen=True)
class Stacked:
    """A value of the tokens, repeated for `count` experts, times their `gates` once there are any:
    `[experts · tokens, channels]` or `[experts, tokens, channels]`."""

    value: Lanes | Elementwise
    count: int
    gates: Everywhere | None = None


@dataclass(frozen=True)
class Summands:
    """What each expert adds to the result, not emitted yet: x, of all experts, times each one's matrix.

    stack: `[experts, outputs, inputs]`.
    """

    x: SSAValue
    gates: SSAValue
    stack: torch.Tensor
    name: str

    @property
    def count(self) -> int:
        return len(self.stack)


def repeated(value: Any, counts: list[Any]) -> Stacked:
    """`value.repeat(counts)`. Raises `ValueError` unless it repeats the tokens as a whole."""
    tokens = isinstance(value, Lanes | Elementwise) and lanes_of(value).axis == 0
    if not tokens or any(n != 1 for n in counts[1:]) or not isinstance(counts[0], int):
        raise ValueError("has no llm form but of tokens, for each expert")
    return Stacked(value, counts[0])


def step_of_all(
    build: Builder, node: Node, arguments: Sequence[Any], emit: Callable[..., SSAValue]
) -> Stacked | Summands | Gated | SSAValue:
    """What an op makes of a value of all experts, its first argument.

    Args: emit: makes an SSA value of one of lanes, given its `role`.
    """
    name, path = op_name(node.target), module_path(node)
    value, other = (*arguments, None)[:2]
    match value, other:
        case _ if _is_view(name, value, shape_of(node)):
            return cast(Stacked | Summands, value)
        case Stacked(gates=None), Everywhere(sigmoid=True, stacked=True) if name == "mul":
            return replace(value, gates=other)
        case Stacked(gates=Everywhere() as chosen), torch.Tensor() if name == "bmm":
            weights = chosen.weights(path)
            gates = build.route(emit(weights.chosen.by.scores, role="scores"), weights, f"{path}.gates")
            x = emit(value.value, role="linear_in")
            return Gated(Linear(x, other.transpose(1, 2), None, path, _name(build, node, other), gates))
        case Summands(), [0] if name == "sum":
            return build.sum_over_experts(value.x, value.gates, value.stack, value.name, path)
    raise ValueError("of values of all experts has no llm form")


def summands(build: Builder, node: Node, x: SSAValue, stack: torch.Tensor) -> Summands:
    """A product with a stack `[experts, inputs, outputs]`. Raises `ValueError` unless x is 0 for experts that
    were not chosen."""
    gates = _gates_of(x)
    if gates is None or channels(gates) != len(stack):
        raise ValueError("of several matrices, but those of chosen experts, has no llm form")
    return Summands(x, gates, stack.transpose(1, 2), _name(build, node, stack))


def _name(build: Builder, node: Node, stack: torch.Tensor) -> str:
    return build.names.get(id(stack), f"{node.name}.weight")


def _is_view(name: str, value: Stacked | Summands, shape: tuple[int, ...]) -> bool:
    """Whether an op gives experts and tokens as one axis, or as two."""
    return name in VIEWS and shape[:-1] in ((value.count,), (value.count, 1))


def _gates_of(value: SSAValue) -> SSAValue | None:
    """By which gates blocks of a value are 0, if the ops that gave it say so."""
    match value.owner:
        case GateOp() as op:
            return op.gates
        case MulOp() as op:
            return _gates_of(op.a) or _gates_of(op.b)
        case ActivationOp() as op if float(op.function(torch.zeros(1))) == 0:
            return _gates_of(op.x)
    return None
