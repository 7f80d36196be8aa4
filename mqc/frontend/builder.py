"""Emission of `llm` ops for symbolic values."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from xdsl.dialects.builtin import f32
from xdsl.ir import Attribute, Block, SSAValue

from mqc.dialects.llm import ACTIVATIONS, Llm
from mqc.dialects.llm_elementwise import ActivationOp
from mqc.frontend.lanes import Elementwise, Lanes, Linear, Norm, Rotary, flat, order
from mqc.frontend.mapped import widened
from mqc.ir.op import MqcOp, attr, channels, tensor
from mqc.ir.weight_store import WeightStore
from mqc.numerics.rotary import rope_pairs

_OPS: dict[str, type[MqcOp]] = {op.name: op for op in Llm.operations}  # type: ignore[misc]

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

    def __init__(self, block: Block, weights: WeightStore, positions: SSAValue) -> None:
        self.block, self.weights, self.positions = block, weights, positions
        self.names: dict[int, str] = {}
        #: Source line of each module path, and of the node being raised.
        self.locations: dict[str, str] = {}
        self.location = ""
        self.keep_alive: list[Any] = []
        self._done: dict[Any, SSAValue] = {}
        self._used: set[str] = set()

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

    def embedding(self, index: SSAValue, table: torch.Tensor, weight: str, name: str) -> SSAValue:
        ref = self.weights.add(weight, _array(table))
        return self.op("llm.embedding", [index], tensor(f32, table.shape[1]), name, table=ref)

    def linear(self, linear: Linear, rows: Any) -> SSAValue:
        """The product with the given rows of the weight."""
        key = rows.tobytes()
        if key not in linear.emitted:
            whole = np.array_equal(rows, np.arange(linear.weight.shape[0]))
            weight, part = _array(linear.weight), ""
            if not whole:
                weight, part = weight[rows], f".{len(linear.emitted)}"
            bias = None
            if linear.bias is not None:
                ref_name = linear.weight_name.removesuffix("weight") + f"bias{part}"
                bias = self.weights.add(ref_name, _array(linear.bias)[rows])
            linear.emitted[key] = self.op(
                "llm.linear", [linear.x], tensor(f32, len(rows)), linear.name + part,
                weight=self.weights.add(linear.weight_name + part, weight), bias=bias,
            )  # fmt: skip
        return linear.emitted[key]

    def norm(self, norm: Norm, gain: Any, bias: Any) -> SSAValue:
        refs = {
            key: self.weights.add(f"{norm.name}.{key}", array)
            for key, array in (("gain", gain), ("bias", bias))
            if array is not None
        }
        return self.op(
            f"llm.{norm.kind}",
            [norm.x],
            norm.x.type,
            norm.name,
            eps=norm.eps,
            groups=norm.groups,
            **refs,
        )

    def base(self, base: Any, wanted: Any) -> SSAValue:
        """SSA value that holds channels `wanted` of a base, in that order."""
        if isinstance(base, Linear):
            return self.linear(base, wanted)
        if isinstance(base, Norm):
            base.value = base.value or self.norm(base, None, None)
            base = base.value
        if not np.array_equal(wanted, np.arange(channels(base))):
            raise ValueError("reorders or selects channels of a value that no matrix produced")
        value: SSAValue = base
        return value

    def lanes(self, value: Lanes) -> SSAValue:
        if (value.sign < 0).any():
            raise ValueError("negates channels outside a rotary embedding")
        return self.base(value.base, order(value))

    def rotary(self, value: Rotary, name: str) -> SSAValue:
        """One `llm.rope`, if every head is rotated alike in half or interleaved pairs."""
        wanted = order(value)
        x = self.base(value.base, wanted)
        place = {channel: i for i, channel in enumerate(wanted.tolist())}
        head_dim = value.index.shape[-1]
        fields = (flat(value, getattr(value, f)).reshape(-1, head_dim) for f in ("pair", "sign", "column"))
        pair, sign, column = fields
        if not all((f == f[:1]).all() for f in (sign, column)):
            raise ValueError("rotates heads differently")
        local = np.array([place[c] for c in pair.reshape(-1).tolist()]).reshape(pair.shape)
        local -= np.arange(len(local))[:, None] * head_dim
        rotated = int((column[0] >= 0).sum())
        for interleaved in (False, True):
            first, second = rope_pairs(head_dim, rotated, interleaved)
            if (
                (local[:, first] == second).all()
                and (local[:, second] == first).all()
                and (sign[0, first] == -1).all()
                and (sign[0, second] == 1).all()
            ):
                break
        else:
            raise ValueError("pairs channels neither in halves nor interleaved")
        tables = {}
        for kind, table in (("cos", value.cos), ("sin", value.sin)):
            columns = _array(table)[:, column[0]]
            if not np.allclose(columns[:, first], columns[:, second], atol=1e-6):
                raise ValueError("rotates the two channels of a pair by different angles")
            tables[kind] = self.weights.add(f"rope.{kind}", np.ascontiguousarray(columns[:, first]))
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
            return self.op("llm.scale", [x], x.type, f"{value.path}.scale", factor=factor)
        found = activation(value.function)
        if found is None:
            raise ValueError("computes an elementwise function that is none of the known activations")
        return self.op(found.name, [x], x.type, value.path)
