"""Modules: the context that knows every dialect, and what a module states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, Builtin, DenseArrayBase, ModuleOp, StringAttr, i64
from xdsl.dialects.func import Func, FuncOp, ReturnOp
from xdsl.ir import Dialect, SSAValue

from mqc.dialects.core import Mqc, MqcOp, WeightAttr, plain
from mqc.errors import IRError
from mqc.registry import dialects

if TYPE_CHECKING:
    from pathlib import Path

    from mqc.calibration import Calibration
    from mqc.weight_store import WeightStore

LEVELS = ("llm", "quant", "int", "htp")


class CompilerContext(Context):
    """An xDSL context that passes also take weights and calibration data from.

    `weights` holds every tensor the module names; `calibration` the token windows to observe,
    or None where none were given; `checkpoints` is the folder where passes that learn keep their state, or
    None to keep none; `progress` is called with a message and a share in [0, 1].
    """

    def __init__(self, weights: WeightStore | None = None, calibration: Calibration | None = None) -> None:
        super().__init__()
        from mqc.weight_store import WeightStore

        self.weights = weights if weights is not None else WeightStore()
        self.calibration = calibration
        self.checkpoints: Path | None = None
        self.load_dialect(Builtin)
        self.load_dialect(Func)
        self.load_dialect(Mqc)
        self.register_dialect("llm", _llm)
        self.register_dialect("quant", _quant)
        self.register_dialect("int", _int)
        self.register_dialect("htp", _htp)
        for name, load in dialects().items():
            self.register_dialect(name, load)

    def progress(self, message: str, share: float) -> None:
        """Report that `share` of the work called `message` is done. Silent by default.

        What stands behind a colon is a remark: it changes while the work is the same.
        """


def _llm() -> Dialect:
    from mqc.dialects.llm import Llm

    return Llm


def _quant() -> Dialect:
    from mqc.dialects.quant import Quant

    return Quant


def _int() -> Dialect:
    from mqc.dialects.int_ops import Int

    return Int


def _htp() -> Dialect:
    from mqc.dialects.htp import Htp

    return Htp


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


def ops_by_name(module: ModuleOp) -> dict[str, MqcOp]:
    """The ops of @main by value name, in order; a further op of the same name is `name#1`, ….

    Names need not be unique: a pass may give one twice, and xDSL's parser drops the number that its
    printer appends.
    """
    named: dict[str, MqcOp] = {}
    count: dict[str, int] = {}
    for op in mqc_ops(module):
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


def prefix_tokens(module: ModuleOp) -> tuple[int, ...]:
    """Tokens whose keys and values stand in the cache before the first prompt token."""
    stated = module.attributes.get("mqc.prefix")
    if not isinstance(stated, DenseArrayBase):
        return ()
    return tuple(int(v) for v in stated.get_values())


def searched_precision(module: ModuleOp) -> list[str]:
    """The rules that `assign-precision` found by searching, in its notation; empty if it did not."""
    stated = module.attributes.get("mqc.precision")
    if not isinstance(stated, ArrayAttr):
        return []
    return [rule.data for rule in stated if isinstance(rule, StringAttr)]


def set_searched_precision(module: ModuleOp, rules: list[str]) -> None:
    module.attributes["mqc.precision"] = ArrayAttr([StringAttr(rule) for rule in rules])


def set_prefix(module: ModuleOp, tokens: tuple[int, ...]) -> None:
    module.attributes["mqc.prefix"] = DenseArrayBase.from_list(i64, list(tokens))
