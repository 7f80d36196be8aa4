"""The `quant` level with parameters in place of its constants, and the float model beside it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue
from xdsl.rewriter import Rewriter

from mqc.analysis.context import CompilerContext
from mqc.analysis.equivalence_groups import apply_scales, discover
from mqc.analysis.evaluation import Evaluation
from mqc.arrays import Array
from mqc.dialects.llm import EmbeddingOp, LinearOp, LlmOp
from mqc.dialects.quant import UniformType, uniform
from mqc.errors import RecipeError
from mqc.ir.module import gives_logits, mqc_ops, ops_by_name
from mqc.ir.op import MqcOp, WeightAttr, channels, tensor
from mqc.learning.fake_quantize import FakeQuantize, RoundedSum
from mqc.learning.parameters import Named, Parameters, WeightGrid, full
from mqc.learning.product import product, product_of_integers
from mqc.numerics.weight_rounding import bounds, least_scale

Values = dict[SSAValue, Tensor]

#: How far from an integer the start of a learned one may lie: short of 1/2, where it would be another.
_MARGIN = 0.45


def check_reference(module: ModuleOp, name: str) -> None:
    """Raise `RecipeError`, for a pass of that name, unless the float matrices stand beside the rounded."""
    for op in mqc_ops(module):
        if isinstance(op, LinearOp) and op.weight_scale is not None and op.reference is None:
            raise RecipeError(
                f"{name}: the float weights are gone; give quantize-weights keep_reference=true"
            )


class FloatModel(Evaluation):
    """The float function of a module of level `quant`: no value is rounded, and matrices that were are
    taken as they had been (`reference`).

    device: where tensors are computed; constants are copied there once.
    """

    def __init__(self, ctx: CompilerContext, module: ModuleOp, device: torch.device) -> None:
        super().__init__(module, ctx.weights)
        self.device = device
        self._constants: dict[WeightAttr, Tensor] = {}

    def torch(self, ref: WeightAttr) -> Any:
        if self.device.type == "cpu":
            return super().torch(ref)
        if ref not in self._constants:
            self._constants[ref] = torch.from_numpy(self.array(ref)).to(self.device)
        return self._constants[ref]

    def rounded(self, value: SSAValue, real: Tensor) -> Tensor:
        return real

    def arguments(self, window: Array) -> Values:
        """The arguments of @main for a window `[tokens]`: token ids, and positions behind the prefix."""
        first = len(self.prefix)
        ids = torch.from_numpy(window).to(self.device)
        positions = torch.arange(first, first + len(ids), device=self.device)
        return dict(zip(self._function.body.block.args, (ids, positions), strict=True))

    def walk(self, ops: Iterable[MqcOp], values: Values) -> Iterator[tuple[MqcOp, Tensor]]:
        """Evaluate ops in order, from the values that they read; each op with its result.

        The cache is emptied first, so that a recomputed segment sees what it saw at first. Values are freed
        after their last use.
        """
        self.reset()
        values = dict(values)
        for op in ops:
            result = self.value(op, [values[operand] for operand in op.operands])
            values[op.results[0]] = result
            yield op, result
            for operand in self._last_use.get(op, ()):
                values.pop(operand, None)

    def run_ops(self, ops: Iterable[MqcOp], values: Values) -> Tensor:
        """Evaluate ops in order, from the values that they read. The result of the last."""
        (_, result), *_ = deque(self.walk(ops, values), maxlen=1)
        return result

    def value(self, op: MqcOp, operands: list[Tensor]) -> Tensor:
        """The result of one op."""
        if isinstance(op, LinearOp):
            result = product(operands[0], self.torch(op.reference or op.weight))
            return result if op.bias is None else result + self.torch(op.bias)
        if isinstance(op, EmbeddingOp):
            rows = F.embedding(operands[0], self.torch(op.reference or op.table))
            return rows if op.factor is None else rows * op.get("factor")
        assert isinstance(op, LlmOp)
        return op.compute(self, *operands)


class Student(FloatModel):
    """The module as integers will compute it, differentiable in `parameters`.

    Transformations do not touch the weights while they are learned: dividing a value by s before it is
    rounded is rounding it on the grid `s · step`, and multiplying a matrix's columns by s, rounding and
    dividing again is rounding it on a grid of another shape. `fold` brings them into the weights.

    Args:
        grid: how matrices that are still float will be rounded; None to learn with float matrices.
        rounding: whether the integers of matrices are parameters, but for those that give the logits.
    """

    def __init__(
        self,
        ctx: CompilerContext,
        module: ModuleOp,
        device: torch.device,
        grid: WeightGrid | None = None,
        rounding: bool = False,
    ) -> None:
        super().__init__(ctx, module, device)
        self._ctx, self._module, self._grid = ctx, module, grid
        self.names = {op: name for name, op in ops_by_name(module).items()}
        linears = [op for op in mqc_ops(module) if isinstance(op, LinearOp)]
        rounded = any(op.weight_scale is not None for op in linears)
        self._groups = None if rounded else discover(module)
        self._index: dict[SSAValue, tuple[Tensor, Tensor]] = {}
        if self._groups is not None:
            for value, (group, sign) in self._groups.channels.items():
                if (group >= 0).any():
                    signs = np.where(group >= 0, sign, 0).astype(np.float32)
                    self._index[value] = (
                        torch.from_numpy(np.maximum(group, 0)).to(device),
                        torch.from_numpy(signs).to(device),
                    )
        self.parameters = self._initial(linears)
        self._whole: Named = {}
        if rounding:
            for op in linears:
                if op.weight_scale is not None and not gives_logits(op):
                    self.parameters.offsets[self.names[op]] = self._offsets(op)

    def _initial(self, linears: list[LinearOp]) -> Parameters:
        def learned(array: Array | list[float]) -> Tensor:
            return torch.tensor(array, dtype=torch.float32, device=self.device)

        p = Parameters()
        if self._groups is not None and self._groups.count:
            p.scales[""] = learned(np.zeros(self._groups.count))
        for op, name in self.names.items():
            kind = uniform(op.results[0])
            if kind is not None:
                p.steps[name] = learned([math.log(kind.real_scale)])
                p.zeros[name] = learned([float(kind.zero)])
        for op in linears:
            name = self.names[op]
            outputs = op.weight.shape[0]
            if op.weight_scale is not None:
                p.weight_steps[name] = learned(np.log(self.array(op.weight_scale)))
            elif self._grid is not None:
                p.clipping[name] = learned(self._grid.initial(op))
            if uniform(op.result) is not None:
                p.biases[name] = learned(np.zeros(outputs))
        return p

    def log_scale(self, value: SSAValue) -> Tensor | None:
        """Logarithm of the divisor of each channel, `[channels]`; None if nothing scales the value."""
        if value not in self._index:
            return None
        group, sign = self._index[value]
        return self.parameters.scales[""][group] * sign

    def value(self, op: MqcOp, operands: list[Tensor]) -> Tensor:
        assert isinstance(op, LlmOp)
        result = self._linear(op, *operands) if isinstance(op, LinearOp) else op.compute(self, *operands)
        return self.rounded(op.results[0], result)

    def rounded(self, value: SSAValue, real: Tensor) -> Tensor:
        """Real numbers as the grid of a value has them."""
        kind = uniform(value)
        if kind is None:
            return real
        assert isinstance(value.owner, MqcOp)
        name = self.names[value.owner]
        step, scale = self.parameters.steps[name], self.log_scale(value)
        step = step if scale is None else step + scale
        rounded: Tensor = FakeQuantize.apply(  # type: ignore[no-untyped-call]
            real, step, self.parameters.zeros[name], kind.low, kind.high
        )
        return rounded

    @contextmanager
    def with_whole(self, offsets: Named) -> Iterator[None]:
        """Evaluate with whole offsets, by the op's name, where a process has but rows of them."""
        self._whole = offsets
        try:
            yield
        finally:
            self._whole = {}

    def _linear(self, op: LinearOp, x: Tensor, gates: Tensor | None = None) -> Tensor:
        name = self.names[op]
        added = self.parameters.biases.get(name)
        bias = None if op.bias is None else self.torch(op.bias)
        if added is not None:
            bias = added if bias is None else bias + added
        if op.weight_scale is not None:
            weight = op.times_group_scale(self, self._integers(op))
            result = product_of_integers(x, weight) * self.parameters.weight_steps[name].exp()
        else:
            result = product(x, self.matrix(op))
        result = result if bias is None else result + bias
        # Where the columns are in blocks, those of experts that were not chosen meet zeros.
        if gates is None or op.get("expert_axis") == 1:
            return result
        return result * op.spread(gates != 0)

    def _offsets(self, op: LinearOp) -> Tensor:
        """From an integer matrix as far to the float matrix that it was as rounds to the integers."""
        assert op.reference is not None and op.weight_scale is not None
        integers: Tensor = self.torch(op.weight).float()
        steps = op.times_group_scale(self, self.torch(op.weight_scale)[:, None].expand_as(integers))
        return (self.torch(op.reference) / steps - integers).clamp_(-_MARGIN, _MARGIN).bfloat16()

    def _integers(self, op: LinearOp) -> Tensor:
        """The integer matrix, as learned if it is."""
        weight: Tensor = self.torch(op.weight)
        offsets = self._whole.get(self.names[op], self.parameters.offsets.get(self.names[op]))
        if offsets is None:
            return weight.float()
        low, high = bounds(int(op.get("weight_bits")))
        rounded: Tensor = RoundedSum.apply(weight, offsets, low, high)  # type: ignore[no-untyped-call]
        return rounded

    def matrix(self, op: LinearOp) -> Tensor:
        """A matrix that is still float `[outputs, inputs]`, as it is after it was transformed, rounded and
        transformed back."""
        weight: Tensor = self.torch(op.weight)
        if self._grid is None:
            return weight
        scale = self.transformation(op)
        return self._grid.round(op, weight * scale, self.parameters.clipping[self.names[op]]) / scale

    def transformation(self, op: LinearOp) -> Tensor:
        """What the scales of groups multiply a matrix by, broadcast to `[outputs, inputs]`."""
        log_in, log_out = self.log_scale(op.x), self.log_scale(op.result)
        columns = torch.ones(1, device=self.device) if log_in is None else log_in.exp()
        return columns if log_out is None else columns * (-log_out).exp()[:, None]

    def fold(self) -> None:
        """Bring what was learned (what requires a gradient) into the module: types, weights, biases and the
        steps of weights."""
        p = self.parameters
        weights = self._ctx.weights

        def learned(named: Named, op: MqcOp) -> Tensor | None:
            parameter = named.get(self.names[op])
            return parameter if parameter is not None and parameter.requires_grad else None

        with torch.no_grad():
            for op in self.names:
                if not isinstance(op, LinearOp):
                    continue
                bias, log_steps = learned(p.biases, op), learned(p.weight_steps, op)
                if bias is not None:
                    added = bias.cpu().numpy()
                    if op.bias is None:
                        op.properties["bias"] = weights.add(f"{op.value_name}.bias", added)
                    else:
                        op.replace_weight(weights, "bias", weights[op.bias] + added)
                if log_steps is not None:
                    op.replace_weight(weights, "weight_scale", log_steps.exp().cpu().numpy())
                if (offsets := learned(p.offsets, op)) is not None:
                    with self.with_whole({self.names[op]: full(offsets)}):
                        integers = self._integers(op).to(torch.int8).cpu().numpy()
                    op.properties["weight"] = weights.add(op.weight.key.data, integers)
                if learned(p.clipping, op) is not None and self._grid is not None:
                    weight = self.torch(op.weight) * self.transformation(op)
                    steps = self._grid.steps(op, weight, p.clipping[self.names[op]]).cpu().numpy()
                    op.properties["weight_step"] = weights.add(f"{op.weight.key.data}.step", steps)
            if self._groups is not None and p.scales and p.scales[""].requires_grad:
                apply_scales(weights, self._module, self._groups, p.scales[""].exp().cpu().numpy())
            # Last: a value that gets another type is another object.
            for op in self.names:
                self._retype(op, learned(p.steps, op), learned(p.zeros, op))
            for op in self.names:
                x = uniform(op.operands[0]) if isinstance(op, LinearOp) else None
                if x is not None and isinstance(op, LinearOp) and op.bias is not None and op.weight_scale:
                    floor = least_scale(weights[op.bias], x.real_scale)
                    scale = weights[op.weight_scale]
                    if (floor > scale).any():
                        op.replace_weight(weights, "weight_scale", np.maximum(scale, floor))

    def _retype(self, op: MqcOp, log_step: Tensor | None, zero: Tensor | None) -> None:
        kind = uniform(op.results[0])
        if kind is None or (log_step is None and zero is None):
            return
        scale = kind.real_scale if log_step is None else float(log_step.exp())
        origin = kind.zero if zero is None else min(max(round(float(zero)), kind.low), kind.high)
        new = tensor(UniformType.of(kind.bits, scale, origin), channels(op.results[0]))
        Rewriter.replace_value_with_new_type(op.results[0], new)
