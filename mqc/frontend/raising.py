"""FX graph of aten ops → `llm` dialect, by algebra over what each op does to channels.

No module or model name decides anything: names only label values and errors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node
from xdsl.dialects import func
from xdsl.dialects.builtin import DYNAMIC_INDEX, ModuleOp, TensorType, f32, i64
from xdsl.ir import SSAValue

from mqc.dialects.llm import Llm
from mqc.errors import UnsupportedOpError
from mqc.frontend.builder import Builder, activation
from mqc.frontend.lanes import (
    SHORT,
    Elementwise,
    Lanes,
    Length,
    Linear,
    Moment,
    Norm,
    Rotary,
    Table,
    Tokens,
    Weighted,
)
from mqc.frontend.layout import join, relayout
from mqc.frontend.mapped import widened
from mqc.frontend.source import module_path, source_line
from mqc.ir.module import set_level
from mqc.ir.op import attr, tensor
from mqc.ir.weight_store import WeightStore

aten = torch.ops.aten

#: Ops that change nothing in a model in evaluation mode, in f32.
_IDENTITY = {
    aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.alias.default, aten.clone.default,
    aten.contiguous.default, aten.dropout.default, aten.type_as.default, aten.detach.default,
    aten.expand.default, aten._to_copy.default, aten.detach_.default, aten.lift_fresh_copy.default,
}  # fmt: skip

_ACTIVATIONS: dict[Any, Callable[..., torch.Tensor]] = {
    aten.silu.default: torch.nn.functional.silu,
    aten.gelu.default: torch.nn.functional.gelu,
    aten.relu.default: torch.relu,
    aten.tanh.default: torch.tanh,
    aten.sigmoid.default: torch.sigmoid,
}


def raise_program(program: ExportedProgram, weights: WeightStore, context: int, vocabulary: int) -> ModuleOp:
    """The `llm` module of a traced model; its tensors go to `weights`.

    Args:
        program: `logits(input_ids, position_ids)` from `trace`.
        context: number of positions for which position tables are computed.
        vocabulary: number of logits.

    Raises:
        UnsupportedOpError: an op or a combination of ops has no form in the `llm` dialect.
    """
    return _Raising(program, weights, context, vocabulary).run()


class _Raising:
    def __init__(self, program: ExportedProgram, weights: WeightStore, context: int, vocabulary: int) -> None:
        self.program, self.context = program, context
        self.values: dict[Node, Any] = {}
        index = TensorType(i64, [DYNAMIC_INDEX])
        self.function = func.FuncOp(
            "main",
            ([index, index], [tensor(f32, vocabulary)]),
        )
        block = self.function.body.block
        block.args[0].name_hint, block.args[1].name_hint = "ids", "positions"
        self.ids, self.positions = block.args
        self.build = Builder(block, weights, self.positions)
        self.handlers: dict[str, Callable[..., Any]] = {
            "addmm": self._addmm, "attention": self._attention, "cat": self._cat,
            "embedding": self._embedding, "layer_norm": self._layer_norm, "linear": self._linear,
            "mean": self._mean, "neg": self._neg, "rsqrt": self._rsqrt,
            "square": self._square, "stack": self._stack,
        }  # fmt: skip
        self.binary = {
            aten.mul.Tensor: self._mul, aten.mul.Scalar: self._mul, aten.add.Tensor: self._add,
            aten.sub.Tensor: self._sub, aten.pow.Tensor_Scalar: self._pow, aten.div.Tensor: self._div,
        }  # fmt: skip

    def run(self) -> ModuleOp:
        constants = {**self.program.state_dict, **self.program.constants}
        signature = self.program.graph_signature
        targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        for node in _live_nodes(self.program.graph):
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node, targets, constants)
            elif node.op == "call_function":
                self.build.location = source_line(node)
                self.build.locations.setdefault(module_path(node), self.build.location)
                self.values[node] = self._call(node)
            elif node.op == "output":
                logits = self._emit(self.values[node.args[0][0]], node, "logits")  # type: ignore[index]
                self.build.block.add_op(func.ReturnOp(logits))
        module = ModuleOp([self.function])
        set_level(module, "llm")
        module.attributes["mqc.context"] = attr(self.context)
        return module

    def _placeholder(self, node: Node, targets: dict[str, str], constants: dict[str, Any]) -> Any:
        if node.name in targets:
            value = constants[targets[node.name]].detach()
            self.build.names[id(value)] = targets[node.name].removeprefix("model.")
            return value
        if node.name == "input_ids":
            return Tokens()
        return Table(torch.arange(self.context)[None], 1, torch.arange(SHORT)[None])

    def _fail(self, node: Node, why: str = "has no llm form") -> UnsupportedOpError:
        return UnsupportedOpError(
            module_path(node) or "model", str(node.target), why, source_line(node),
            sorted(op.name for op in Llm.operations),
        )  # fmt: skip

    # ---- one node

    def _call(self, node: Node) -> Any:
        target = node.target
        args = [self._value(a) for a in node.args]
        if target is aten.sym_size.int:
            return Length()
        tensors = [a for a in _flatten(args) if not _is_number(a)]
        if all(isinstance(a, torch.Tensor | Table | Length) for a in tensors):
            return self._fold(node, args)
        if target in _IDENTITY:
            return args[0]
        if target is operator.getitem:
            return args[0][args[1]]
        if target in _ACTIVATIONS:
            return self._activation(node, args[0])
        if target in self.binary:
            return self.binary[target](node, args[0], args[1])
        if _name(target) in self.handlers:
            return self.handlers[_name(target)](node, *args)
        if isinstance(args[0], Tokens) and _name(target) in ("view", "reshape"):
            return args[0]
        if isinstance(args[0], Elementwise):
            args[0] = self._lanes(node, args[0])
        if isinstance(args[0], Lanes | Rotary):
            return self._layout(node, args[0], args[1:])
        raise self._fail(node)

    def _value(self, argument: Any) -> Any:
        if isinstance(argument, Node):
            return self.values[argument]
        if isinstance(argument, list | tuple):
            return [self._value(a) for a in argument]
        return argument

    def _fold(self, node: Node, args: list[Any]) -> Any:
        """Evaluate what depends on weights and positions alone."""
        tables = [a for a in _flatten(args) if isinstance(a, Table | Length)]
        writes = _writes(node)

        def evaluated(short: bool) -> Any:
            given = _concrete(args, self.context, short)
            if writes:
                given[0] = given[0].clone()  # a buffer of the model
            try:
                return node.target(*given, **node.kwargs)  # type: ignore[operator]
            except (IndexError, RuntimeError) as error:
                why = f"cannot be evaluated for {self.context} positions ({error}); give a smaller context"
                raise self._fail(node, why) from error

        result = evaluated(short=False)
        if not tables:
            name = self.build.names.get(id(args[0])) if args else None
            if name and isinstance(result, torch.Tensor):
                self.build.names[id(result)] = name
            self.build.keep_alive.append(result)
            return result
        if isinstance(result, torch.Tensor):
            result = Table(result, _token_axis(node), evaluated(short=True))
        if writes:
            self.values[node.args[0]] = result  # type: ignore[index]
        return result

    def _rows(self, node: Node, table: Table) -> torch.Tensor:
        """A table's value, if its rows do not depend on how many there are."""
        axis = table.axis
        if axis is not None:
            count = min(table.value.shape[axis], table.short.shape[axis])
            first, same = (t.narrow(axis, 0, count).double() for t in (table.value, table.short))
            if not torch.allclose(first, same):
                raise self._fail(
                    node,
                    f"takes positions by the length of the sequence: of {self.context} they are others than "
                    f"of {SHORT}. A program has one table: give a context at which the model does not switch "
                    "yet (longrope: `original_max_position_embeddings`)",
                )
        value: torch.Tensor = table.value
        return value

    # ---- arithmetic

    def _mul(self, node: Node, a: Any, b: Any) -> Any:
        if isinstance(a, torch.Tensor) or _is_number(a):
            a, b = b, a
        number = _number(b)
        if isinstance(a, Table) and isinstance(b, Lanes):
            a, b = b, a
        match a, b:
            case Lanes() | Elementwise(), _ if number is not None:
                return _compose(node, a, lambda x: x * number)
            case Lanes(), Table():
                return Weighted(a, self._rows(node, b))
            case Lanes() | Elementwise(), Moment(inverse_root=True):
                return self._norm(node, self._lanes(node, a), b)
            case Moment(inverse_root=True), Lanes() | Elementwise():
                return self._norm(node, self._lanes(node, b), a)
            case Lanes(base=Norm()), torch.Tensor():
                return self._gain(node, a, b)
        shared = _same_lanes(a, b)
        if shared is not None:
            f, g = _function(a), _function(b)
            return Elementwise(shared, lambda x: f(x) * g(x), module_path(node))
        return self._binary(node, "mul", a, b)

    def _add(self, node: Node, a: Any, b: Any) -> Any:
        if node.kwargs.get("alpha", 1) != 1:
            raise self._fail(node, "with alpha has no llm form")
        if isinstance(a, torch.Tensor | Table) or _is_number(a):
            a, b = b, a
        number = _number(b)
        match a, b:
            case Moment(inverse_root=False), _ if number is not None:
                return Moment(a.lanes, a.eps + number)
            case Lanes() | Elementwise(), _ if number is not None:
                return _compose(node, a, lambda x: x + number)
            case Weighted(), Weighted():
                return self._rotary(node, a, b)
        shared = _same_lanes(a, b)
        if shared is not None:
            f, g = _function(a), _function(b)
            return Elementwise(shared, lambda x: f(x) + g(x), module_path(node))
        return self._binary(node, "add", a, b)

    def _sub(self, node: Node, a: Any, b: Any) -> Any:
        number = _number(b)
        if number is None or not isinstance(a, Lanes | Elementwise):
            raise self._fail(node)
        return _compose(node, a, lambda x: x - number)

    def _div(self, node: Node, a: Any, b: Any) -> Any:
        number = _number(b)
        if number is None:
            raise self._fail(node, "by a tensor has no llm form")
        return self._mul(node, a, 1.0 / number)

    def _pow(self, node: Node, a: Any, b: Any) -> Any:
        if isinstance(a, Moment) and b == -0.5:
            return self._rsqrt(node, a)
        if not isinstance(a, Lanes | Elementwise):
            raise self._fail(node)
        power = _compose(node, a, lambda x: torch.pow(x, b))
        if isinstance(a, Elementwise) and activation(power.function) is None:
            return self._pow(node, self._lanes(node, a), b)
        return power

    def _square(self, node: Node, a: Any) -> Any:
        return self._pow(node, a, 2)

    def _neg(self, node: Node, a: Any) -> Any:
        if isinstance(a, Lanes):
            return Lanes(a.base, a.index, -a.sign, a.axis)
        return _compose(node, a, torch.neg)

    def _activation(self, node: Node, a: Any) -> Any:
        function = _ACTIVATIONS[node.target]
        kwargs = dict(node.kwargs)
        inner = a if isinstance(a, Elementwise) else self._lanes(node, a)
        return _compose(node, inner, lambda x: function(x, **kwargs))

    def _binary(self, node: Node, kind: str, a: Any, b: Any) -> Lanes:
        left, right = (self._emit(v, node, kind) for v in (a, b))
        if left.type != right.type:
            raise self._fail(node, f"of {left.type} and {right.type} has no llm form")
        result = self.build.op(
            f"llm.{kind}", [left, right], left.type, f"{module_path(node)}.{kind}".lstrip(".")
        )
        return self._whole(result, node)

    # ---- norms

    def _mean(self, node: Node, a: Any, dims: Any, keepdim: bool = False) -> Moment:
        probe = torch.linspace(-3, 3, 13)
        if (
            not isinstance(a, Elementwise)
            or not torch.allclose(a.function(probe), probe * probe)
            or list(dims) != [-1]
            or not keepdim
        ):
            raise self._fail(node, "has no llm form but as a root mean square over the last axis")
        return Moment(a.lanes)

    def _rsqrt(self, node: Node, a: Any) -> Moment:
        if not isinstance(a, Moment):
            raise self._fail(node)
        return Moment(a.lanes, a.eps, inverse_root=True)

    def _norm(self, node: Node, a: Lanes, moment: Moment) -> Lanes:
        if _same_lanes(a, moment.lanes) is None:
            raise self._fail(node, "scales one value by the norm of another, which has no llm form")
        value = self._emit(a, node, "norm_in")
        groups = int(np.prod(a.index.shape[:-1]))
        norm = Norm(value, "rms_norm", moment.eps, groups, module_path(node) or "norm")
        size = a.index.size
        index = np.moveaxis(np.arange(size).reshape(np.moveaxis(a.index, a.axis, 0).shape), 0, a.axis)
        return Lanes(norm, index, np.ones_like(index), a.axis)

    def _gain(self, node: Node, a: Lanes, vector: torch.Tensor) -> Lanes:
        assert isinstance(a.base, Norm)
        shape = a.index.shape
        spread = np.broadcast_to(widened(vector).float().numpy(), shape)
        gain = np.ascontiguousarray(np.moveaxis(spread, a.axis, 0).reshape(-1))
        value = self.build.norm(a.base, gain, None)
        return Lanes(value, a.index, a.sign, a.axis)

    def _layer_norm(
        self, node: Node, a: Any, shape: Any, gain: Any = None, bias: Any = None, eps: float = 1e-5,
        *_: Any,
    ) -> Lanes:  # fmt: skip
        value = self._emit(a, node, "norm_in")
        lanes = self._lanes(node, a)
        if len(shape) != 1 or lanes.index.size != shape[0]:
            raise self._fail(node, "over more or less than all channels has no llm form")
        norm = Norm(value, "layer_norm", float(eps), 1, module_path(node) or "norm")
        arrays = [None if v is None else widened(v).float().numpy() for v in (gain, bias)]
        return self._whole(self.build.norm(norm, *arrays), node)

    # ---- rotary embedding

    def _rotary(self, node: Node, a: Weighted, b: Weighted) -> Rotary:
        """cos-weighted lanes plus sin-weighted permuted lanes of the same value."""
        if (b.lanes.index == np.sort(b.lanes.index, axis=-1)).all() and (b.lanes.sign > 0).all():
            a, b = b, a
        x, rotated = a.lanes, b.lanes
        if x.base is not rotated.base or x.index.shape != rotated.index.shape or (x.sign < 0).any():
            raise self._fail(node, "of position tables is no rotary embedding")
        width = x.index.shape[-1]
        tables = [t.reshape(self.context, -1) for t in (a.table, b.table)]
        if any(t.shape[1] != width for t in tables):
            raise self._fail(node, "of position tables per head has no llm form")
        column = np.broadcast_to(np.arange(width), x.index.shape)
        return Rotary(x.base, x.index, rotated.index, rotated.sign, column, tables[0], tables[1], x.axis)

    # ---- matrix products and look-ups

    def _linear(self, node: Node, x: Any, weight: Any, bias: Any = None) -> Lanes:
        if not isinstance(weight, torch.Tensor):
            raise self._fail(node, "with a computed weight has no llm form")
        value = self._emit(x, node, "linear_in")
        name = module_path(node) or "linear"
        weight_name = self.build.names.get(id(weight), f"{name}.weight")
        linear = Linear(value, weight, bias, name, weight_name)
        return self._whole(linear, node)

    def _addmm(self, node: Node, bias: Any, x: Any, weight: Any) -> Lanes:
        if node.kwargs:
            raise self._fail(node, "with alpha or beta has no llm form")
        transposed = weight.t()
        self.build.names[id(transposed)] = self.build.names.get(id(weight), f"{node.name}.weight")
        return self._linear(node, x, transposed, bias)

    def _embedding(self, node: Node, table: Any, index: Any, *_: Any) -> Lanes:
        if not isinstance(index, Tokens) or not isinstance(table, torch.Tensor):
            raise self._fail(node, "of anything but token ids has no llm form")
        name = self.build.names.get(id(table), "embedding.weight")
        result = self.build.embedding(self.ids, table, name, module_path(node) or "embedding")
        return self._whole(result, node)

    def _attention(
        self, node: Node, q: Any, k: Any, v: Any, layer: int, scale: float, window: int, cap: float
    ) -> Lanes:
        path = module_path(node)
        values = [self._emit(x, node, n) for x, n in ((q, "q"), (k, "k"), (v, "v"))]
        heads, kv_heads = node.args[0].meta["val"].shape[1], node.args[1].meta["val"].shape[1]  # type: ignore[union-attr]
        width = int(node.args[2].meta["val"].shape[-1])  # type: ignore[union-attr]
        result = self.build.op(
            "llm.attention", values, tensor(f32, heads * width), f"{path}.attention",
            layer=int(layer), heads=int(heads), kv_heads=int(kv_heads), scale=float(scale),
            window=int(window) or None, softcap=float(cap) or None,
        )  # fmt: skip
        return self._whole(result, node)

    # ---- layout

    def _layout(self, node: Node, a: Lanes | Rotary, args: list[Any]) -> Any:
        args = [None if isinstance(v, Length) else v for v in args]
        try:
            return relayout(_name(node.target), a, args, _shape(node), _token_axis(node))
        except ValueError as error:
            raise self._fail(node, str(error)) from error

    def _cat(self, node: Node, parts: list[Any], dim: int = 0) -> Any:
        return self._join(node, parts, np.concatenate, dim)

    def _stack(self, node: Node, parts: list[Any], dim: int = 0) -> Any:
        return self._join(node, parts, np.stack, dim)

    def _join(self, node: Node, parts: list[Any], function: Any, dim: int) -> Any:
        axis = _token_axis(node)
        if axis is None:
            raise self._fail(node)
        try:
            return join(parts, function, dim, axis)
        except ValueError as error:
            raise self._fail(node, str(error)) from error

    # ---- emitting

    def _whole(self, base: Any, node: Node) -> Lanes:
        """All channels of a value, in the layout of the FX node."""
        index = np.arange(int(np.prod(_shape(node)))).reshape(_shape(node))
        axis = _token_axis(node)
        if axis is None:
            raise self._fail(node, "has no token axis")
        return Lanes(base, index, np.ones_like(index), axis)

    def _lanes(self, node: Node, value: Any) -> Lanes:
        if isinstance(value, Lanes):
            return value
        emitted = self._emit(value, node, "value")
        axis = value.lanes.axis if isinstance(value, Elementwise) else value.axis
        index = np.arange(value.lanes.index.size if isinstance(value, Elementwise) else value.index.size)
        shape = value.lanes.index.shape if isinstance(value, Elementwise) else value.index.shape
        index = np.moveaxis(index.reshape(np.moveaxis(np.empty(shape), axis, 0).shape), 0, axis)
        return Lanes(emitted, index, np.ones_like(index), axis)

    def _emit(self, value: Any, node: Node, role: str) -> SSAValue:
        """The `[tokens, channels]` SSA value of a symbolic value."""
        path = module_path(node)
        try:
            match value:
                case Lanes():
                    return self.build.lanes(value)
                case Rotary():
                    return self.build.rotary(value, f"{path}.rope_{role}" if len(role) == 1 else path)
                case Elementwise():
                    return self.build.elementwise(value)
                case Table(axis=1) if value.value.dim() == 3:
                    name = f"{path}.positions".lstrip(".")
                    return self.build.embedding(self.positions, self._rows(node, value)[0], name, name)
        except ValueError as error:
            raise self._fail(node, str(error)) from error
        raise self._fail(node, f"takes a {type(value).__name__.lower()}, which has no llm form")


def _live_nodes(graph: torch.fx.Graph) -> list[Node]:
    """Nodes the output depends on, in order."""
    live: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op in ("output", "placeholder") or node in live or _writes(node):
            live.update(node.all_input_nodes)
            live.add(node)
    return [n for n in graph.nodes if n in live]


def _writes(node: Node) -> bool:
    """Whether an op writes to its first argument, which later ops may read."""
    return hasattr(node.target, "_schema") and node.target._schema.is_mutable


def _name(target: Any) -> str:
    return target._schema.name.split("::")[-1] if hasattr(target, "_schema") else str(target)


def _flatten(values: list[Any]) -> list[Any]:
    return [v for x in values for v in (_flatten(x) if isinstance(x, list) else [x])]


def _concrete(value: Any, context: int, short: bool) -> Any:
    """An argument with tables and lengths as numbers, of the whole context or of a few positions."""
    match value:
        case list():
            return [_concrete(v, context, short) for v in value]
        case Length():
            return SHORT if short else context
        case Table():
            return value.short if short else value.value
    return value


def _is_number(value: Any) -> bool:
    return value is None or isinstance(
        value, int | float | bool | str | torch.dtype | torch.device | torch.layout
    )


def _number(value: Any) -> float | None:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value)
    return float(value) if isinstance(value, int | float) else None


def _shape(node: Node) -> tuple[int, ...]:
    """Shape of an FX value with the token axis of size 1; empty if it is a list of values."""
    shape = getattr(node.meta["val"], "shape", ())
    return tuple(d if isinstance(d, int) else 1 for d in shape)


def _token_axis(node: Node) -> int | None:
    value = node.meta.get("val")
    axes = [i for i, d in enumerate(getattr(value, "shape", ())) if not isinstance(d, int)]
    return axes[0] if len(axes) == 1 else None


def _function(value: Lanes | Elementwise) -> Callable[[torch.Tensor], torch.Tensor]:
    return value.function if isinstance(value, Elementwise) else lambda x: x


def _compose(node: Node, value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Elementwise:
    inner = _function(value)
    lanes = value.lanes if isinstance(value, Elementwise) else value
    return Elementwise(lanes, lambda x: function(inner(x)), module_path(node))


def _same_lanes(a: Any, b: Any) -> Lanes | None:
    """The lanes that both are functions of, if they are the same."""
    if not isinstance(a, Lanes | Elementwise) or not isinstance(b, Lanes | Elementwise):
        return None
    x, y = (v.lanes if isinstance(v, Elementwise) else v for v in (a, b))
    same = x.base is y.base and np.array_equal(x.index, y.index) and np.array_equal(x.sign, y.sign)
    return x if same else None
