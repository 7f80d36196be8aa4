"""Pipelines: lists of passes that a user edits, and the manager that runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.arg_spec import parse_pipeline
from xdsl.utils.exceptions import ArgSpecParseError, ParseError

from mqc.errors import CalibrationError, IRError, MqcError, PassError, RecipeError
from mqc.ir import CompilerContext, level, weight_refs
from mqc.pass_base import Pass
from mqc.registry import pass_class
from mqc.verification import verify_module

AfterPass = Callable[[int, Pass, ModuleOp], None]


@dataclass(frozen=True)
class Pipeline:
    """Passes in order. Editing gives a new pipeline.

    ```python
    pipeline = mqc.pipeline("cpu-int8").replace("balance-scales", BalanceScales(alpha=0.7))
    ```
    """

    passes: tuple[Pass, ...]

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """From text: `fold-norm,balance-scales{alpha=0.5},…`. Raises `RecipeError`."""
        try:
            specs = list(parse_pipeline(text))
        except (ArgSpecParseError, ParseError, ValueError) as error:
            raise RecipeError(f"cannot read the pipeline {text!r}: {error}") from error
        passes = []
        for spec in specs:
            try:
                passes.append(pass_class(spec.name).from_spec(spec))
            except (TypeError, ValueError, AttributeError) as error:
                raise RecipeError(f"pass {spec.name}: {error}") from error
        return cls(tuple(passes))

    def __str__(self) -> str:
        return ",".join(str(p.spec()) for p in self.passes)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def _index(self, name: str) -> int:
        for i, p in enumerate(self.passes):
            if p.name == name:
                return i
        raise RecipeError(f"the pipeline has no pass {name!r}; it has {', '.join(p.name for p in self)}")

    def insert_after(self, name: str, *new: Pass) -> Pipeline:
        i = self._index(name) + 1
        return Pipeline((*self.passes[:i], *new, *self.passes[i:]))

    def insert_before(self, name: str, *new: Pass) -> Pipeline:
        i = self._index(name)
        return Pipeline((*self.passes[:i], *new, *self.passes[i:]))

    def replace(self, name: str, *new: Pass) -> Pipeline:
        i = self._index(name)
        return Pipeline((*self.passes[:i], *new, *self.passes[i + 1 :]))

    def without(self, name: str) -> Pipeline:
        return self.replace(name)

    def run(self, ctx: CompilerContext, module: ModuleOp, after: Iterable[AfterPass] = ()) -> None:
        """Apply the passes in order, verifying after each.

        Weights that no op refers to any more are dropped after each pass. Raises `PassError` naming
        the pass if it is given the wrong level, fails, or leaves an invalid module.
        """
        for number, p in enumerate(self.passes, 1):
            if level(module) != p.requires:
                raise PassError(
                    f"pass {number}, {p.name}, takes level {p.requires}, the module is at "
                    f"{level(module)}; the pipeline is {self}"
                )
            if p.needs_calibration and ctx.calibration is None:
                raise CalibrationError(f"pass {p.name} needs calibration text; give calibration=…")
            ctx.progress(p.name, 0.0)
            try:
                p.apply(ctx, module)
            except (MqcError, KeyboardInterrupt):
                raise
            except Exception as error:
                raise PassError(
                    f"pass {number}, {p.name}, failed: {type(error).__name__}: {error}"
                ) from error
            try:
                verify_module(module)
            except IRError as error:
                raise PassError(f"pass {number}, {p.name}, left an invalid module: {error}") from error
            if level(module) != p.ensures:
                raise PassError(f"pass {number}, {p.name}, must leave level {p.ensures}")
            for callback in after:
                callback(number, p, module)
            ctx.weights.keep_only(weight_refs(module))
            ctx.progress(p.name, 1.0)
