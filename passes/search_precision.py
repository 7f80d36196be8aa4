"""`search-precision`: as few bits for values as keep a bound on the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.compiler.precision_rules import Rule, given_rules, value_type
from mqc.costs import ModelSize, Work, walk
from mqc.errors import CalibrationError
from mqc.ir.module import searched_precision, set_searched_precision
from mqc.pass_base import Pass


@dataclass(frozen=True)
class SearchPrecision(Pass):
    """Give 16 bits to as few as possible of the values that matrix products alone read, so that rounding
    costs no more than a bound; all others of them get 8.

    The loss is measured on calibration windows, with values and weights as the program will round them: the
    mean KL divergence of the predictions from the float model's, behind the same prefix. On text that the
    model itself would write, that is the rise of the loss. A bound of 0.005 lets perplexity rise by a factor
    of 1.005 there: `KL <= log(1 + loss)`.

    What was found stands in the module's `mqc.precision`, as rules to edit and give to `assign-precision`.
    What `rules` name is left as it is, and values whose types the model came with.

    Options:
        loss: the bound, a share of the perplexity.
        rules: the user's rules, as `assign-precision` had them.
        samples, length: calibration windows, and tokens of each, to measure on; at most those there are.
    """

    name = "search-precision"
    requires: ClassVar[str] = "quant"
    ensures: ClassVar[str] = "quant"
    needs_calibration: ClassVar[bool] = True
    loss: float = 0.01
    rules: tuple[str, ...] = ()
    samples: int = 16
    length: int = 256

    def __post_init__(self) -> None:
        self.expect(0 < self.loss < math.inf, f"loss must be positive, got {self.loss}")
        for name in ("samples", "length"):
            self.expect(getattr(self, name) >= 1, f"{name} must be 1 or more, got {getattr(self, name)}")
        for rule in self.rules:
            Rule.parse(rule)

    def work(self, size: ModelSize, length: int) -> Work:
        once = walk(size, self.samples * min(self.length, length), logits=True)
        halvings = math.ceil(math.log2(4 * size.layers + 1))
        return sum((once for _ in range(4 + halvings)), Work())

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        from mqc.learning.loss_search import search_bits
        from mqc.learning.student import check_reference

        if ctx.calibration is None:
            raise CalibrationError("search-precision needs calibration text")
        check_reference(module, self.name)
        windows = ctx.calibration.part(self.samples, self.length)
        rules = [*given_rules(module), *(Rule.parse(rule) for rule in self.rules)]
        found = search_bits(ctx, module, math.log1p(self.loss), value_type, rules, windows)
        set_searched_precision(module, [*searched_precision(module), *map(str, found)])
        return True
