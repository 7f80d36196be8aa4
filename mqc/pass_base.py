"""The base class of passes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from mqc.analysis.context import CompilerContext


@dataclass(frozen=True)
class Pass(ModulePass):
    """An xDSL `ModulePass` that states the level it takes (`requires`) and leaves (`ensures`).

    `run` may rely on `ctx.weights` and, where `needs_calibration`, on `ctx.calibration`.
    Options are dataclass fields; their text form is `name{option=value}`.
    """

    requires: ClassVar[str] = "llm"
    ensures: ClassVar[str] = "llm"
    needs_calibration: ClassVar[bool] = False

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        if not isinstance(ctx, CompilerContext):
            raise TypeError(f"{self.name} needs an mqc.ir.module.CompilerContext")
        self.run(ctx, op)

    @abstractmethod
    def run(self, ctx: CompilerContext, module: ModuleOp) -> None:
        """Transform `module` in place."""
