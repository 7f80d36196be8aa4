"""Cutting a decoder where a single value flows: its layers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.dialects.llm import AttentionOp, LinearOp, NormOp
from mqc.errors import PassError
from mqc.ir.module import main_function, mqc_ops, returned_value
from mqc.ir.op import MqcOp


@dataclass(frozen=True)
class Segments:
    """A module's ops in order, cut where one value is alive beside token ids and positions.

    stem: up to what the first layer reads, its embedding.
    layers: one for each attention, the op that sees earlier tokens, or for convolutions and linear attention
        that work together; the last value of each is all that the next one reads.
    head: from the last layer's result to the logits.
    """

    stem: tuple[MqcOp, ...]
    layers: tuple[tuple[MqcOp, ...], ...]
    head: tuple[MqcOp, ...]

    @property
    def ops(self) -> tuple[MqcOp, ...]:
        """All of them, in order."""
        return (*self.stem, *(op for layer in self.layers for op in layer), *self.head)

    def source(self, number: int) -> SSAValue:
        """What a layer reads: the result of the part before it."""
        return (self.layers[number - 1] if number else self.stem)[-1].results[0]

    @property
    def hidden(self) -> SSAValue:
        """The last layer's result, which the final norm reads."""
        return self.layers[-1][-1].results[0]

    @property
    def features(self) -> SSAValue:
        """What the matrix that gives the logits reads."""
        return self.head[-1].operands[0]


def segments(module: ModuleOp) -> Segments:
    """Cut @main into layers. Time is linear in the number of ops.

    Raises `PassError` where the logits are no matrix product, or there is no single value between two ops
    that see earlier tokens.
    """
    ops = list(mqc_ops(module))
    last = returned_value(module).owner
    if not isinstance(last, LinearOp) or last is not ops[-1]:
        raise PassError("learning needs a model whose last op is the matrix product that gives the logits")
    cuts = _cuts(module, ops)
    mixing = [i for i, op in enumerate(ops) if op.states()]
    starts = []
    for number, place in enumerate(mixing):
        after = mixing[number - 1] if number else -1
        # A layer starts before its norm.
        found = [c for c in cuts if after < c <= place and not isinstance(ops[c - 1], NormOp)]
        if not found and number and not all(isinstance(ops[i], AttentionOp) for i in (after, place)):
            continue  # convolutions in front of linear attention
        if not found:
            raise PassError(
                f"learning cannot separate the layer of %{ops[place].value_name}: several values flow "
                "into it from the layers before"
            )
        starts.append(max(found))
    if not starts:
        raise PassError("learning needs a model with ops that see earlier tokens")
    norm = last.x.owner
    end = ops.index(norm) if isinstance(norm, NormOp) else len(ops) - 1
    if end not in cuts:
        raise PassError("learning needs a model whose last norm alone reads the last layer's result")
    bounds = [*starts, end]
    layers = tuple(tuple(ops[a:b]) for a, b in pairwise(bounds))
    return Segments(tuple(ops[: starts[0]]), layers, tuple(ops[end:]))


def _cuts(module: ModuleOp, ops: list[MqcOp]) -> set[int]:
    """Numbers of ops before which the result of the op in front, and no other, is alive."""
    number = {op: i for i, op in enumerate(ops)}
    last_use: dict[SSAValue, int] = {}
    for op in main_function(module).body.block.ops:
        for operand in op.operands:
            last_use[operand] = number[op] if isinstance(op, MqcOp) else len(ops)
    last_reads = Counter(last for value, last in last_use.items() if value.owner in number)
    cuts, alive = set(), 0
    for i, op in enumerate(ops):
        lives = last_use.get(op.results[0], i) > i
        alive += lives - last_reads[i]
        if alive == 1 and lives:
            cuts.add(i + 1)
    return cuts
