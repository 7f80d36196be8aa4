"""What a module states, and its ops in order."""

from __future__ import annotations

from collections.abc import Iterator

from xdsl.dialects.builtin import ArrayAttr, DenseArrayBase, ModuleOp, StringAttr, i64
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import SSAValue

from mqc.errors import IRError
from mqc.ir.op import MqcOp, State, WeightAttr, plain

LEVELS = ("llm", "quant", "int", "htp")


def main_function(module: ModuleOp) -> FuncOp:
    """The one function of a module. Raises `IRError` if it is missing."""
    for op in module.ops:
        if isinstance(op, FuncOp) and op.sym_name.data == "main":
            return op
    raise IRError("the module has no function @main")


def static_functions(module: ModuleOp) -> dict[str, FuncOp]:
    """The functions of level `htp` by name: `initialize` where there is a prefix, `prefill_N`, `decode`.

    They stand behind @main, which at that level is still the `int` program that they carry out.
    """
    functions = (op for op in module.ops if isinstance(op, FuncOp))
    return {f.sym_name.data: f for f in functions if f.sym_name.data != "main"}


def function_ops(function: FuncOp) -> Iterator[MqcOp]:
    """The ops of a function in order, but for the return."""
    for op in list(function.body.block.ops):
        if isinstance(op, MqcOp):
            yield op


def returned_value(module: ModuleOp) -> SSAValue:
    """The logits that @main returns."""
    returned = main_function(module).body.block.last_op
    if returned is None or not returned.operands:
        raise IRError("@main must end in func.return of the logits")
    return returned.operands[0]


def gives_logits(op: MqcOp) -> bool:
    """Whether a function returns the op's result."""
    return any(isinstance(use.operation, ReturnOp) for use in op.results[0].uses)


def mqc_ops(module: ModuleOp) -> Iterator[MqcOp]:
    """The ops of @main in order, but for the return."""
    yield from function_ops(main_function(module))


def states(module: ModuleOp) -> list[State]:
    """What the ops of @main keep from call to call, in order."""
    return [state for op in mqc_ops(module) for state in op.states()]


def ops_by_name(module: ModuleOp) -> dict[str, MqcOp]:
    """The ops of @main by value name, as `named_ops` has them."""
    return named_ops(main_function(module))


def named_ops(function: FuncOp) -> dict[str, MqcOp]:
    """The ops of a function by value name, in order; a further op of the same name is `name#1`, ….

    Names need not be unique: a pass may give one twice, and xDSL's parser drops the number that its
    printer appends.
    """
    named: dict[str, MqcOp] = {}
    count: dict[str, int] = {}
    for op in function_ops(function):
        seen = count.get(op.value_name, 0)
        count[op.value_name] = seen + 1
        named[f"{op.value_name}#{seen}" if seen else op.value_name] = op
    return named


def weight_refs(module: ModuleOp) -> Iterator[WeightAttr]:
    """Every weight attribute in the module."""
    for function in (main_function(module), *static_functions(module).values()):
        for op in function_ops(function):
            yield from op.weight_refs()


def level(module: ModuleOp) -> str:
    """`llm`, `quant`, `int` or `htp`. Raises `IRError` if the module does not say."""
    stated = module.attributes.get("mqc.level")
    if not isinstance(stated, StringAttr) or stated.data not in LEVELS:
        raise IRError(f"the module must state mqc.level, one of {', '.join(LEVELS)}")
    return stated.data


def main_level(module: ModuleOp) -> str:
    """The level of @main's ops: `int` in a module of level `htp`."""
    stated = level(module)
    return "int" if stated == "htp" else stated


def set_level(module: ModuleOp, name: str) -> None:
    module.attributes["mqc.level"] = StringAttr(name)


def context_length(module: ModuleOp) -> int:
    """Positions that the program has room for, prefix included."""
    return int(plain(module.attributes["mqc.context"]))


def room(module: ModuleOp) -> int:
    """Positions behind the prefix."""
    return context_length(module) - len(prefix_tokens(module))


def prefix_tokens(module: ModuleOp) -> tuple[int, ...]:
    """Tokens whose keys and values stand in the cache before the first prompt token."""
    stated = module.attributes.get("mqc.prefix")
    if not isinstance(stated, DenseArrayBase):
        return ()
    return tuple(int(v) for v in stated.get_values())


def logit_cap(module: ModuleOp) -> float | None:
    """The c of a final softcap: the model's logits are `c · tanh(x / c)` of the program's. None without."""
    stated = plain(module.attributes.get("mqc.logit_cap"))
    return None if stated is None else float(stated)


def searched_precision(module: ModuleOp) -> list[str]:
    """The rules that a search for precision found, as `assign-precision` reads them; empty if none did."""
    return _texts(module, "mqc.precision")


def set_searched_precision(module: ModuleOp, rules: list[str]) -> None:
    module.attributes["mqc.precision"] = ArrayAttr([StringAttr(rule) for rule in rules])


def experts_not_chosen(module: ModuleOp) -> list[str]:
    """Weights of experts, each value with the experts that no calibration token chose: `%name: 3, 7`."""
    return _texts(module, "mqc.not_chosen")


def set_experts_not_chosen(module: ModuleOp, values: list[str]) -> None:
    module.attributes["mqc.not_chosen"] = ArrayAttr([StringAttr(value) for value in values])


def _texts(module: ModuleOp, name: str) -> list[str]:
    stated = module.attributes.get(name)
    if not isinstance(stated, ArrayAttr):
        return []
    return [text.data for text in stated if isinstance(text, StringAttr)]


def set_prefix(module: ModuleOp, tokens: tuple[int, ...]) -> None:
    module.attributes["mqc.prefix"] = DenseArrayBase.from_list(i64, list(tokens))
