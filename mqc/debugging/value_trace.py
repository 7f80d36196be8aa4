"""A module evaluated with all its values kept, and any op evaluated again on other inputs."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.analysis.evaluation import Evaluation, check_tokens
from mqc.arrays import Array
from mqc.dialects.int_core import IntOp
from mqc.dialects.quant import UniformType, uniform
from mqc.errors import InputError
from mqc.ir.module import main_function, main_level, ops_by_name, prefix_tokens, returned_value
from mqc.ir.op import MqcOp, element_type, plain
from mqc.ir.weight_store import WeightStore, numpy_dtype


class Computing(Protocol):
    """What gives the values of an integer program, other than the oracle: a backend, or what was recorded."""

    def values(self, module: ModuleOp, weights: WeightStore, ids: Array, **options: Any) -> dict[str, Any]:
        """As `Backend.values`."""


@dataclass(frozen=True)
class Side:
    """One of the two programs. With a backend, its values are the ones that the backend computed with
    `options` for its engine.

    Raises `InputError` for a backend of what is no integer program.
    """

    label: str
    module: ModuleOp
    weights: WeightStore
    backend: Computing | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.backend is not None and main_level(self.module) != "int":
            raise InputError(
                f"{self.label} is at level {main_level(self.module)}: a backend computes the values of "
                "integer programs only; give one as TEST, or leave the backend out"
            )


class Trace:
    """A module evaluated on tokens, all values kept; any op can be evaluated again on other inputs.

    Memory: every value of the module for the given tokens.
    """

    def __init__(self, side: Side) -> None:
        self.side, self.level = side, main_level(side.module)
        self.ops = ops_by_name(side.module)
        self.names = {op: name for name, op in self.ops.items()}
        self._evaluation = Evaluation(side.module, side.weights)
        self._returned = returned_value(side.module)
        self.native: dict[SSAValue, Any] = {}

    def run(self, ids: Array) -> None:
        """Evaluate all values for token ids `[tokens]`, behind the prefix. Raises `InputError`."""
        ids = check_tokens(self.side.module, ids)
        block = main_function(self.side.module).body.block
        start = len(prefix_tokens(self.side.module))
        arguments: tuple[Any, Any] = ids.astype(np.int64), np.arange(start, start + len(ids))
        if self.level != "int":
            import torch

            arguments = torch.from_numpy(arguments[0]), torch.from_numpy(arguments[1])
        self.native = dict(zip(block.args, arguments, strict=True))
        if self.side.backend is not None:
            computed = self.side.backend.values(self.side.module, self.side.weights, ids, **self.side.options)
            self.native |= {op.results[0]: computed[n] for n, op in self.ops.items() if n in computed}
            return
        self._evaluation.reset()
        for op in self.ops.values():
            self.native[op.results[0]] = self._evaluate(op, self.native)

    def logits(self) -> Any:
        """What @main returns; where it was not given, from the last values that were."""
        if self._returned in self.native:
            return self.native[self._returned]
        return self.again(self._returned, self.native)

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
        kind = self.type(value)
        return (kind.real_scale, kind.zero) if kind is not None else (1.0, 0)

    def type(self, value: SSAValue) -> UniformType | None:
        """The quantized type of a value, None if it is float or an accumulator."""
        if self.level != "int":
            return uniform(value)
        return value.owner.represents if isinstance(value.owner, IntOp) else None

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
