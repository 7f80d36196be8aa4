"""What can watch a pipeline run: the base class, and printing the IR."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from typing import TextIO

from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.ir_text import print_module
from mqc.errors import RecipeError, choices
from mqc.pass_base import Pass
from mqc.registry import pass_names


class Instrument:
    """Watches a pipeline run.

    Both methods get the pass, its number from 1, context and module; `after` also whether the pass modified
    the module.
    """

    def before(self, number: int, p: Pass, ctx: CompilerContext, module: ModuleOp) -> None:
        """Called with the module that the pass will be given."""

    def after(self, number: int, p: Pass, ctx: CompilerContext, module: ModuleOp, modified: bool) -> None:
        """Called with the module that the pass left, verified."""


class PrintIR(Instrument):
    """Prints the module around passes.

    Args:
        before_passes, after_passes: globs of pass names (`*` for all), None for no pass.
        changed: print after every pass that modified the module.
        out: stream; stderr if None.

    Raises `RecipeError` for a glob that matches no registered pass.
    """

    def __init__(
        self,
        before_passes: str | None = None,
        after_passes: str | None = None,
        changed: bool = False,
        out: TextIO | None = None,
    ) -> None:
        for glob in (before_passes, after_passes):
            if glob is not None and not any(fnmatchcase(name, glob) for name in pass_names()):
                raise RecipeError(f"there is no pass {glob!r}; {choices(glob, pass_names())}")
        self.before_passes, self.after_passes, self.changed = before_passes, after_passes, changed
        self.out = out

    def before(self, number: int, p: Pass, ctx: CompilerContext, module: ModuleOp) -> None:
        if self.before_passes is not None and fnmatchcase(p.name, self.before_passes):
            self._print(f"before {p.name}", print_module(module))

    def after(self, number: int, p: Pass, ctx: CompilerContext, module: ModuleOp, modified: bool) -> None:
        selected = self.after_passes is not None and fnmatchcase(p.name, self.after_passes)
        if selected or (self.changed and modified):
            self._print(f"after {p.name}", print_module(module))

    def _print(self, place: str, text: str) -> None:
        print(f"// ----- IR {place} -----\n{text}", file=self.out or sys.stderr)
