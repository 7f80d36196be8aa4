"""Two modules on the same tokens, value by value: where numbers go wrong, and which op is to blame.

Values are aligned by name. Each is compared as real numbers: integers by the quantized type that
their op says they represent, s32 logits by `mqc.logit_scale`, other s32 values as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable
from typing import Any

from xdsl.ir import SSAValue

from mqc.arrays import Array
from mqc.debugging.value_report import Comparison, Divergence, Sums
from mqc.debugging.value_trace import Side, Trace
from mqc.errors import InputError
from mqc.ir.module import logit_cap, returned_value
from mqc.ir.op import MqcOp
from mqc.numerics.softcap import capped

Progress = Callable[[str, float], None]


def compare(
    reference: Side,
    test: Side,
    windows: Iterable[Array],
    watch: Callable[[str, Array, Array], None] = lambda name, wanted, computed: None,
    progress: Progress = lambda message, share: None,
) -> Comparison:
    """Compare two modules that compute the same function, on windows of token ids.

    The two need not be at the same level; the reference's transformations must be the test's, so
    compare an `int` module with the last `llm` dump before it, not with the imported model: scales
    moved into weights change what a value means, though not the logits.

    Args:
        windows: token ids, each `[tokens]`, evaluated by itself behind the prefix.
        watch: called with each value's name and its real numbers in the reference and in the test,
            each `[tokens, channels]`.

    Time: two evaluations of each program; memory: all values of one window. Raises `InputError` if
    no value has the same name and shape in both.
    """
    one, two = Trace(reference), Trace(test)
    names = [n for n, op in two.ops.items() if n in one.ops and _same_shape(op, one.ops[n])]
    if not names:
        raise InputError(f"{reference.label} and {test.label} have no value in common")
    sums: dict[str, Sums] = {}
    parts = list(windows)
    behind: list[tuple[list[int], list[float]]] = []
    for i, ids in enumerate(parts):
        one.run(ids)
        two.run(ids)
        if not sums:  # what a backend fuses away is not to be had
            names = [n for n in names if two.ops[n].results[0] in two.native]
            sums = {name: Sums() for name in names}
        for j, name in enumerate(names):
            a, b = one.ops[name].results[0], two.ops[name].results[0]
            wanted, computed = one.real(a), two.real(b)
            watch(name, wanted, computed)
            sums[name].add(wanted, computed, two.type(b))
            sums[name].add_local(*_local(one, two, name, sums))
            progress("comparing", (i + (j + 1) / len(names)) / len(parts))
        behind.append((ids.tolist(), Divergence(_logits(one)).of(_logits(two)).tolist()))
    reports = [sums[n].report(n, two.ops[n], two.type(two.ops[n].results[0])) for n in names]
    unaligned = [name for name in two.ops if name not in sums]
    divergences = [kl for _, window in behind for kl in window]
    tokens, mean = len(divergences), sum(divergences) / len(divergences)
    return Comparison(reference.label, test.label, tokens, reports, mean, unaligned, behind)


def attribute(
    comparison: Comparison,
    reference: Side,
    test: Side,
    ids: Array,
    names: Iterable[str] | None = None,
    progress: Progress = lambda message, share: None,
) -> None:
    """Measure `kl` of values: the logits' divergence when one op alone is as the test has it.

    Args:
        ids: token ids `[tokens]`, one window.
        names: the values to measure; all by default.

    Time: half an evaluation of the reference per value.
    """
    one, two = Trace(reference), Trace(test)
    one.run(ids)
    two.run(ids)
    divergence, aligned = Divergence(_logits(one)), {v.name for v in comparison.values}
    wanted = aligned if names is None else set(names)
    chosen = [v for v in comparison.values if v.name in wanted]
    for i, value in enumerate(chosen):
        if math.isinf(value.local_db) and value.local_db > 0:
            value.kl = 0.0
        else:
            a = one.ops[value.name].results[0]
            right, wrong = _local(one, two, value.name, aligned)
            changed = one.from_real(a, one.real(a) + (wrong - right))
            logits = one.real(returned_value(one.side.module), one.after(a, changed))
            value.kl = float(divergence.of(_capped(one, logits)).mean())
        progress("attributing", (i + 1) / len(chosen))


def _local(one: Trace, two: Trace, name: str, names: Container[str]) -> tuple[Array, Array]:
    """The value by each side's op, from the same inputs.

    A backend cannot be given inputs: its op is judged by the oracle's answer to its own inputs.
    """
    a, b = one.ops[name].results[0], two.ops[name].results[0]
    if two.side.backend is not None:
        return two.real(b, two.again(b, two.native)), two.real(b)
    given = _inputs(one, two, b, names)
    result = two.again(b, given)
    same: dict[SSAValue, Any] = {}
    for value, native in given.items():
        if isinstance(value.owner, MqcOp):
            twin = one.ops[two.names[value.owner]].results[0]
            same[twin] = one.from_real(twin, two.real(value, native))
    return one.real(a, one.again(a, same, one.native)), two.real(b, result)


def _inputs(one: Trace, two: Trace, target: SSAValue, names: Container[str]) -> dict[SSAValue, Any]:
    """The aligned values that the test's op depends on, as the reference has them."""
    given: dict[SSAValue, Any] = {}
    assert isinstance(target.owner, MqcOp)
    pending = list(target.owner.operands)
    while pending:
        value = pending.pop()
        if not isinstance(value.owner, MqcOp):
            given[value] = two.native[value]
        elif two.names[value.owner] in names:
            twin = one.ops[two.names[value.owner]].results[0]
            given[value] = two.from_real(value, one.real(twin))
        else:
            pending += value.owner.operands
    return given


def _same_shape(a: MqcOp, b: MqcOp) -> bool:
    shapes = [getattr(op.results[0].type, "shape", None) for op in (a, b)]
    return shapes[0] == shapes[1]


def _logits(running: Trace) -> Array:
    return _capped(running, running.real(returned_value(running.side.module), running.logits()))


def _capped(running: Trace, logits: Array) -> Array:
    """Real logits after the model's softcap."""
    return capped(logits, 1.0, logit_cap(running.side.module))
