"""Emission of `llm` ops for symbolic values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from xdsl.dialects.builtin import f32
from xdsl.ir import Attribute, Block, SSAValue

from mqc.dialects.expressions import Call
from mqc.dialects.llm import ACTIVATIONS, Llm
from mqc.dialects.llm_elementwise import ActivationOp
from mqc.frontend.given import Given
from mqc.frontend.joins import Joined
from mqc.frontend.lanes import (
    Beside,
    Convolution,
    Elementwise,
    Gated,
    Lanes,
    Linear,
    Lookup,
    Norm,
    Rotary,
    Sum,
    flat,
    lanes_of,
    order,
    selected,
)
from mqc.frontend.mapped import columns_of, rows_of, widened
from mqc.frontend.routing import Weights, route_properties
from mqc.ir.op import MqcOp, WeightAttr, attr, channels, tensor
from mqc.ir.weight_store import WeightStore
from mqc.numerics.rotary import rope_pairs

_OPS: dict[str, type[MqcOp]] = {op.name: op for op in Llm.operations}  # type: ignore[misc]

_SELECTS = "reorders or selects channels of a value that no matrix produced"
#: Where elementwise functions are compared.
_GRID = torch.linspace(-12, 12, 4801, dtype=torch.float64)


def activation(function: Callable[[torch.Tensor], torch.Tensor]) -> type[ActivationOp] | None:
    """The activation that an elementwise function is, if it is one."""
    result = function(_GRID)
    equal = (op for op in ACTIVATIONS if torch.allclose(result, op.function(_GRID), rtol=1e-7, atol=1e-9))
    return next(equal, None)


def _array(value: torch.Tensor) -> Any:
    return widened(value).to(torch.float32).numpy()


class Builder:
    """Appends ops to a block; each symbolic value is emitted once.

    A method raises `ValueError` with the reason where a value has no `llm` form.
    """

    def __init__(
        self, block: Block, weights: WeightStore, positions: SSAValue, given: Given | None = None
    ) -> None:
        self.block, self.weights, self.positions = block, weights, positions
        self.given = given or Given("")
        self.names: dict[int, str] = {}
        #: Source line of each module path, and of the node being raised.
        self.locations: dict[str, str] = {}
        self.location = ""
        self.keep_alive: list[Any] = []
        self._done: dict[Any, SSAValue] = {}
        self._used: set[str] = set()
        self._layers: Counter[str] = Counter()
        self._attentions: set[int] = set()

    def op(
        self,
        kind: str,
        operands: list[SSAValue],
        result: Attribute,
        name: str | None,
        **properties: Any,
    ) -> SSAValue:
        """Append an op and return its result. The result's name is made unique by the op's."""
        short = kind.split(".")[-1]
        location = self.locations.get(name or "", self.location)
        # xDSL drops a trailing "_1" from value names.
        name = re.sub(r"_(\d+)$", r".\1", name or short)
        if name in self._used:
            name = f"{name}.{short}"
        unique, count = name, 1
        while unique in self._used:
            unique, count = f"{name}.{count}", count + 1
        self._used.add(unique)
        op = _OPS[kind].build_op(operands, result, unique, **properties)  # type: ignore[arg-type]
        if location:
            op.attributes["loc"] = attr(location)
        self.block.add_op(op)
        value: SSAValue = op.results[0]
        return value

    def layer(self, kind: str) -> int:
        """The number of an op that keeps a state, among those of its kind."""
        self._layers[kind] += 1
        return self._layers[kind] - 1

    def attention(
        self, values: list[SSAValue], size: int, name: str, layer: int | None, **properties: Any
    ) -> SSAValue:
        """Attention of queries, keys and values, with `size` channels.

        layer: its number in the model. Where it is none, or that of another, as in a model that calls a layer
        twice, the next one is taken. Tensors among the properties become constants.
        """
        if layer is None or layer < 0 or layer in self._attentions:
            layer = max(self._attentions, default=-1) + 1
        self._attentions.add(layer)
        given = {
            key: self.vector(value, f"{name}.{key}") if isinstance(value, torch.Tensor) else value
            for key, value in properties.items()
        }
        return self.op("llm.attention", values, tensor(f32, size), name, layer=layer, **given)

    def embedding(self, index: SSAValue, table: torch.Tensor, weight: str, name: str) -> SSAValue:
        ref = self.weights.add(weight, _array(table))
        return self.op("llm.embedding", [index], tensor(f32, table.shape[1]), name, table=ref)

    def vector(self, value: torch.Tensor, name: str) -> WeightAttr:
        """A constant of the model, f32."""
        return self.weights.add(name, _array(value))

    def linear(self, linear: Linear, rows: Any) -> SSAValue:
        """The product with the given rows of the weight."""
        key = rows.tobytes()
        if key not in linear.emitted:
            gates, outputs = linear.gates, int(np.prod(linear.weight.shape[:-1]))
            if gates is not None:
                expert = rows.reshape(channels(gates), -1) // linear.weight.shape[1]
                if not np.array_equal(expert, np.broadcast_to(np.arange(len(expert))[:, None], expert.shape)):
                    raise ValueError("mixes channels of experts")
            whole = np.array_equal(rows, np.arange(outputs))
            if whole:
                weight, part = _array(linear.weight).reshape(outputs, -1), ""
            else:
                weight, part = rows_of(linear.weight, rows).numpy(), f".{len(linear.emitted)}"
            bias = None
            if linear.bias is not None:
                ref_name = linear.weight_name.removesuffix("weight") + f"bias{part}"
                bias = self.weights.add(ref_name, _array(linear.bias).reshape(-1)[rows])
            stored = linear.weight_name + part
            grid = self.given.properties(self.weights, linear.weight_name, stored, weight, rows)
            linear.emitted[key] = self.op(
                "llm.linear", [linear.x] if gates is None else [linear.x, gates], tensor(f32, len(rows)),
                linear.name + part, weight=self.weights.add(stored, weight), bias=bias,
                expert_axis=None if gates is None else 0, **grid,
            )  # fmt: skip
        return linear.emitted[key]

    def convolution(self, convolution: Convolution, wanted: Any) -> SSAValue:
        """The convolution of the given channels."""
        key = wanted.tobytes()
        if key not in convolution.emitted:
            given = convolution.x
            index, sign = order(given)[wanted], flat(given, given.sign)[wanted]
            x = self.lanes(Lanes(given.base, index[None], sign[None], 0))
            weight, bias = _array(convolution.weight)[:, 0], convolution.bias
            part = "" if len(wanted) == len(weight) else f".{len(convolution.emitted)}"
            convolution.emitted[key] = self.op(
                "llm.causal_conv", [x], x.type, convolution.name + part, layer=self.layer("conv"),
                weight=self.weights.add(convolution.weight_name + part, weight[wanted]),
                bias=None if bias is None
                else self.weights.add(f"{convolution.name}.bias{part}", _array(bias)[wanted]),
            )  # fmt: skip
        return convolution.emitted[key]

    def beside(self, base: Beside, wanted: Any) -> SSAValue:
        """Channels of one of the products; of several as one product."""
        counts = [len(part.weight) for part in base.parts]
        ends = np.cumsum(counts)
        numbers = np.searchsorted(ends, wanted, "right")
        if (numbers == numbers[0]).all():
            return self.linear(base.parts[numbers[0]], wanted - (ends - counts)[numbers[0]])
        first, biases = base.parts[0], [part.bias for part in base.parts]
        weight, bias = torch.cat([widened(part.weight) for part in base.parts]), None
        if any(one is not None for one in biases):
            zeros = (torch.zeros(n) if b is None else widened(b) for n, b in zip(counts, biases, strict=True))
            bias = torch.cat(list(zeros))
        return self.linear(Linear(first.x, weight, bias, first.name, f"{first.name}.beside.weight"), wanted)

    def route(self, scores: SSAValue, weights: Weights, name: str) -> SSAValue:
        """The weight of every expert."""
        properties, by, gain = route_properties(weights), weights.chosen.by, weights.gain
        gains = torch.full((channels(scores),), weights.factor) if gain is None else gain * weights.factor
        constants = {
            key: self.weights.add(f"{name}.{key}", _array(value))
            for key, value in (("bias", by.bias), ("gain", gains))
            if value is not None and not (key == "gain" and bool((value == 1).all()))
        }
        return self.op("llm.route", [scores], scores.type, name, **constants, **properties)

    def join(self, values: list[SSAValue], joined: Joined, name: str) -> SSAValue:
        """Channels of two values as one."""
        if len(values) != 2:
            raise ValueError("joins channels of more than two values")
        index = joined.index().astype(np.int32)
        return self.op(
            "llm.join", values, tensor(f32, len(index)), name, index=self.weights.add(f"{name}.index", index)
        )

    def gate(
        self, left: SSAValue, right: SSAValue, shapes: list[tuple[int, ...]], path: str
    ) -> SSAValue | None:
        """A product with a value that has one number for each block of channels; None if neither is that.

        shapes: of their FX values, for one token.
        """
        wide, narrow = zip((left, right), shapes, strict=True)
        if channels(left) < channels(right):
            wide, narrow = narrow, wide
        if channels(wide[0]) == channels(narrow[0]) or narrow[1] != (*wide[1][:-1], 1):
            return None
        return self.op("llm.gate", [wide[0], narrow[0]], wide[0].type, f"{path}.gate".lstrip("."))

    def routed_sum(
        self, x: SSAValue, gates: SSAValue, stack: torch.Tensor, weight: str, name: str
    ) -> SSAValue:
        """The sum over experts of x's block times the gate and the matrix `[experts, outputs, inputs]`."""
        gated = self.op("llm.gate", [x, gates], x.type, f"{name}.gate")
        return self.sum_over_experts(gated, gates, stack, weight, name)

    def sum_over_experts(
        self, gated: SSAValue, gates: SSAValue, stack: torch.Tensor, weight: str, name: str
    ) -> SSAValue:
        """The sum over chosen experts of a value's block times the matrix `[experts, outputs, inputs]`."""
        matrix = _array(stack).transpose(1, 0, 2).reshape(stack.shape[1], -1)
        return self.op(
            "llm.linear", [gated, gates], tensor(f32, len(matrix)), name,
            weight=self.weights.add(weight, matrix), expert_axis=1,
        )  # fmt: skip

    def norm(self, norm: Norm, wanted: Any) -> SSAValue:
        """The norm of the groups that the wanted channels are."""
        size = len(norm) // norm.groups
        groups = wanted.reshape(-1, size)[:, 0] // size if len(wanted) % size == 0 else wanted
        if not np.array_equal(wanted, (groups[:, None] * size + np.arange(size)).reshape(-1)):
            raise ValueError(_SELECTS)
        part = f".{len(norm.emitted)}" if len(wanted) < len(norm) else ""
        x = self.base(norm.x, wanted) if isinstance(norm.x, SSAValue) else self.part(norm.x, wanted)
        refs = {
            key: self.weights.add(f"{norm.name}.{key}{part}", array[wanted])
            for key, array in (("gain", norm.gain), ("bias", norm.bias))
            if array is not None
        }
        return self.op(
            f"llm.{norm.kind}", [x], x.type, norm.name + part, eps=norm.eps, groups=len(groups), **refs
        )

    def part(self, value: Lanes | Elementwise, wanted: Any) -> SSAValue:
        """Channels of a value, in that order."""
        if np.array_equal(wanted, np.arange(lanes_of(value).index.size)):
            return self.elementwise(value) if isinstance(value, Elementwise) else self.lanes(value)
        found = selected(value, wanted)
        return self._activation(found) if isinstance(found, Elementwise) else self.lanes(found)

    def base(self, base: Any, wanted: Any) -> SSAValue:
        """SSA value that holds channels `wanted` of a base, in that order."""
        if isinstance(base, SSAValue):
            if not np.array_equal(wanted, np.arange(channels(base))):
                raise ValueError(_SELECTS)
            return base
        if isinstance(base, Linear):
            return self.linear(base, wanted)
        if isinstance(base, Convolution):
            return self.convolution(base, wanted)
        if isinstance(base, Beside):
            return self.beside(base, wanted)
        key = wanted.tobytes()
        if key not in base.emitted:
            base.emitted[key] = self._channels(base, wanted)
        value: SSAValue = base.emitted[key]
        return value

    def _channels(self, base: Norm | Lookup | Gated | Sum | Elementwise, wanted: Any) -> SSAValue:
        match base:
            case Norm():
                return self.norm(base, wanted)
            case Elementwise():
                return self.part(base, wanted)
            case Gated(product):
                assert product.gates is not None
                x = self.linear(product, wanted)
                return self.op("llm.gate", [x, product.gates], x.type, f"{product.name}.gate")
            case Sum():
                a, b = self.part(base.a, wanted), self.part(base.b, wanted)
                return self.op("llm.add", [a, b], a.type, base.name)
        whole = np.array_equal(wanted, np.arange(base.table.shape[1]))
        part = "" if whole else f".{len(base.emitted)}"
        table = base.table if whole else columns_of(base.table, wanted)
        return self.embedding(base.ids, table, base.weight_name + part, base.name + part)

    def lanes(self, value: Lanes) -> SSAValue:
        if (value.sign < 0).any():
            raise ValueError("negates channels outside a rotary embedding")
        return self.base(value.base, order(value))

    def rotary(self, value: Rotary, name: str) -> SSAValue:
        """One `llm.rope`, if every head is rotated alike in half or interleaved pairs."""
        if id(value) not in self._done:
            self.keep_alive.append(value)
            self._done[id(value)] = self._rope(value, name)
        return self._done[id(value)]

    def _rope(self, value: Rotary, name: str) -> SSAValue:
        wanted = order(value)
        x = self.base(value.base, wanted)
        head_dim = value.index.shape[-1]
        fields = (flat(value, getattr(value, f)).reshape(-1, head_dim) for f in ("pair", "sign", "column"))
        pair, sign, column = fields
        if not all((f == f[:1]).all() for f in (sign, column)):
            raise ValueError("rotates heads differently")
        equal = wanted.reshape(-1, 1, head_dim) == pair[:, :, None]
        if not equal.any(-1).all():
            raise ValueError("pairs channels of different heads")
        local = equal.argmax(-1)
        rotated = int((column[0] >= 0).sum())
        for interleaved in (False, True):
            first, second = rope_pairs(head_dim, rotated, interleaved)
            if (
                (local[:, first] == second).all()
                and (local[:, second] == first).all()
                and (sign[0, first] == -sign[0, second]).all()
                and abs(sign[0, first].sum()) == len(first)
            ):
                break
        else:
            raise ValueError("pairs channels neither in halves nor interleaved")
        tables = {}
        for kind, table in (("cos", value.cos), ("sin", value.sin)):
            columns = _array(table)[:, column[0]]
            if not np.allclose(columns[:, first], columns[:, second], atol=1e-6):
                raise ValueError("rotates the two channels of a pair by different angles")
            half = np.ascontiguousarray(columns[:, first])
            turned = -half if kind == "sin" and sign[0, first[0]] > 0 else half  # the other way round
            tables[kind] = self.weights.add(f"rope.{kind}", turned)
        return self.op(
            "llm.rope", [x, self.positions], tensor(f32, len(wanted)), name,
            **tables, head_dim=head_dim, interleaved=int(interleaved),
        )  # fmt: skip

    def elementwise(self, value: Elementwise) -> SSAValue:
        """The activation or scaling that equals the function on a grid."""
        key = id(value)
        if key not in self._done:
            self.keep_alive.append(value)
            self._done[key] = self._activation(value)
        return self._done[key]

    def _activation(self, value: Elementwise) -> SSAValue:
        x = self.lanes(value.lanes)
        factor = float(value.function(torch.ones(1, dtype=torch.float64)))
        if torch.allclose(value.function(_GRID), factor * _GRID, rtol=1e-12, atol=1e-12):
            return self.op("llm.scale", [x], x.type, f"{value.path}.scale".lstrip("."), factor=factor)
        found = activation(value.function)
        if found is not None:
            return self.op(found.name, [x], x.type, value.path)
        assert isinstance(value.expression, Call)  # x itself is a scale, of 1
        return self.op("llm.elementwise", [x], x.type, value.path, expression=str(value.expression))
