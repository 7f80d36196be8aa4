"""What carries out the functions of an `htp` program: the interface that simulators share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.htp_schedule import homes
from mqc.arrays import Array
from mqc.backend import Ids, Logits
from mqc.dialects.htp_core import VTCM, HtpOp, space
from mqc.ir.module import function_ops, ops_by_name, static_functions
from mqc.ir.op import element_type, s32

#: Called with the name of a value and the value.
Observer = Callable[[str, Array], None]


def finals(module: ModuleOp, name: str) -> dict[str, HtpOp]:
    """By name of the value of @main, the op of a function that completes it in VTCM."""
    wanted: dict[str, list[str]] = {}
    for value, op in ops_by_name(module).items():
        if "fused_into" not in op.attributes:
            wanted.setdefault(op.value_name, []).append(value)
    function = static_functions(module)[name]
    home = homes(function)
    last = {home[op.results[0]]: op for op in function_ops(function) if isinstance(op, HtpOp)}
    found: dict[str, HtpOp] = {}
    for completed in last.values():
        names = wanted.get(completed.value_name)
        kind = completed.results[0].type
        if names and space(kind) == VTCM and element_type(completed.results[0]) != s32:
            found[names.pop(0)] = completed
    return found


class Runner(ABC):
    """Carries out the functions of a module on one sequence."""

    @abstractmethod
    def run(
        self, name: str, position: int, ids: Ids, first: int, count: int, observe: Observer | None = None
    ) -> Logits:
        """Logits `[count, vocabulary]` of the tokens from `first` on; ids `[tokens of the function]`.

        observe: called with the names and values `[tokens, channels]` of `finals`.
        """

    @abstractmethod
    def begin(self, clear: bool) -> None:
        """Be ready for a new sequence, with states as they were at first if they are to be cleared."""

    @abstractmethod
    def close(self) -> None:
        """Give up what it holds."""
