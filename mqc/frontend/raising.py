"""FX graph of aten ops → `llm` dialect, by algebra over what each op does to channels.

No module or model name decides anything: names only label values and errors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node
from xdsl.dialects import func
from xdsl.dialects.builtin import DYNAMIC_INDEX, ModuleOp, TensorType, f32, i64
from xdsl.ir import SSAValue

from mqc.dialects.expressions import Argument
from mqc.dialects.llm import ElementwiseOp, Llm
from mqc.errors import UnsupportedOpError
from mqc.frontend.builder import Builder, activation
from mqc.frontend.convolution import Convolved, check_convolution
from mqc.frontend.elementwise import composed, elementwise_form, of_one, softcapped
from mqc.frontend.given import Given
from mqc.frontend.joins import Blank, BlankPart, Joined, rotated_first
from mqc.frontend.lanes import (
    NOT_EMITTED,
    SHORT,
    Centered,
    ComplexPairs,
    Convolution,
    Elementwise,
    Lanes,
    Length,
    Linear,
    Lookup,
    Mean,
    Moment,
    Norm,
    Rotary,
    Sum,
    Table,
    Tokens,
    Weighted,
    expression_of,
    in_place,
    lanes_of,
    may_be_cut,
    same_lanes,
    spread,
    with_bias,
    with_factors,
)
from mqc.frontend.layout import VIEWS, join, relayout
from mqc.frontend.linear_attention import Scaled, raised
from mqc.frontend.nodes import (
    IDENTITY,
    flattened,
    is_number,
    live_nodes,
    number_of,
    op_name,
    shape_of,
    token_axis,
    writes,
)
from mqc.frontend.norms import moment
from mqc.frontend.rotary import rotary_of, rotary_of_complex, scaled_rotary, weighted
from mqc.frontend.routing import Preference, Routed, Weights, nowhere, softmax_of, step
from mqc.frontend.scores import Scores, added_to, changed, product, shares_of
from mqc.frontend.source import module_path, source_line
from mqc.frontend.stacked import Stacked, Summands, repeated, step_of_all, summands
from mqc.frontend.tables import evaluated, rows_of, table_plus
from mqc.ir.module import set_level
from mqc.ir.op import attr, tensor
from mqc.ir.weight_store import WeightStore

aten = torch.ops.aten


def raise_program(
    program: ExportedProgram, weights: WeightStore, context: int, vocabulary: int, given: Given | None = None
) -> ModuleOp:
    """The `llm` module of a traced model; its tensors go to `weights`.

    Args:
        program: `logits(input_ids, position_ids)` from `trace`.
        context: number of positions for which position tables are computed.
        vocabulary: number of logits.
        given: what the model's files say of the integers of its matrices.

    Raises:
        UnsupportedOpError: an op or a combination of ops has no form in the `llm` dialect.
    """
    return _Raising(program, context, vocabulary, partial(Builder, weights=weights, given=given)).run()


class _Raising:
    def __init__(self, program: ExportedProgram, context: int, vocabulary: int, builder: Any) -> None:
        self.program, self.context = program, context
        self.values: dict[Node, Any] = {}
        index = TensorType(i64, [DYNAMIC_INDEX])
        self.function = func.FuncOp("main", ([index, index], [tensor(f32, vocabulary)]))
        block = self.function.body.block
        block.args[0].name_hint, block.args[1].name_hint = "ids", "positions"
        self.ids, self.positions = block.args
        self.build: Builder = builder(block, positions=self.positions)
        self.handlers: dict[str, Callable[..., Any]] = {
            "addmm": self._addmm, "attention": self._attention, "baddbmm": self._baddbmm,
            "bmm": self._matmul, "matmul": self._matmul,
            **dict.fromkeys(("cat", "concat", "concatenate"), partial(self._join, np.concatenate)),
            "conv1d": self._convolution, "embedding": self._embedding, "layer_norm": self._layer_norm,
            "linear": self._linear, "mean": self._mean, "neg": self._neg, "rsqrt": self._rsqrt,
            "softmax": lambda node, x, dim, *_: softmax_of(x, dim, len(shape_of(node))),
            "square": lambda node, a: self._pow(node, a, 2), "stack": partial(self._join, np.stack),
            "view_as_complex": lambda node, a: ComplexPairs(self._lanes(node, a)),
            "view_as_real": lambda node, a: rotary_of_complex(a, self.context),
            "scaled_dot_product_attention": self._whole_attention, "linear_attention": self._linear_attention,
            "new_empty": lambda node, *_: Blank(shape_of(node), token_axis(node)), "copy_": self._copy,
            "experts_in": self._experts, "experts_out": self._experts,
            "full_like": lambda node, *args: nowhere(*args), "repeat": lambda node, *args: repeated(*args),
        }  # fmt: skip
        self.binary = {
            aten.mul.Tensor: self._mul, aten.mul.Scalar: self._mul, aten.add.Tensor: self._add,
            aten.sub.Tensor: self._sub, aten.pow.Tensor_Scalar: self._pow, aten.div.Tensor: self._div,
        }  # fmt: skip
        self.in_place = {
            aten.mul_.Tensor: self._mul, aten.add_.Tensor: self._add, aten.div_.Tensor: self._div,
        }  # fmt: skip

    def run(self) -> ModuleOp:
        constants = {**self.program.state_dict, **self.program.constants}
        signature = self.program.graph_signature
        targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        for node in live_nodes(self.program.graph):
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node, targets, constants)
            elif node.op == "call_function":
                self.build.location = source_line(node)
                self.build.locations.setdefault(module_path(node), self.build.location)
                try:
                    self.values[node] = self._call(node)
                except ValueError as error:
                    raise self._fail(node, str(error)) from error
            elif node.op == "output":
                value, self.cap = softcapped(self.values[node.args[0][0]])  # type: ignore[index]
                logits = self._emit(value, node, "logits")
                if isinstance(logits.owner, ElementwiseOp):
                    raise self._fail(node, "is a function of the logits, which has no integer form yet")
                self.build.block.add_op(func.ReturnOp(logits))
        module = ModuleOp([self.function])
        if self.cap is not None:
            module.attributes["mqc.logit_cap"] = attr(self.cap)
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
        """What an FX node is. Raises `ValueError` with the reason where an op has no `llm` form."""
        target = node.target
        args = [self._value(a) for a in node.args]
        if target is aten.sym_size.int:
            return Length()
        if target is operator.neg and args == [Length()]:
            return Length(negative=True)
        tensors = [a for a in flattened(args) if not is_number(a)]
        if all(isinstance(a, torch.Tensor | Table | Length) for a in tensors):
            return self._fold(node, args)
        if target in IDENTITY:
            return args[0]
        if target is operator.getitem:
            return args[0][args[1]]
        if op_name(target) != "attention":
            args = [
                self._of_joined(a, n) if isinstance(a, Joined) else a
                for a, n in zip(args, node.args, strict=True)
            ]
        if any(isinstance(a, Scores) for a in args):
            return self._of_scores(node, args)
        if isinstance(args[0], Stacked | Summands):
            return self._stacked(node, *args)
        if op_name(target) == "topk" or any(isinstance(a, Routed) for a in flattened(args)):
            return self._routed(node, args)
        if target in self.binary:
            return self.binary[target](node, args[0], args[1])
        if target in self.in_place:
            self.values[node.args[0]] = result = self.in_place[target](node, args[0], args[1])  # type: ignore[index]
            return result
        if (form := elementwise_form(target)) is not None:
            return self._elementwise(node, form, args)
        if op_name(target) in self.handlers:
            return self.handlers[op_name(target)](node, *args)
        if op_name(target) == "expand_as" and isinstance(args[0], torch.Tensor):
            return args[0]  # whoever takes it broadcasts
        if isinstance(args[0], Tokens) and op_name(target) in ("view", "reshape"):
            return args[0]
        if isinstance(args[0], Elementwise):
            if isinstance(args[0].lanes.base, Convolution) and op_name(target) not in VIEWS:
                return args[0].of(lambda lanes: self._layout(node, lanes, args[1:]))
            args[0] = self._lanes(node, args[0])
        if isinstance(args[0], Blank | Convolved) and op_name(target) == "slice":
            return args[0].slice(args[1:])
        if isinstance(args[0], Lanes | Rotary):
            return self._layout(node, args[0], args[1:])
        raise self._fail(node)

    def _value(self, argument: Any) -> Any:
        if isinstance(argument, Node):
            return self.values[argument]
        if isinstance(argument, list | tuple):
            return [self._value(a) for a in argument]
        return argument

    def _of_joined(self, value: Joined, node: Any) -> Lanes:
        """Channels of two values as one, for whatever reads their FX node."""
        self.values[node] = whole = self._whole(self._emit(value, node, "part"), node)
        return whole

    def _fold(self, node: Node, args: list[Any]) -> Any:
        """Evaluate what depends on weights and positions alone."""
        result = evaluated(node, args, self.context)
        if not isinstance(result, Table) and not any(isinstance(a, Table | Length) for a in flattened(args)):
            name = self.build.names.get(id(args[0])) if args else None
            if name and isinstance(result, torch.Tensor):
                self.build.names[id(result)] = name
            self.build.keep_alive.append(result)
        elif writes(node):
            self.values[node.args[0]] = result  # type: ignore[index]
        return result

    # ---- arithmetic

    def _mul(self, node: Node, a: Any, b: Any) -> Any:
        if isinstance(a, torch.Tensor) or is_number(a):
            a, b = b, a
        number = number_of(b)
        if isinstance(a, Table | Moment):
            a, b = b, a
        match a, b:
            case Rotary(), Table() if (a.column >= 0).all():
                return scaled_rotary(a, rows_of(b, self.context), self.context)
            case (Rotary(), _) | (Elementwise(), Table()):
                return self._mul(node, self._lanes(node, a), b)
            case Lanes() | Elementwise(), _ if number is not None:
                return composed(node, a, "mul", number)
            case ComplexPairs(table=None), Table():
                return replace(a, table=rows_of(b, self.context))
            case Lanes(), Table():
                return weighted(a, rows_of(b, self.context), self.context)
            case Lanes() | Elementwise(), Moment(inverse_root=True, centered=False):
                return self._norm(node, self._lanes(node, a), b)
            case Centered(squared=False), Moment(inverse_root=True, centered=True):
                return self._norm(node, a.lanes, b)
            case Centered(squared=False), Centered(squared=False) if a is b:
                return Centered(a.lanes, squared=True)
            case Lanes(base=Norm(gain=None, bias=None) as norm), torch.Tensor():
                return replace(a, base=replace(norm, gain=spread(a, b), emitted={}))
            case Lanes(), torch.Tensor() if (product := with_factors(a, b)) is not None:
                return product
            case Lanes() | Elementwise(), torch.Tensor():
                return Scaled(a, spread(lanes_of(a), b))
        return of_one(node, "mul", a, b) or self._binary(node, "mul", a, b)

    def _add(self, node: Node, a: Any, b: Any) -> Any:
        if node.kwargs.get("alpha", 1) != 1:
            raise self._fail(node, "with alpha has no llm form")
        if isinstance(a, torch.Tensor | Table) or is_number(a):
            a, b = b, a
        number = number_of(b)
        match a, b:
            case Moment(inverse_root=False), _ if number is not None:
                return replace(a, eps=a.eps + number)
            case Lanes() | Elementwise(), _ if number is not None:
                return composed(node, a, "add", number)
            case Weighted(), Weighted():
                return rotary_of(a, b, self.context)
            case Lanes(), torch.Tensor() if (biased := with_bias(a, b)) is not None:
                return biased
        if isinstance(b, torch.Tensor) and b.numel() == b.shape[-1] > 1:
            if (table := table_plus(a, b)) is not None:
                return table
            if isinstance(a, Elementwise):
                return Preference(a, bias=b.reshape(-1))
        return of_one(node, "add", a, b) or self._binary(node, "add", a, b)

    def _sub(self, node: Node, a: Any, b: Any) -> Any:
        number = number_of(b)
        if isinstance(a, Weighted) and isinstance(b, Weighted):
            return rotary_of(a, b.negated(), self.context)
        if isinstance(b, Mean) and isinstance(a, Lanes | Elementwise):
            lanes = self._lanes(node, a)
            if same_lanes(lanes, b.lanes) is not None:
                return Centered(lanes)
        if number is not None and isinstance(a, Lanes | Elementwise):
            return composed(node, a, "sub", number)
        if (result := of_one(node, "sub", a, b)) is None:
            raise self._fail(node)
        return result

    def _div(self, node: Node, a: Any, b: Any) -> Any:
        number = number_of(b)
        if number is not None:
            return self._mul(node, a, 1.0 / number)
        if (result := of_one(node, "div", a, b)) is None:
            raise self._fail(node, "by a tensor has no llm form")
        return result

    def _pow(self, node: Node, a: Any, b: Any) -> Any:
        if isinstance(a, Moment) and b == -0.5:
            return self._rsqrt(node, a)
        if isinstance(a, Centered) and not a.squared and b == 2:
            return Centered(a.lanes, squared=True)
        if isinstance(a, Rotary):
            a = self._lanes(node, a)
        if not isinstance(a, Lanes | Elementwise):
            raise self._fail(node)
        power = composed(node, a, "pow", float(b))
        if isinstance(a, Elementwise) and activation(power.function) is None:
            return self._pow(node, self._lanes(node, a), b)
        return power

    def _neg(self, node: Node, a: Any) -> Any:
        if isinstance(a, Lanes):
            return Lanes(a.base, a.index, -a.sign, a.axis)
        return composed(node, a, "neg")

    def _elementwise(self, node: Node, form: Callable[..., Argument], args: list[Any]) -> Any:
        """An elementwise function of one value and numbers."""
        numbers = [None if a is None else number_of(a) for a in args]
        values = [
            None if a is None or n is not None else a if isinstance(a, Elementwise) else self._lanes(node, a)
            for a, n in zip(args, numbers, strict=True)
        ]
        given = [v for v in values if v is not None]
        if any(same_lanes(given[0], v) is None for v in given):
            raise self._fail(node, "of two values has no llm form")
        arguments = [n if v is None else expression_of(v) for v, n in zip(values, numbers, strict=True)]
        result = Elementwise(lanes_of(given[0]), form(*arguments, **node.kwargs), module_path(node))
        if writes(node):
            self.values[node.args[0]] = result  # type: ignore[index]
        return result

    def _binary(self, node: Node, kind: str, a: Any, b: Any) -> Lanes:
        apart = all(isinstance(lanes_of(x), Lanes) and may_be_cut(lanes_of(x)) for x in (a, b))
        if kind == "add" and apart and lanes_of(a).index.shape == lanes_of(b).index.shape:
            return self._whole(Sum(a, b, f"{module_path(node)}.add".lstrip(".")), node)
        left, right = (self._emit(v, node, kind) for v in (a, b))
        shapes = [shape_of(n) for n in node.args[:2]]  # type: ignore[arg-type]
        if kind == "mul" and (gated := self.build.gate(left, right, shapes, module_path(node))) is not None:
            return self._whole(gated, node)
        if left.type != right.type:
            raise self._fail(node, f"of {left.type} and {right.type} has no llm form")
        result = self.build.op(
            f"llm.{kind}", [left, right], left.type, f"{module_path(node)}.{kind}".lstrip(".")
        )
        return self._whole(result, node)

    # ---- experts

    def _routed(self, node: Node, args: list[Any]) -> Any:
        """A step of the choice of experts, or the end of it."""
        if op_name(node.target) != "gates":
            result = step(op_name(node.target), args, shape_of(node))
            if writes(node):
                self.values[node.args[0]] = result  # type: ignore[index]
            return result
        index, weights = args[:2]
        if not isinstance(weights, Weights) or weights.chosen is not index:
            raise self._fail(node, "with weights of other experts has no llm form")
        scores = self._emit(index.by.scores, node, "scores")
        return self._whole(self.build.route(scores, weights, f"{module_path(node)}.gates"), node)

    def _experts(self, node: Node, x: Any, gates: Any, stack: torch.Tensor, bias: Any = None) -> Lanes:
        """The first matrices of chosen experts, or the sum over their last ones."""
        value, chosen = self._emit(x, node, "linear_in"), self._emit(gates, node, "gates")
        path, name = module_path(node), self.build.names.get(id(stack), f"{node.name}.weight")
        if op_name(node.target) == "experts_in":
            return self._whole(Linear(value, stack, bias, path, name, chosen), node)
        return self._whole(self.build.routed_sum(value, chosen, stack, name, path), node)

    def _stacked(self, node: Node, *args: Any) -> Any:
        """An op of values of all experts, one expert after the other."""
        result = step_of_all(self.build, node, args, partial(self._emit, node=node))
        return result if isinstance(result, Stacked | Summands) else self._whole(result, node)

    # ---- norms

    def _mean(self, node: Node, a: Any, dims: Any, keepdim: bool = False) -> Moment | Mean:
        if list(dims) == [-1] and keepdim and isinstance(a, Centered | Lanes | Elementwise):
            return moment(a) or Mean(self._lanes(node, a))
        raise self._fail(node, "has no llm form but in a norm over the last axis")

    def _rsqrt(self, node: Node, a: Any) -> Moment:
        if not isinstance(a, Moment):
            raise self._fail(node)
        return replace(a, inverse_root=True)

    def _norm(self, node: Node, a: Lanes, moment: Moment) -> Lanes:
        if same_lanes(a, moment.lanes) is None:
            raise self._fail(node, "scales one value by the norm of another, which has no llm form")
        value = a if isinstance(a.base, NOT_EMITTED) else self._emit(a, node, "norm_in")
        groups = int(np.prod(a.index.shape[:-1]))
        kind = "layer_norm" if moment.centered else "rms_norm"
        norm = Norm(value, kind, moment.eps, groups, module_path(node) or "norm")
        return Lanes(norm, in_place(a), np.ones_like(a.index), a.axis)

    def _layer_norm(
        self, node: Node, a: Any, shape: Any, gain: Any = None, bias: Any = None, eps: float = 1e-5,
        *_: Any,
    ) -> Lanes:  # fmt: skip
        lanes = self._lanes(node, a)
        if len(shape) != 1 or lanes.axis == lanes.index.ndim - 1:
            raise self._fail(node, "over more than the last axis has no llm form")
        norm = self._norm(node, lanes, Moment(lanes, float(eps), centered=True))
        vectors = {key: spread(norm, v) for key, v in (("gain", gain), ("bias", bias)) if v is not None}
        base: Any = norm.base
        return replace(norm, base=replace(base, **vectors))

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
        if not isinstance(weight, torch.Tensor):
            raise self._fail(node, "with a computed weight has no llm form")
        transposed = weight.t()
        self.build.names[id(transposed)] = self.build.names.get(id(weight), f"{node.name}.weight")
        return self._linear(node, x, transposed, bias)

    def _embedding(self, node: Node, table: Any, index: Any, *_: Any) -> Lanes:
        if not isinstance(index, Tokens) or not isinstance(table, torch.Tensor):
            raise self._fail(node, "of anything but token ids has no llm form")
        name = self.build.names.get(id(table), "embedding.weight")
        return self._whole(Lookup(self.ids, table, module_path(node) or "embedding", name), node)

    def _attention(
        self, node: Node, q: Any, k: Any, v: Any, layer: int, scale: float, window: int, cap: float,
        sinks: Any, chunk: int, *_: Any,
    ) -> Lanes:  # fmt: skip
        heads, kv_heads = (int(x.meta["val"].shape[1]) for x in node.args[:2])  # type: ignore[union-attr]
        width = int(node.args[2].meta["val"].shape[-1])  # type: ignore[union-attr]
        q, k = rotated_first(q, k)
        return self._attend(
            node, (q, k, v), heads * width, layer=layer, heads=heads, kv_heads=kv_heads,
            scale=float(scale), window=int(window) or None, softcap=float(cap) or None, sinks=sinks,
            chunk=int(chunk) if 0 < chunk < self.context else None,
        )  # fmt: skip

    def _attend(self, node: Node, operands: tuple[Any, Any, Any], size: int, **properties: Any) -> Lanes:
        values = [self._emit(x, node, n) for x, n in zip(operands, "qkv", strict=True)]
        return self._whole(
            self.build.attention(values, size, f"{module_path(node)}.attention", **properties), node
        )

    def _matmul(self, node: Node, a: Any, b: Any) -> Lanes | Scores | Summands:
        if isinstance(b, torch.Tensor) and b.ndim == 2:
            return self._addmm(node, None, a, b)
        if isinstance(a, torch.Tensor) and a.ndim == 2 and shape_of(node) == (1, len(a), 1):
            return self._linear(node, b, a)  # channels before tokens
        if isinstance(b, torch.Tensor) and b.ndim == 3:
            return summands(self.build, node, self._emit(a, node, "linear_in"), b)
        a, b = (self._lanes(node, x) if isinstance(x, Elementwise) else x for x in (a, b))
        return product(a, b)

    def _baddbmm(self, node: Node, added: Any, a: Any, b: Any) -> Scores:
        factors: dict[str, Any] = dict(node.kwargs)
        return added_to(self._matmul(node, a, b), added, **factors)

    def _whole_attention(
        self, node: Node, q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, causal: bool = False
    ) -> Lanes:
        scale: Any = node.kwargs.get("scale")
        return self._weighted_sum(node, shares_of(q, k, mask, causal, scale), v)

    def _of_scores(self, node: Node, args: list[Any]) -> Any:
        """An op of attention that the model computes itself."""
        name = op_name(node.target).removesuffix("_")
        if name in ("matmul", "bmm") and isinstance(args[0], Scores):
            result: Any = self._weighted_sum(node, args[0], args[1])
        else:
            result = changed(name, args)
        if writes(node):
            self.values[node.args[0]] = result  # type: ignore[index]
        return result

    def _weighted_sum(self, node: Node, shares: Scores, v: Any) -> Lanes:
        v = self._lanes(node, v) if isinstance(v, Elementwise) else v
        heads, kv_heads = shares.heads
        if not shares.shares or not isinstance(v, Lanes) or v.axis != v.index.ndim - 2:
            raise ValueError("of attention and anything but values has no llm form")
        return self._attend(
            node, (shares.q, shares.k, v), heads * v.index.shape[-1], layer=None, heads=heads,
            kv_heads=kv_heads, scale=shares.scale, window=shares.window, softcap=None, key_bias=shares.bias,
        )  # fmt: skip

    def _convolution(self, node: Node, x: Any, weight: Any, bias: Any = None, *more: Any) -> Convolved:
        lanes = self._lanes(node, x)
        check_convolution(lanes, weight, more)
        name = f"{module_path(node)}.conv".lstrip(".")
        weight_name = self.build.names.get(id(weight), f"{name}.weight")
        return Convolved(self._whole(Convolution(lanes, weight, bias, name, weight_name), node))

    def _linear_attention(self, node: Node, *operands: Any) -> Lanes:
        return self._whole(raised(self.build, node, operands, partial(self._emit, node=node)), node)

    # ---- layout

    def _layout(self, node: Node, a: Lanes | Rotary, args: list[Any]) -> Any:
        return relayout(op_name(node.target), a, args, shape_of(node), token_axis(node))

    def _join(self, function: Any, node: Node, parts: list[Any], dim: int = 0) -> Any:
        axis = token_axis(node)
        if axis is None:
            raise self._fail(node)
        return join(parts, function, dim, axis)

    def _copy(self, node: Node, place: Any, value: Any, *_: Any) -> Any:
        if not isinstance(place, BlankPart):
            raise self._fail(node, "to anything but a part of a new tensor has no llm form")
        place.fill(value)
        return place

    # ---- emitting

    def _whole(self, base: Any, node: Node) -> Lanes:
        """All channels of a value, in the layout of the FX node."""
        index = np.arange(int(np.prod(shape_of(node)))).reshape(shape_of(node))
        axis = token_axis(node)
        if axis is None:
            raise self._fail(node, "has no token axis")
        return Lanes(base, index, np.ones_like(index), axis)

    def _lanes(self, node: Node, value: Any) -> Lanes:
        if isinstance(value, Lanes):
            return value
        if isinstance(value, Elementwise) and isinstance(value.lanes.base, NOT_EMITTED):
            emitted: Any = value
        else:
            emitted = self._emit(value, node, "value")
        index = in_place(value)
        axis = value.lanes.axis if isinstance(value, Elementwise) else value.axis
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
                case Joined():
                    parts = [self._emit(part, node, role) for part in value.parts]
                    return self.build.join(parts, value, f"{path}.join")
                case Blank():
                    return self._emit(value.joined(), node, role)
                case Table(axis=1) if value.value.dim() == 3:
                    name = f"{path}.positions".lstrip(".")
                    return self.build.embedding(self.positions, rows_of(value, self.context)[0], name, name)
        except ValueError as error:
            raise self._fail(node, str(error)) from error
        what = getattr(value, "WHAT", f"a {type(value).__name__.lower()}")
        raise self._fail(node, f"of {what} has no llm form")
