"""From a comparison to a recipe: which values to give 16 bits, which weights 8."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xdsl.dialects.builtin import ModuleOp

from mqc.compiler.recipe import Recipe
from mqc.debugging.value_report import Comparison, ValueReport
from mqc.dialects import int_ops
from mqc.dialects.int_core import IntOp
from mqc.ir.module import ops_by_name
from mqc.ir.op import MqcOp, u16

#: Share of the divergence that precision can mend which the plan leaves as it is.
_LEFT = 0.25


@dataclass(frozen=True)
class Plan:
    """precision, keep8: as in `Recipe`. mended: share of the values' summed divergence that the
    plan addresses. beyond: values of large divergence that no precision mends, largest first.
    """

    precision: tuple[str, ...]
    keep8: tuple[str, ...]
    mended: float
    beyond: tuple[str, ...]

    def recipe(self, base: Recipe) -> Recipe:
        """The base recipe with the plan's rules after its own."""
        return replace(
            base,
            name=f"{base.name}-mended",
            precision=(*base.precision, *self.precision),
            keep8=(*base.keep8, *self.keep8),
        )


def propose(comparison: Comparison, module: ModuleOp, at_most: int = 24) -> Plan:
    """Mend the values that cost most, until `at_most` are, or those left cost little.

    `module` is the test at the `int` level. An 8-bit value gets 16 bits where every op that reads
    it takes them; else, a matrix product of 4-bit weights gets 8-bit weights. Values are judged by
    `kl` where any was measured, else by their local noise.
    """
    ops = ops_by_name(module)
    measured = any(v.kl is not None for v in comparison.values)
    cost = {v.name: _cost(v, measured) for v in comparison.values}
    total = sum(cost.values())
    precision: list[str] = []
    keep8: list[str] = []
    beyond: list[str] = []
    addressed = left = 0.0
    ranked = sorted(comparison.values, key=lambda v: -cost[v.name])
    for value in ranked:
        if addressed >= (1 - _LEFT) * (total - left) or len(precision) + len(keep8) >= at_most:
            break
        op = ops[value.name]
        if _four_bit(op):
            keep8.append(value.name)
        elif _may_widen(op):
            precision.append(f"%{value.name}=16")
        else:
            beyond.append(value.name)
            left += cost[value.name]
            continue
        addressed += cost[value.name]
    return Plan(tuple(precision), tuple(keep8), addressed / total if total else 0.0, tuple(beyond))


def _cost(value: ValueReport, measured: bool) -> float:
    if measured:
        return value.kl or 0.0
    return 10.0 ** (-value.local_db / 10)


def _four_bit(op: MqcOp) -> bool:
    producer = op.operands[0].owner if op.operands else None
    return isinstance(producer, int_ops.LinearOp) and producer.get("weight_bits") == 4


def _may_widen(op: MqcOp) -> bool:
    kind = op.represents if isinstance(op, IntOp) else None
    if kind is None or kind.bits != 8:
        return False
    users = [use.operation for use in op.results[0].uses]
    return all(user.takes(op.results[0], u16) for user in users if isinstance(user, IntOp))
