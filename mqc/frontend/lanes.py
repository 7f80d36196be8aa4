"""Symbolic values of the raising: what an FX value is in terms of `llm` values.

The traced graph reshapes, transposes, slices and joins `[1, tokens, …]` tensors. All of that is
bookkeeping over channels, so an FX value is kept as arrays of channel numbers in the FX value's own
layout (token axis of size 1), and layout ops act on these arrays with NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from xdsl.ir import SSAValue

from mqc.dialects.expressions import Argument, evaluate
from mqc.frontend.mapped import widened
from mqc.ir.op import channels

#: Positions of `Table.short`.
SHORT = 3

Index = npt.NDArray[np.int64]
Layout = Callable[[Index], Index]


@dataclass(eq=False)
class Linear:
    """A matrix product not emitted yet, so that a slice of its output becomes rows of its weight.

    With `gates`, weight `[experts, outputs, inputs]` and bias `[experts, outputs]` are stacks.
    """

    x: SSAValue
    weight: torch.Tensor
    bias: torch.Tensor | None
    name: str
    weight_name: str
    gates: SSAValue | None = None
    emitted: dict[bytes, SSAValue] = field(default_factory=dict)


@dataclass(eq=False)
class Norm:
    """A norm not emitted yet, so that a product with a vector becomes its gain, and a slice of whole groups a
    norm of these.

    x: what is normed, in the layout of the norm, if it is not emitted yet either. gain, bias: in the order
    of the channels.
    """

    x: SSAValue | Lanes
    kind: str
    eps: float
    groups: int
    name: str
    gain: Any = None
    bias: Any = None
    emitted: dict[bytes, SSAValue] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many channels it has."""
        return channels(self.x) if isinstance(self.x, SSAValue) else self.x.index.size


@dataclass(eq=False)
class Lookup:
    """Rows of a table by token id, not emitted yet, so that a slice of them becomes columns of the table."""

    ids: SSAValue
    table: torch.Tensor
    name: str
    weight_name: str
    emitted: dict[bytes, SSAValue] = field(default_factory=dict)


@dataclass(eq=False)
class Convolution:
    """A causal convolution over the tokens not emitted yet, so that a slice of its channels is one of fewer.

    weight `[channels, 1, taps]`, bias `[channels]`.
    """

    x: Lanes
    weight: torch.Tensor
    bias: torch.Tensor | None
    name: str
    weight_name: str
    emitted: dict[bytes, SSAValue] = field(default_factory=dict)


@dataclass(eq=False)
class Beside:
    """Matrix products of one value, their channels side by side; a slice of one of them is that product's."""

    parts: tuple[Linear, ...]


@dataclass(eq=False)
class Gated:
    """A product with the matrices of chosen experts, times their gates, not emitted yet."""

    product: Linear
    emitted: dict[bytes, SSAValue] = field(default_factory=dict)


@dataclass(eq=False)
class Sum:
    """a + b, not emitted yet, so that a slice of it becomes a sum of slices. Both are in the same layout."""

    a: Lanes | Elementwise
    b: Lanes | Elementwise
    name: str
    emitted: dict[bytes, SSAValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Lanes:
    """FX value whose element at channel position i is `sign[i] · base[index[i]]`.

    `index`, `sign`: the FX value's shape with the token axis `axis` of size 1.
    """

    base: Base
    index: Index
    sign: Index
    axis: int

    def map(self, layout: Layout, axis: int) -> Lanes:
        return replace(self, index=layout(self.index), sign=layout(self.sign), axis=axis)


@dataclass(frozen=True)
class Rotary:
    """`base[index]·cos[position, column] + sign·base[pair]·sin[position, column]`.

    `column` is −1 where a channel passes through unrotated.
    """

    base: Base
    index: Index
    pair: Index
    sign: Index
    column: Index
    cos: torch.Tensor
    sin: torch.Tensor
    axis: int

    def map(self, layout: Layout, axis: int) -> Rotary:
        return replace(
            self,
            index=layout(self.index),
            pair=layout(self.pair),
            sign=layout(self.sign),
            column=layout(self.column),
            axis=axis,
        )

    def with_tables(self, cos: torch.Tensor, sin: torch.Tensor) -> Rotary | None:
        """The same value, told with these tables, if it can be."""
        if torch.equal(self.cos, cos) and torch.equal(self.sin, sin):
            return self
        if torch.equal(self.cos, sin) and torch.equal(self.sin, cos) and (self.sign > 0).all():
            return replace(self, index=self.pair, pair=self.index, cos=cos, sin=sin)
        return None


@dataclass(frozen=True)
class Weighted:
    """Product of lanes and a table over positions: half of a rotary embedding."""

    lanes: Lanes
    table: torch.Tensor

    def negated(self) -> Weighted:
        return replace(self, lanes=replace(self.lanes, sign=-self.lanes.sign))


@dataclass(frozen=True)
class ComplexPairs:
    """Lanes `[…, pairs, 2]` as complex numbers, times a complex table over positions once there is one."""

    lanes: Lanes
    table: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Elementwise:
    """An expression of lanes, not raised to an op yet; `path` is the module that computes it."""

    lanes: Lanes
    expression: Argument
    path: str
    emitted: dict[bytes, SSAValue] = field(default_factory=dict)

    def of(self, layout: Callable[[Lanes], Any]) -> Any:
        """The function of other lanes, or of each of several, that a layout makes of these."""
        made = layout(self.lanes)
        return [replace(self, lanes=m) for m in made] if isinstance(made, list) else replace(self, lanes=made)

    def function(self, x: torch.Tensor) -> torch.Tensor:
        """The expression for the values of a tensor."""
        return evaluate(self.expression, x)


@dataclass(frozen=True)
class Mean:
    """mean(lanes) over the last axis."""

    lanes: Lanes


@dataclass(frozen=True)
class Centered:
    """lanes − mean(lanes) over the last axis; `squared` once it was squared."""

    lanes: Lanes
    squared: bool = False


@dataclass(frozen=True)
class Moment:
    """mean(lanes²) over the last axis, plus `eps`; that of what `Centered` is, if it is `centered`;
    `inverse_root` once rsqrt was taken."""

    lanes: Lanes
    eps: float = 0.0
    inverse_root: bool = False
    centered: bool = False


@dataclass(frozen=True)
class Table:
    """Depends on positions alone: its value with `position_ids = arange(context)`.

    `short` is the same of the first `SHORT` positions. Where its rows differ from the first ones of `value`,
    the model computes by the length of the sequence.
    """

    value: Any
    axis: int | None
    short: Any


@dataclass(frozen=True)
class Tokens:
    """The token ids."""

    WHAT: ClassVar = "token ids"


@dataclass(frozen=True)
class Length:
    """The number of tokens, as an integer in the graph, times −1 if it is `negative`; or another one that
    depends on it, with its values for as many positions as `Table.value` and `Table.short` have."""

    value: int | float | None = None
    short: int | float | None = None
    negative: bool = False


#: What holds channels: a value of the program, or what will give one, as far as its channels are wanted.
Base = SSAValue | Linear | Norm | Convolution | Beside | Lookup | Gated | Sum | Elementwise


#: Those whose channels are emitted as far as they are wanted, at no cost.
NOT_EMITTED = (Linear, Lookup, Sum, Elementwise)


def may_be_cut(value: Lanes) -> bool:
    """Whether parts of a sum may be wanted: the channels of a token have more than one axis, along which they
    may be cut, or are those of a matrix product, which gives any of them."""
    return isinstance(value.base, Linear) or sum(size > 1 for size in value.index.shape) > 1


def order(value: Lanes | Rotary) -> Index:
    """Channel numbers in `[tokens, channels]` order: the token axis first, then the others."""
    return np.moveaxis(value.index, value.axis, 0).reshape(-1)


def flat(value: Lanes | Rotary, array: Index) -> Index:
    """`array`, in the layout of `value`, in `[tokens, channels]` order."""
    return np.moveaxis(array, value.axis, 0).reshape(-1)


def lanes_of(value: Lanes | Elementwise) -> Lanes:
    """The lanes that a value is a function of."""
    return value.lanes if isinstance(value, Elementwise) else value


def spread(value: Lanes, vector: torch.Tensor) -> npt.NDArray[np.float32]:
    """A vector that is broadcast to lanes, f32 in the order of the value's channels."""
    wide = np.broadcast_to(widened(vector).float().numpy(), value.index.shape)
    return np.ascontiguousarray(np.moveaxis(wide, value.axis, 0).reshape(-1))


def _by_row(value: Lanes, vector: torch.Tensor, otherwise: float) -> torch.Tensor | None:
    """A vector that is broadcast to channels of a matrix product, by the rows of its matrix; rows that are
    none of the channels get a number. None if it cannot be broadcast, or two channels are one row."""
    assert isinstance(value.base, Linear)
    places = order(value)
    try:
        given = spread(value, vector)
    except ValueError:
        return None
    if len(np.unique(places)) < len(places):
        return None
    rows = torch.full((len(value.base.weight),), otherwise)
    rows[torch.from_numpy(places)] = torch.tensor(given)
    return rows


def with_bias(value: Lanes, vector: torch.Tensor) -> Lanes | None:
    """Channels of a matrix product plus a vector that is broadcast to them; None where no bias gives that."""
    product = value.base
    if not isinstance(product, Linear) or product.bias is not None or product.gates is not None:
        return None
    if (value.sign < 0).any() or (bias := _by_row(value, vector, 0.0)) is None:
        return None
    return replace(value, base=replace(product, bias=bias, emitted={}))


def with_factors(value: Lanes, vector: torch.Tensor) -> Lanes | None:
    """Channels of a matrix product times a vector that is broadcast; None where no matrix gives that."""
    product = value.base
    if not isinstance(product, Linear) or product.gates is not None:
        return None
    if (factors := _by_row(value, vector, 1.0)) is None:
        return None
    bias = None if product.bias is None else widened(product.bias).float() * factors
    weight = widened(product.weight).float() * factors[:, None]
    return replace(value, base=replace(product, weight=weight, bias=bias, emitted={}))


def expression_of(value: Lanes | Elementwise) -> Argument:
    """Which function of its lanes a value is."""
    return value.expression if isinstance(value, Elementwise) else "x"


def same_lanes(a: Any, b: Any) -> Lanes | None:
    """The lanes that both are functions of, if they are the same."""
    if not isinstance(a, Lanes | Elementwise) or not isinstance(b, Lanes | Elementwise):
        return None
    x, y = lanes_of(a), lanes_of(b)
    same = x.base is y.base and np.array_equal(x.index, y.index) and np.array_equal(x.sign, y.sign)
    return x if same else None


def selected(value: Lanes | Elementwise, wanted: Index) -> Lanes | Elementwise:
    """Channels of a value by their numbers, in `[tokens, channels]` layout."""
    lanes = lanes_of(value)
    index, sign = order(lanes)[wanted][None], flat(lanes, lanes.sign)[wanted][None]
    part = Lanes(lanes.base, index, sign, 0)
    return replace(value, lanes=part, emitted={}) if isinstance(value, Elementwise) else part


def in_place(value: Lanes | Rotary | Elementwise) -> Index:
    """The channel numbers of a value that has its layout."""
    index = (lanes_of(value) if isinstance(value, Elementwise) else value).index
    axis = (lanes_of(value) if isinstance(value, Elementwise) else value).axis
    moved = np.moveaxis(np.empty(index.shape, np.int8), axis, 0).shape
    return np.moveaxis(np.arange(index.size).reshape(moved), 0, axis)
