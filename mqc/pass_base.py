"""The base class of passes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from mqc.analysis.context import CompilerContext
from mqc.costs import ModelSize, Work
from mqc.errors import RecipeError


@dataclass(frozen=True)
class Pass(ModulePass):
    """An xDSL `ModulePass` that states the level it takes (`requires`) and leaves (`ensures`).

    `run` may rely on `ctx.weights` and, where `needs_calibration`, on `ctx.calibration`.
    Options are dataclass fields; their text form is `name{option=value}`. A pass checks them in
    `__post_init__` (`expect`), so that a wrong one is an error before anything is compiled.
    """

    requires: ClassVar[str] = "llm"
    ensures: ClassVar[str] = "llm"
    needs_calibration: ClassVar[bool] = False

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        if not isinstance(ctx, CompilerContext):
            raise TypeError(f"{self.name} needs an mqc.analysis.context.CompilerContext")
        self.run(ctx, op)

    def work(self, size: ModelSize, length: int) -> Work | None:
        """What the pass does for a model of some size and calibration windows of `length` tokens, in counts;
        None if it does not say, and `mqc compile --estimate` leaves it out and says so."""
        return None

    def check(self, module: ModuleOp, before: Sequence[Pass]) -> None:
        """Raise `RecipeError` if `module` shows now that the pass will fail, once those `before` it ran.

        A pipeline asks all its passes first, so that nothing is calibrated in vain. By default none does.
        """
        return None

    @abstractmethod
    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        """Transform `module` in place. Returns whether it was modified."""

    def expect(self, condition: bool, message: str) -> None:
        """Raise `RecipeError` naming the pass unless `condition` holds."""
        if not condition:
            raise RecipeError(f"{self.name}: {message}")

    def expect_one_of(self, option: str, known: Sequence[Any]) -> None:
        """Raise `RecipeError` unless an option has one of the values."""
        value = getattr(self, option)
        self.expect(value in known, f"{option} {value!r} is none of {', '.join(map(str, known))}")
