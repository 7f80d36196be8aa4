"""Two modules on the same tokens, value by value: where numbers go wrong, and which op is to blame.

Values are aligned by name. Each is compared as real numbers: integers by the quantized type that
their op says they represent, s32 logits by `mqc.logit_scale`, other s32 values as they are.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.backend import Backend
from mqc.dialects.core import MqcOp, element_type, plain
from mqc.dialects.quant import UniformType, uniform
from mqc.errors import InputError
from mqc.evaluation import Evaluation, check_tokens
from mqc.ir import level, main_function, mqc_ops, prefix_tokens, returned_value
from mqc.weight_store import Array, WeightStore, numpy_dtype

Progress = Callable[[str, float], None]


@dataclass
class ValueReport:
    """What a value looks like in the test, against the reference.

    sqnr_db: of the value as the whole test program computes it (cumulative).
    local_db: of the op alone, its inputs taken from the reference and brought to the test's types;
        the reference op gets the same inputs.
    cosine: of the angle between the two, cumulative. max_error: largest absolute difference.
    clipped: share of reference values beyond what the test's type holds; None for float values.
    used: share of the type's steps between the smallest and the largest stored; None likewise.
    low, high: smallest and largest reference value.
    kl: divergence of the reference's logits when only this value is as the test's op makes it, in
        nats per token; None if it was not measured.
    loc: source line.
    """

    name: str
    op: str
    type: str
    loc: str
    sqnr_db: float
    local_db: float
    cosine: float
    max_error: float
    clipped: float | None
    used: float | None
    low: float
    high: float
    kl: float | None = None


@dataclass
class Comparison:
    """values: in program order. kl: of the test's logits against the reference's, nats per token.
    unaligned: names of the test's values that the reference does not have.
    """

    reference: str
    test: str
    tokens: int
    values: list[ValueReport]
    kl: float
    unaligned: list[str] = field(default_factory=list)

    def first_bad(self, threshold_db: float) -> ValueReport | None:
        """The first value whose own op is below the threshold."""
        return next((v for v in self.values if v.local_db < threshold_db), None)

    def first_below(self, threshold_db: float) -> ValueReport | None:
        """The first value that, with the errors of all before it, is below the threshold."""
        return next((v for v in self.values if v.sqnr_db < threshold_db), None)

    def worst(self) -> ValueReport | None:
        """The value whose op has the largest local error."""
        return min(self.values, key=lambda v: v.local_db, default=None)


@dataclass(frozen=True)
class Side:
    """One of the two programs. With a backend, its values are the ones that the backend computed."""

    label: str
    module: ModuleOp
    weights: WeightStore
    backend: Backend | None = None


class Running:
    """A module evaluated on tokens, all values kept; any op can be evaluated again on other inputs.

    Memory: every value of the module for the given tokens.
    """

    def __init__(self, side: Side) -> None:
        self.side, self.level = side, level(side.module)
        self.ops = {op.value_name: op for op in mqc_ops(side.module)}
        self._evaluation = Evaluation(side.module, side.weights)
        self._returned = returned_value(side.module)
        self.native: dict[SSAValue, Any] = {}

    def run(self, ids: Array) -> None:
        """Evaluate all values for token ids `[tokens]`, behind the prefix. Raises `InputError`."""
        check_tokens(self.side.module, ids)
        block = main_function(self.side.module).body.block
        start = len(prefix_tokens(self.side.module))
        arguments: tuple[Any, Any] = ids.astype(np.int64), np.arange(start, start + len(ids))
        if self.level != "int":
            import torch

            arguments = torch.from_numpy(arguments[0]), torch.from_numpy(arguments[1])
        self.native = dict(zip(block.args, arguments, strict=True))
        if self.side.backend is not None:
            computed = self.side.backend.values(self.side.module, self.side.weights, ids)
            self.native |= {op.results[0]: computed[n] for n, op in self.ops.items() if n in computed}
            return
        self._evaluation.reset()
        for op in self.ops.values():
            self.native[op.results[0]] = self._evaluate(op, self.native)

    def again(self, target: SSAValue, *inputs: dict[SSAValue, Any]) -> Any:
        """The value from given values of what it depends on; the first dictionary that has one counts.

        Producers of given values are not evaluated.
        """
        values: ChainMap[SSAValue, Any] = ChainMap({}, *inputs)
        pending = [target]
        self._evaluation.reset()
        while pending:
            value = pending[-1]
            assert isinstance(value.owner, MqcOp)
            missing = [operand for operand in value.owner.operands if operand not in values]
            if missing:
                pending += missing
                continue
            values[pending.pop()] = self._evaluate(value.owner, values)
        return values[target]

    def after(self, changed: SSAValue, value: Any) -> Any:
        """Logits if one value were another: only what depends on it is evaluated."""
        values = {changed: value}
        self._evaluation.reset()
        for op in self.ops.values():
            if any(operand in values for operand in op.operands) and op.results[0] is not changed:
                inputs = {operand: values.get(operand, self.native[operand]) for operand in op.operands}
                values[op.results[0]] = self._evaluate(op, inputs)
        return values.get(self._returned, self.native[self._returned])

    def _evaluate(self, op: MqcOp, values: Mapping[SSAValue, Any]) -> Any:
        operands = [values[operand] for operand in op.operands]
        if self.level == "int":
            return op.evaluate(self._evaluation, *operands)
        import torch

        with torch.no_grad():
            return op.evaluate(self._evaluation, *operands)

    # ---- real numbers

    def grid(self, value: SSAValue) -> tuple[float, int]:
        """Scale and zero point of a value of the `int` level."""
        if value is self._returned:
            return float(plain(self.side.module.attributes["mqc.logit_scale"])), 0
        stated = value.owner.attributes.get("represents") if isinstance(value.owner, MqcOp) else None
        return (stated.real_scale, stated.zero) if isinstance(stated, UniformType) else (1.0, 0)

    def type(self, value: SSAValue) -> UniformType | None:
        """The quantized type of a value, None if it is float or an accumulator."""
        if self.level != "int":
            return uniform(value)
        stated = value.owner.attributes.get("represents") if isinstance(value.owner, MqcOp) else None
        return stated if isinstance(stated, UniformType) else None

    def real(self, value: SSAValue, native: Any = None) -> Array:
        """Real numbers `[tokens, channels]` f64 of a value, or of other contents of it."""
        native = self.native[value] if native is None else native
        if self.level != "int":
            result: Array = native.numpy().astype(np.float64)
            return result
        scale, zero = self.grid(value)
        result = (native.astype(np.float64) - zero) * scale
        return result

    def from_real(self, value: SSAValue, real: Array) -> Any:
        """Contents of a value for real numbers, rounded to its type."""
        if self.level != "int":
            import torch

            tensor = torch.from_numpy(real.astype(np.float32))
            quantized = uniform(value)
            return quantized.fake_quantize(tensor) if quantized else tensor
        scale, zero = self.grid(value)
        dtype = numpy_dtype(element_type(value))
        limits = np.iinfo(dtype)
        return np.clip(np.rint(real / scale) + zero, limits.min, limits.max).astype(dtype)


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
    one, two = Running(reference), Running(test)
    names = [n for n, op in two.ops.items() if n in one.ops and _same_shape(op, one.ops[n])]
    if two.side.backend is not None:  # what a kernel fuses away is not to be had
        names = [n for n in names if "fused_into" not in two.ops[n].attributes]
    if not names:
        raise InputError(f"{reference.label} and {test.label} have no value in common")
    sums = {name: _Sums() for name in names}
    parts = list(windows)
    divergence, tokens = 0.0, 0
    for i, ids in enumerate(parts):
        one.run(ids)
        two.run(ids)
        for j, name in enumerate(names):
            a, b = one.ops[name].results[0], two.ops[name].results[0]
            wanted, computed = one.real(a), two.real(b)
            watch(name, wanted, computed)
            sums[name].add(wanted, computed, two.type(b), two.native[b])
            sums[name].add_local(*_local(one, two, name, sums))
            progress("comparing", (i + (j + 1) / len(names)) / len(parts))
        divergence += _Divergence(_logits(one)).of(_logits(two)).sum()
        tokens += len(ids)
    reports = [sums[name].report(two.ops[name], two.type(two.ops[name].results[0])) for name in names]
    unaligned = [name for name in two.ops if name not in sums]
    return Comparison(reference.label, test.label, tokens, reports, divergence / tokens, unaligned)


def _local(one: Running, two: Running, name: str, names: Container[str]) -> tuple[Array, Array]:
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
            twin = one.ops[value.owner.value_name].results[0]
            same[twin] = one.from_real(twin, two.real(value, native))
    return one.real(a, one.again(a, same, one.native)), two.real(b, result)


def _inputs(one: Running, two: Running, target: SSAValue, names: Container[str]) -> dict[SSAValue, Any]:
    """The aligned values that the test's op depends on, as the reference has them."""
    given: dict[SSAValue, Any] = {}
    assert isinstance(target.owner, MqcOp)
    pending = list(target.owner.operands)
    while pending:
        value = pending.pop()
        if not isinstance(value.owner, MqcOp):
            given[value] = two.native[value]
        elif value.owner.value_name in names:
            twin = one.ops[value.owner.value_name].results[0]
            given[value] = two.from_real(value, one.real(twin))
        else:
            pending += value.owner.operands
    return given


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
    one, two = Running(reference), Running(test)
    one.run(ids)
    two.run(ids)
    divergence, aligned = _Divergence(_logits(one)), {v.name for v in comparison.values}
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
            value.kl = float(divergence.of(logits).mean())
        progress("attributing", (i + 1) / len(chosen))


class _Sums:
    """Sums over windows from which a report is made."""

    def __init__(self) -> None:
        self.signal = self.noise = self.local_signal = self.local_noise = 0.0
        self.product = self.power = self.max_error = 0.0
        self.count = self.clipped = 0
        self.low, self.high = math.inf, -math.inf
        self.stored_low, self.stored_high = math.inf, -math.inf

    def add(self, wanted: Array, computed: Array, kind: UniformType | None, native: Any) -> None:
        error = computed - wanted
        self.signal += float((wanted * wanted).sum())
        self.noise += float((error * error).sum())
        self.product += float((wanted * computed).sum())
        self.power += float((computed * computed).sum())
        self.max_error = max(self.max_error, float(np.abs(error).max()))
        self.low, self.high = min(self.low, float(wanted.min())), max(self.high, float(wanted.max()))
        self.count += wanted.size
        if kind is not None:
            low = (kind.low - kind.zero - 0.5) * kind.real_scale
            high = (kind.high - kind.zero + 0.5) * kind.real_scale
            self.clipped += int(((wanted < low) | (wanted > high)).sum())
            steps = computed / kind.real_scale
            self.stored_low = min(self.stored_low, float(steps.min()))
            self.stored_high = max(self.stored_high, float(steps.max()))

    def add_local(self, wanted: Array, computed: Array) -> None:
        self.local_signal += float((wanted * wanted).sum())
        self.local_noise += float(((computed - wanted) ** 2).sum())

    def report(self, op: MqcOp, kind: UniformType | None) -> ValueReport:
        element = kind if kind is not None else element_type(op.results[0])
        return ValueReport(
            name=op.value_name, op=op.name, type=str(element), loc=str(plain(op.attributes.get("loc")) or ""),
            sqnr_db=_decibels(self.signal, self.noise),
            local_db=_decibels(self.local_signal, self.local_noise),
            cosine=self.product / max(math.sqrt(self.signal * self.power), 1e-300),
            max_error=self.max_error,
            clipped=self.clipped / self.count if kind is not None else None,
            used=(self.stored_high - self.stored_low) / (kind.high - kind.low) if kind is not None else None,
            low=self.low, high=self.high,
        )  # fmt: skip


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _same_shape(a: MqcOp, b: MqcOp) -> bool:
    shapes = [getattr(op.results[0].type, "shape", None) for op in (a, b)]
    return shapes[0] == shapes[1]


def _logits(running: Running) -> Array:
    return running.real(returned_value(running.side.module))


class _Divergence:
    """KL(wanted ‖ computed) of each token, from logits `[tokens, vocabulary]`, in nats."""

    def __init__(self, wanted: Array) -> None:
        shifted = wanted - wanted.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        self._p = np.exp(log_p)
        self._negative_entropy = (self._p * log_p).sum(-1)

    def of(self, computed: Array) -> Array:
        """`[tokens]`. Σ p·log p − Σ p·x + log Σ exp x, for logits x."""
        x = computed - computed.max(-1, keepdims=True)
        total = np.exp(x.astype(np.float32)).sum(-1, dtype=np.float64)
        result: Array = self._negative_entropy - np.einsum("tv,tv->t", self._p, x) + np.log(total)
        return np.maximum(result, 0.0)


def finite(data: Any) -> Any:
    """The data for JSON, which has no infinity: infinite decibels (no error at all) become None."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
