"""What every dialect shares: the op base class, weight references, types, and the text format."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    FloatAttr,
    FunctionType,
    IntegerAttr,
    IntegerType,
    Signedness,
    StringAttr,
    TensorType,
    i64,
)
from xdsl.ir import Attribute, Dialect, ParametrizedAttribute, SSAValue
from xdsl.irdl import IRDLOperation, irdl_attr_definition
from xdsl.parser import AttrParser, Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from mqc.arrays import Array

u8 = IntegerType(8, Signedness.UNSIGNED)
u16 = IntegerType(16, Signedness.UNSIGNED)
s8 = IntegerType(8, Signedness.SIGNED)
s16 = IntegerType(16, Signedness.SIGNED)
s32 = IntegerType(32, Signedness.SIGNED)

#: Most channels a value may have; kernels count them in 32 bits.
MAX_CHANNELS = 1 << 24


@irdl_attr_definition
class WeightAttr(ParametrizedAttribute):
    """A reference to a constant tensor: `#mqc.weight<"name", "hash", tensor<…>>`.

    The tensor stands in a `WeightStore` (in memory) or in the safetensors file beside the dump.
    `hash` is the first 16 hex digits of the SHA-256 of its bytes in C order.
    """

    name = "mqc.weight"
    key: StringAttr
    hash: StringAttr
    type: TensorType

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        with parser.in_angle_brackets():
            key = parser.parse_str_literal()
            parser.parse_punctuation(",")
            digest = parser.parse_str_literal()
            parser.parse_punctuation(",")
            position = parser.pos
            kind = parser.parse_type()
            if not isinstance(kind, TensorType):
                parser.raise_error("expected a tensor type", position)
        return [StringAttr(key), StringAttr(digest), kind]

    def verify(self) -> None:
        # xDSL reads a string literal with other characters back as bytes.
        if not (self.key.data.isascii() and self.key.data.isprintable()):
            raise VerifyException(f"weight name {self.key.data!r} must be printable ASCII")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.type.get_shape())


def tensor(element: Attribute, channels: int) -> TensorType:
    """The type of every value between ops: `tensor<?xchannels x element>`, `?` being tokens."""
    return TensorType(element, [DYNAMIC_INDEX, channels])


#: The type of token ids and positions.
INDICES = TensorType(i64, [DYNAMIC_INDEX])

#: What `is_value` asks, in words.
VALUE_SHAPE = f"must be tensor<?xchannels x element> with 1 to {MAX_CHANNELS} channels"


def is_value(kind: Attribute) -> bool:
    """Whether a type is that of a value between ops."""
    if not isinstance(kind, TensorType) or kind.get_num_dims() != 2:
        return False
    tokens, count = kind.get_shape()
    return tokens == DYNAMIC_INDEX and 0 < count <= MAX_CHANNELS


def channels(value: SSAValue) -> int:
    """Channel count of a `tensor<?xC>` value."""
    assert isinstance(value.type, TensorType)
    return int(value.type.get_shape()[-1])


def element_type(value: SSAValue) -> Attribute:
    assert isinstance(value.type, TensorType)
    element: Attribute = value.type.get_element_type()
    return element


def plain(attribute: Attribute | None) -> Any:
    """The Python value of an integer, float or string attribute; None stays None."""
    match attribute:
        case None:
            return None
        case IntegerAttr():
            return attribute.value.data
        case FloatAttr():
            return attribute.value.data
        case StringAttr():
            return attribute.data
        case _:
            raise TypeError(f"{attribute} has no plain Python value")


def attr(value: int | float | str | Attribute) -> Attribute:
    """The attribute of a Python value: i64, f64 or a string. Inverse of `plain`."""
    match value:
        case int():
            return IntegerAttr(value, i64)
        case float():
            return FloatAttr(value, 64)
        case str():
            return StringAttr(value)
        case _:
            return value


@dataclass(frozen=True)
class State:
    """One tensor that an op keeps. Engines, graph inputs, the verifier and the NPU's functions go by this.

    name: unique in a module, e.g. `key.3`.
    shape: of the row that each position adds if the state grows, else of the whole.
    element: type of its elements; f32 on the float levels.
    grows: whether each position adds a row; otherwise its size is fixed.
    initial: what a new sequence begins with: the rows of the prefix, or the whole. None: no rows, or zeros.
    cleared: whether a new sequence must find it as it was at first. Rows that are written before they are
        read need not be.
    padding: whether tokens behind the last real one may pass through it. They may where their rows are
        written again before they are read.
    """

    name: str
    shape: tuple[int, ...]
    element: Attribute
    grows: bool
    initial: WeightAttr | None
    cleared: bool
    padding: bool


def rows_by_position(
    name: str, shape: tuple[int, ...], element: Attribute, initial: WeightAttr | None
) -> State:
    """A cache of one row a position. No row is read before it is written, so a new sequence need not clear
    it, and padding may pass."""
    return State(name, shape, element, grows=True, initial=initial, cleared=False, padding=True)


class EvaluationContext(Protocol):
    """What an op's semantics take besides operands: constants, and what is left of earlier tokens.

    `mqc.analysis.evaluation.Evaluation` is one. state: what ops keep from call to call (`MqcOp.states`), by
    name; empty at first. position: of the first token of the call, prefix included.
    """

    state: dict[str, Any]
    position: int

    def array(self, ref: WeightAttr) -> Array:
        """The constant as a NumPy array."""

    def torch(self, ref: WeightAttr) -> Any:
        """The constant as a torch tensor that shares the store's memory."""

    def rounded(self, value: SSAValue, real: Any) -> Any:
        """A torch tensor of real numbers as the quantized type of a value has them, if it has one."""

    def latest(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` makes, kept until it is asked for by another key: memory holds one such thing."""


def grown(
    ctx: EvaluationContext,
    state: State,
    rows: Any,
    initial: Callable[[WeightAttr], Any],
    join: Callable[[list[Any]], Any],
) -> Any:
    """A growing state with new rows behind those of earlier calls; kept for the next call.

    Args:
        initial: reads the rows that a sequence begins with.
        join: one array from a list of arrays.
    """
    past = ctx.state.get(state.name)
    if past is None and state.initial is not None:
        past = initial(state.initial)
    ctx.state[state.name] = rows if past is None else join([past, rows])
    return ctx.state[state.name]


class MqcOp(IRDLOperation):
    """Base of the ops of all levels.

    Text: `%r = dialect.op %a, %b {property = …, attribute = …} : (types) -> type`.
    A subclass declares operands, properties and result, and from the same place derives
    `evaluate` (its semantics), `check` (what types cannot say) and `macs` (its cost).
    The docstring's last line is the op's formula in backquotes; docs/ops.md shows it.
    """

    #: Levels on which the op may stand.
    LEVELS: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def build_op(
        cls,
        operands: Sequence[SSAValue],
        result: TensorType,
        name: str | None = None,
        **properties: int | float | str | Attribute | None,
    ) -> Any:
        """Create the op from Python values; `None` leaves an optional property out.

        `name` becomes the name of the result in printed IR.
        """
        op = cls.create(
            operands=operands,
            result_types=[result],
            properties={k: attr(v) for k, v in properties.items() if v is not None},
        )
        op.results[0].name_hint = name
        return op

    def get(self, name: str) -> Any:
        """Python value of a property, `None` if it is optional and absent."""
        return plain(self.properties.get(name))

    def evaluate(self, ctx: EvaluationContext, *operands: Any) -> Any:
        """Value of the result for values of the operands: `[tokens, channels]` arrays."""
        raise NotImplementedError(f"{self.name} declares no semantics")

    def verify_(self) -> None:
        for value in self.operands:
            ranked = isinstance(value.type, TensorType) and value.type.get_num_dims() == 1
            wanted = f"must be {INDICES}" if ranked else VALUE_SHAPE
            self.expect(is_value(value.type) or value.type == INDICES, f"operand {value.type} {wanted}")
        for value in self.results:
            self.expect(is_value(value.type), f"result {value.type} {VALUE_SHAPE}")
        self.check()

    def check(self) -> None:
        """Call `expect` for what the types of operands and properties cannot say."""

    def lookups(self) -> list[tuple[SSAValue, int]]:
        """Operands that index tables, each with the number of rows there are."""
        return []

    def position_limit(self) -> int | None:
        """For how many positions, from 0 on, its constants are; None for any number."""
        return None

    def states(self) -> tuple[State, ...]:
        """What the op keeps from one call to the next."""
        return ()

    def weight_refs(self) -> list[WeightAttr]:
        """The constants that the op names."""
        values = (*self.properties.values(), *self.attributes.values())
        return [value for value in values if isinstance(value, WeightAttr)]

    def macs(self) -> int:
        """Multiply-accumulates per token, cache reads not counted."""
        return 0

    @property
    def value_name(self) -> str:
        """Name of the result in the printed IR, e.g. `layers.11.mlp.down_proj`."""
        return (self.results[0].name_hint if self.results else None) or self.name

    def expect(self, condition: bool, message: str) -> None:
        """Raise a verifier error naming op and value unless `condition` holds."""
        if not condition:
            raise VerifyException(f"{self.name} %{self.value_name}: {message}")

    @classmethod
    def parse(cls, parser: Parser) -> MqcOp:
        operands = (
            parser.parse_optional_undelimited_comma_separated_list(
                parser.parse_optional_unresolved_operand, parser.parse_unresolved_operand
            )
            or []
        )
        given = parser.parse_optional_attr_dict()
        parser.parse_punctuation(":")
        position = parser.pos
        signature = parser.parse_type()
        if not isinstance(signature, FunctionType):
            parser.raise_error("expected a function type", position)
        values = parser.resolve_operands(operands, signature.inputs.data, position)
        declared = cls.get_irdl_definition().properties
        return cls.create(
            operands=values,
            result_types=signature.outputs.data,
            properties={k: v for k, v in given.items() if k in declared},
            attributes={k: v for k, v in given.items() if k not in declared},
        )

    def print(self, printer: Printer) -> None:
        if self.operands:
            printer.print_string(" ")
            printer.print_list(self.operands, printer.print_ssa_value)
        attributes = dict(sorted((self.properties | self.attributes).items()))
        if attributes:
            printer.print_string(" ")
            printer.print_attr_dict(attributes)
        printer.print_string(" : ")
        printer.print_operation_type(self)


Mqc = Dialect("mqc", [], [WeightAttr])
