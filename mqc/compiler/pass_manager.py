"""Pipelines: lists of passes that a user edits, and the manager that runs them."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.arg_spec import ArgSpec, parse_pipeline
from xdsl.utils.exceptions import ArgSpecParseError, ParseError

from mqc.analysis.context import CompilerContext
from mqc.analysis.verification import verify_fully, verify_module
from mqc.compiler.instruments import Instrument
from mqc.compiler.reproducer import write_reproducer
from mqc.errors import (
    ArtifactError,
    CalibrationError,
    IRError,
    MqcError,
    PassError,
    RecipeError,
    TargetError,
    UnsupportedOpError,
)  # fmt: skip
from mqc.ir.module import level, weight_refs
from mqc.ir.spill import return_freed_memory
from mqc.pass_base import Pass
from mqc.registry import pass_class


def _with_floats(kind: type[Pass], spec: ArgSpec) -> ArgSpec:
    """Options that are floats as such: xDSL reads `2` as an integer and `1e-06` as a word."""
    hints = get_type_hints(kind)
    given = spec.normalize_parameter_names().parameters
    floats = {n: tuple(float(v) for v in values) for n, values in given.items() if hints.get(n) is float}
    return ArgSpec(spec.name, {**given, **floats})


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
                found = pass_class(spec.name)
                passes.append(found.from_spec(_with_floats(found, spec)))
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

    def check(self, module: ModuleOp) -> None:
        """Raise `RecipeError` if a pass says that it cannot work on what `module` will become."""
        for i, p in enumerate(self.passes):
            p.check(module, self.passes[:i])

    def run(
        self,
        ctx: CompilerContext,
        module: ModuleOp,
        instruments: Iterable[Instrument] = (),
        *,
        verify_each: bool = False,
        reproducer: Path | None = None,
    ) -> None:
        """Apply the passes in order, verifying after each.

        Weights that no op refers to any more are dropped after each pass.

        Args:
            instruments: called before and after each pass.
            verify_each: also read every weight after each pass and prove that accumulators fit
                (`verify_fully`); time grows with the bytes of the weights.
            reproducer: folder for the module that a failing pass was given (`mqc.compiler.reproducer`).

        Raises `PassError` naming the pass if it is given the wrong level, fails, or leaves an
        invalid module; errors of the user's making (`MqcError`) as they are.
        """
        instruments = list(instruments)
        self.check(module)
        for number, p in enumerate(self.passes, 1):
            if level(module) != p.requires:
                raise PassError(
                    f"pass {number}, {p.name}, takes level {p.requires}, the module is at "
                    f"{level(module)}; the pipeline is {self}"
                )
            if p.needs_calibration and ctx.calibration is None:
                raise CalibrationError(
                    f"pass {p.name} needs calibration data: text for mqc.compile (--calibration), or for "
                    "mqc opt the windows that a dump wrote, beside the file or by --calibration"
                )
            ctx.progress(p.name, 0.0)
            for instrument in instruments:
                instrument.before(number, p, ctx, module)
            given = None if reproducer is None else module.clone()
            try:
                modified = _apply(p, number, ctx, module, verify_each)
            except (IRError, UnsupportedOpError, TargetError) as error:
                if reproducer is not None and given is not None:
                    command = write_reproducer(reproducer, given, ctx, p, verify_each)
                    error.add_note(f"to reproduce: {command}")
                raise
            for instrument in instruments:
                instrument.after(number, p, ctx, module, modified)
            ctx.weights.keep_only(weight_refs(module))
            return_freed_memory()
            ctx.progress(p.name, 1.0)


def _apply(p: Pass, number: int, ctx: CompilerContext, module: ModuleOp, fully: bool) -> bool:
    """Run a pass and verify what it left; whether it modified the module."""
    try:
        modified = p.run(ctx, module)
    except (MqcError, MemoryError, ModuleNotFoundError):  # no fault of the pass
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise PassError(
            f"pass {number}, {p.name}, failed at {place.filename}:{place.lineno}: "
            f"{type(error).__name__}: {error}"
        ) from error
    try:
        if fully:
            verify_fully(module, ctx.weights)
        else:
            verify_module(module)
    except (IRError, ArtifactError) as error:
        raise PassError(f"pass {number}, {p.name}, left an invalid module: {error}") from error
    if level(module) != p.ensures:
        raise PassError(f"pass {number}, {p.name}, must leave level {p.ensures}, it left {level(module)}")
    if not isinstance(modified, bool):
        raise PassError(
            f"pass {number}, {p.name}, must return whether it modified the module, not {modified!r}"
        )
    return modified
