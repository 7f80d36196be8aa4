"""What both ONNX forms share: inputs, outputs, the cache, and the walk over the module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from onnx import TensorProto
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.analysis.evaluation import Evaluation
from mqc.backends.onnx.graph import DataFile, Graph, Shape
from mqc.backends.onnx.select import RULES
from mqc.dialects import int_ops
from mqc.errors import TargetError
from mqc.ir.module import main_function, ops_by_name, returned_value
from mqc.ir.op import MqcOp, State, channels, element_type
from mqc.ir.weight_store import WeightStore, numpy_dtype

IDS, POSITIONS, LOGITS, LOGIT_ROWS = "input_ids", "position_ids", "logits", "logit_rows"


@dataclass(frozen=True)
class Lengths:
    """Sizes of a graph: `tokens` new ones behind `past` positions in the cache; None is dynamic.

    With a fixed `past`, rows of the cache from the first new position on are not read.
    """

    tokens: int | None = None
    past: int | None = None

    @property
    def token_dim(self) -> int | str:
        return "tokens" if self.tokens is None else self.tokens

    @property
    def past_dim(self) -> int | str:
        return "past" if self.past is None else self.past

    @property
    def seen(self) -> int | str:
        return "seen" if self.tokens is None or self.past is None else self.tokens + self.past


def past_name(state: State) -> str:
    """Name of the graph input with what earlier calls left of a state, e.g. `past_key.3`."""
    return f"past_{state.name}"


def new_name(state: State) -> str:
    """Name of the graph output with the rows of the new tokens, or what a fixed state has become."""
    return f"new_{state.name}"


class Emitter:
    """Base of the forms: subclasses have a method for each `int` op (`mqc.backends.onnx.select.RULES`).

    The graph takes `input_ids` `[tokens]`, `position_ids` `[tokens]` (prefix included, consecutive), for
    each layer `past_key.L` and `past_value.L`, u8 `[past, kv_heads, head_dim]`, and where the number of
    tokens is dynamic `logit_rows` `[rows]`, the tokens whose logits are wanted. It gives `logits`
    `[rows, vocabulary]`, those of all tokens where their number is fixed, and `new_key.L`, `new_value.L`
    `[tokens, kv_heads, head_dim]`, which belong behind the past rows.
    """

    OPSET: ClassVar[int] = 21
    #: dtype of ids, positions and rows.
    INDEX: ClassVar[Any] = np.int64

    def __init__(
        self,
        module: ModuleOp,
        weights: WeightStore,
        data: DataFile,
        lengths: Lengths,
        blocked: bool = False,
    ) -> None:
        """With `blocked`, 4-bit weights in groups are dequantized block by block (QDQ for CPUs)."""
        self.module, self.weights, self.lengths, self.blocked = module, weights, lengths, blocked
        self.names: dict[MqcOp, str] = {op: name for name, op in ops_by_name(module).items()}
        self.graph = Graph(data, weights, self.names.values())
        self.values: dict[SSAValue, str] = {}
        #: For the weights of ops: `LinearOp.matrix`, `EmbeddingOp.evaluate`.
        self.evaluation = Evaluation(module, weights)
        self._masks: dict[tuple[int | None, int | None], str] = {}
        self._keys = ""
        self._places: dict[tuple[int, int], str] = {}
        self._head_shapes: dict[tuple[int, int], str] = {}
        self._flat_shapes: dict[int, str] = {}

    def emit(self, every_value: bool = False) -> Graph:
        """Emit all ops. With `every_value` all values are graph outputs, as they are stored."""
        g, lengths = self.graph, self.lengths
        block = main_function(self.module).body.block
        self.ids = g.input(IDS, self.INDEX, [lengths.token_dim])
        self.positions = g.input(POSITIONS, self.INDEX, [lengths.token_dim])
        self.values.update(zip(block.args, (self.ids, self.positions), strict=True))
        self.wanted = g.input(LOGIT_ROWS, self.INDEX, ["rows"]) if lengths.tokens is None else None
        for op, name in self.names.items():
            for state in op.states():
                shape = [lengths.past_dim, *state.shape] if state.grows else list(state.shape)
                g.input(past_name(state), numpy_dtype(state.element), shape)
            rule: Callable[[Any], None] | None = getattr(self, RULES.get(type(op), ""), None)
            if rule is None:
                raise TargetError(f"onnx: {op.name} %{name} has no ONNX form")
            with g.scope(name):
                rule(op)
            value = op.results[0]
            if every_value and value in self.values and value is not returned_value(self.module):
                g.output(
                    self.values[value], numpy_dtype(element_type(value)), [lengths.token_dim, channels(value)]
                )
        if not g.gives(LOGITS):
            last = self.name(returned_value(self.module))
            raise TargetError(f"onnx: %{last} must be an int.requant to give the logits")
        return g

    def name(self, value: SSAValue) -> str:
        """Name of a value in the module."""
        assert isinstance(value.owner, MqcOp)
        return self.names[value.owner]

    def is_logits(self, value: SSAValue) -> bool:
        return value is returned_value(self.module)

    def table_rows(self, op: int_ops.EmbeddingOp) -> str:
        """The rows `[tokens, channels]` of the op's table, which may lie as a matrix product takes it."""
        table, indices = self.graph.weight(op.table), self.values[op.indices]
        if op.layout is None:
            return self.graph.op("Gather", table, indices, axis=0)
        return self.graph.op("Transpose", self.graph.op("Gather", table, indices, axis=1), perm=[1, 0])

    def select_rows(self, x: str) -> str:
        """The rows of `x` `[tokens, …]` whose logits are wanted."""
        return x if self.wanted is None else self.graph.op("Gather", x, self.wanted, axis=0)

    @property
    def logit_shape(self) -> Shape:
        return ["rows" if self.wanted else self.lengths.token_dim, channels(returned_value(self.module))]

    def matrix(self, op: int_ops.LinearOp) -> str:
        """The effective s8 weight `[inputs, outputs]`. Runtimes unpack 4-bit values when they load.

        Equal weights of two products are two initializers, whose bytes stand in the file once: ONNX
        Runtime's option `x64quantprecision` refuses one that two products share.
        """
        g, k, n = self.graph, channels(op.x), channels(op.result)
        if op.get("weight_bits") == 8:
            return g.weight(op.weight, meaning=self.names[op])
        packed = g.weight(op.weight, TensorProto.INT4, (k, n), meaning=self.names[op])
        if op.group_scale is None:
            return g.op("Cast", packed, to=TensorProto.INT8)
        factor = self.weights[op.group_scale].T.astype(np.int32)
        blocks = self.reshape(g.op("Cast", packed, to=TensorProto.INT32), (len(factor), -1, n))
        scaled = g.op("Mul", blocks, g.constant(factor[:, None]))
        return g.op("Cast", self.reshape(scaled, (k, n)), to=TensorProto.INT8)

    # ---- experts

    def chosen(self, op: int_ops.RouteOp, choice: str, hidden: str) -> str:
        """Which experts a token goes to, boolean `[tokens, experts]`; hidden: a choice below all others."""
        g, last = self.graph, self.graph.constant(np.array([-1], np.int64))
        if op.get("top_groups") < op.get("groups"):
            parts = self.reshape(choice, (0, op.get("groups"), op.group_size))
            best = self.largest(parts, op.get("group_scores"))[0]
            kept = self.among_largest(g.op("ReduceSum", best, last, keepdims=0), op.get("top_groups"))
            parts = g.op("Where", g.op("Unsqueeze", kept, last), parts, hidden)
            choice = self.reshape(parts, (0, channels(op.x)))
        return self.among_largest(choice, op.get("top_k"))

    def largest(self, x: str, count: int) -> list[str]:
        """The largest of the last axis, and their places; of equal ones the first."""
        wanted = self.graph.constant(np.array([count], np.int64))
        return self.graph.ops("TopK", [x, wanted], [None, None], axis=-1, largest=1, sorted=1)

    def among_largest(self, x: str, count: int) -> str:
        """Where the largest of the last axis stand, boolean."""
        g, places = self.graph, self.largest(x, count)[1]
        none = g.op("Cast", g.op("Sub", x, x), to=TensorProto.INT64)
        ones = g.op("Cast", g.op("Equal", places, places), to=TensorProto.INT64)
        return g.op("Cast", g.op("ScatterElements", none, places, ones, axis=-1), to=TensorProto.BOOL)

    # ---- convolutions

    def taps(self, op: int_ops.CausalConvOp, x: str) -> list[str]:
        """What each tap of a convolution meets: rows `[tokens, channels]` of stored integers, `x_zero` where
        there are none. x: those of the new tokens."""
        g, before = self.graph, op.taps - 1
        (state,) = op.states()
        nothing = np.full((before, channels(op.x)), op.get("x_zero"), numpy_dtype(state.element))
        rows = self.rows(state, x)
        seen = g.op("Concat", g.constant(nothing), rows, axis=0) if before else rows
        places = (self.places(past_name(state), i, before) for i in range(op.taps))
        return [g.op("Gather", seen, place, axis=0) for place in places]

    def places(self, past: str, tap: int, before: int) -> str:
        """Where rows `tap − before` tokens behind each token stand: after as many empty ones, and all of the
        cache, stand the new ones."""
        key = tap, before
        if key not in self._places:
            g, index, lengths = self.graph, self.INDEX, self.lengths
            with g.scope("places"):
                offset = g.constant(np.array(tap, index))
                if lengths.past is None:
                    one = g.constant(np.array(1, np.int64))
                    first = g.op("Squeeze", g.op("Shape", past, start=0, end=1))
                    end = g.op("Add", first, g.op("Squeeze", g.op("Shape", self.ids)))
                    self._places[key] = g.op("Add", g.op("Range", first, end, one), offset)
                else:
                    # Rows of the cache from the first new position on are passed over.
                    zero = g.constant(np.array([0], np.int64))
                    first = g.op("Gather", self.positions, zero)
                    place = g.op("Add", self.positions, offset)
                    empty = g.op("Sub", g.constant(np.array(lengths.past, index)), first)
                    old = g.op("Less", place, g.op("Add", first, g.constant(np.array(before, index))))
                    self._places[key] = g.op("Where", old, place, g.op("Add", place, empty))
        return self._places[key]

    # ---- attention

    def rows(self, state: State, x: Any) -> Any:
        """Give the new rows `x` of a growing state out, and return all rows `[seen, *shape]`."""
        new = self.reshape(x, (0, *state.shape), out=new_name(state))
        self.graph.output(new, numpy_dtype(state.element), [self.lengths.token_dim, *state.shape])
        return self.graph.op("Concat", past_name(state), new, axis=0)

    def queries(self, op: int_ops.AttentionOp, q: str) -> str:
        """`[tokens, heads · head_dim]` as `[kv_heads, heads per kv head · tokens, head_dim]`."""
        kv_heads, width = op.get("kv_heads"), channels(op.q) // op.get("heads")
        split = self.reshape(q, (0, kv_heads, -1, width))
        return self.reshape(self.graph.op("Transpose", split, perm=[1, 2, 0, 3]), (kv_heads, -1, width))

    def merge(self, op: int_ops.AttentionOp, y: str) -> str:
        """Inverse of `queries`."""
        heads, kv_heads, width = op.get("heads"), op.get("kv_heads"), op.value_dim
        tokens = self.lengths.tokens
        split = self.reshape(y, (kv_heads, heads // kv_heads, -1 if tokens is None else tokens, width))
        y = self.graph.op("Transpose", split, perm=[2, 0, 1, 3])
        return self.reshape(y, (-1 if tokens is None else tokens, heads * width))

    def by_head(self, op: int_ops.AttentionOp, x: str) -> str:
        """`[kv_heads, heads per kv head · tokens, seen]` as `[kv_heads, heads per kv head, tokens, seen]`."""
        heads, kv_heads = op.get("heads"), op.get("kv_heads")
        if self.lengths.tokens is not None:
            return self.reshape(x, (kv_heads, heads // kv_heads, self.lengths.tokens, -1))
        sizes = (kv_heads, heads // kv_heads)
        if sizes not in self._head_shapes:
            g = self.graph
            with g.scope("heads"):
                first, rest = (g.constant(np.array(i, np.int64)) for i in (sizes, [-1]))
                self._head_shapes[sizes] = g.op("Concat", first, g.op("Shape", self.ids), rest, axis=0)
        return self.graph.op("Reshape", x, self._head_shapes[sizes])

    def flat_heads(self, op: int_ops.AttentionOp, x: str) -> str:
        """Inverse of `by_head`."""
        kv_heads, seen = op.get("kv_heads"), self.lengths.seen
        if isinstance(seen, int):
            return self.reshape(x, (kv_heads, -1, seen))
        if kv_heads not in self._flat_shapes:
            g = self.graph
            count = g.op("Shape", self.visible(op), start=1)
            first = g.constant(np.array([kv_heads, -1], np.int64))
            self._flat_shapes[kv_heads] = g.op("Concat", first, count, axis=0)
        return self.graph.op("Reshape", x, self._flat_shapes[kv_heads])

    def visible(self, op: int_ops.AttentionOp) -> str:
        """Boolean `[tokens, seen]`: which keys each token sees. One for all layers with the same window and
        chunk."""
        reach = op.get("window"), op.get("chunk")
        if reach not in self._masks:
            with self.graph.scope("mask"):
                self._masks[reach] = self._visible(past_name(op.states()[0]), *reach)
        return self._masks[reach]

    def of_keys(self, op: int_ops.AttentionOp, values: Any, hint: str) -> str:
        """Constants `[heads, positions]` of the keys that there are: `[kv_heads, heads of each, 1, seen]`."""
        g, kv_heads = self.graph, op.get("kv_heads")
        if not self._keys:
            with g.scope("mask"):
                self._keys = self._positions_of_keys(past_name(op.states()[0]))
        table = g.constant(values.reshape(kv_heads, op.get("heads") // kv_heads, 1, -1), hint)
        return g.op("Gather", table, self._keys, axis=3)

    def _positions_of_keys(self, past: str) -> str:
        """`[seen]`; rows of a cache of fixed length have one before they are filled, too."""
        g = self.graph
        if self.lengths.past is None:
            one, zero = (g.constant(np.array(i, np.int64)) for i in (1, 0))
            count = g.op("Squeeze", g.op("Shape", past, start=0, end=1))
            end = g.op("Add", count, g.op("Squeeze", g.op("Shape", self.ids)))
            return g.op("Range", zero, end, one)
        rows = np.arange(self.lengths.past, dtype=self.INDEX)
        return g.op("Concat", g.constant(rows, "rows"), self.positions, axis=0)

    def _visible(self, past: str, window: int | None, chunk: int | None) -> str:
        g, index = self.graph, self.INDEX
        if self.lengths.past is None:
            # From the shapes alone: whatever positions are fed, no token sees a later one.
            one, zero = (g.constant(np.array(i, np.int64)) for i in (1, 0))
            count = g.op("Squeeze", g.op("Shape", past, start=0, end=1))
            end = g.op("Add", count, g.op("Squeeze", g.op("Shape", self.ids)))
            keys, queries = g.op("Range", zero, end, one), g.op("Range", count, end, one)
        else:
            rows = np.arange(self.lengths.past, dtype=index)
            first = g.op("Gather", self.positions, g.constant(np.array([0], np.int64)))
            filled = g.op("Less", g.constant(rows, "rows"), first)
            # An empty row gets a position that no token reaches.
            far = g.constant(np.array(2**30, index))
            old = g.op("Where", filled, g.constant(rows, "rows"), far)
            keys, queries = g.op("Concat", old, self.positions, axis=0), self.positions
        column = g.op("Unsqueeze", queries, g.constant(np.array([1], np.int64)))
        seen = g.op("LessOrEqual", keys, column)
        if window is not None:
            start = g.op("Sub", column, g.constant(np.array(window, index)))
            seen = g.op("And", seen, g.op("Greater", keys, start))
        if chunk is not None:
            size = g.constant(np.array(chunk, index))
            first = g.op("Mul", g.op("Div", column, size), size)
            seen = g.op("And", seen, g.op("GreaterOrEqual", keys, first))
        return seen

    def reshape(self, x: str, shape: tuple[int, ...], out: str | None = None) -> str:
        """Reshape; 0 keeps a dimension, −1 takes what is left."""
        return self.graph.op("Reshape", x, self.graph.constant(np.array(shape, np.int64)), out=out)
