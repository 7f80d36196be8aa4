"""`assign-precision`: give every value its quantized type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.rewriter import Rewriter

from mqc.analysis.context import CompilerContext
from mqc.compiler.precision_rules import (
    DEFAULT_PLAN,
    Rule,
    check_groups,
    given_rules,
    linears,
    value_bits,
    value_type,
    weight_bits,
)
from mqc.costs import ModelSize, Work, walk
from mqc.errors import CalibrationError
from mqc.ir.module import gives_logits, mqc_ops, set_level, set_searched_precision
from mqc.ir.op import attr, channels, tensor
from mqc.numerics.products import GROUPS
from mqc.pass_base import Pass


@dataclass(frozen=True)
class AssignPrecision(Pass):
    """Turn the observed ranges into `!quant.uniform` types: 8 bits, or what the plan says.

    A rule is `selector=bits` (`mqc.compiler.precision_rules.Rule`); of several that match, the last decides.

    A value whose type the model came with keeps it, unless `rules` give it other bits.

    Other 8-bit values take the op's `clip`; 16-bit ones 1.25 times its `range`, but at most four times its
    `clip`: one token in 10,000 that emits 25,000 must not cost all others their precision.
    Logits stay unquantized here; they leave the integer program as s32.

    With `share`, rules are searched for: the values that matrix products read get 8 bits, but for those where
    16 bits spare the output most for the multiply-accumulates that they cost, until `share` of all are left
    with 8 (`mqc.learning.sensitivity`). With `weights8`, likewise, that share of 4-bit weights gets 8 bits.
    What was found stands in the module's `mqc.precision`, as rules to edit and give back. What `rules` name
    is left to them, and the plan decides on values that other ops read too.

    Options:
        plan: rules that replace the default plan.
        rules: rules that follow the plan.
        share: least share of multiply-accumulates of matrix products with 8-bit activations; 0: no search.
        weights8: share of the weights of matrix products that get 8 bits; 0: no search.
        group: input channels per group of the 4-bit weights, for the search.
        samples, length: calibration windows, and tokens of each, to search on; at most those there are.
    """

    name = "assign-precision"
    ensures: ClassVar[str] = "quant"
    plan: tuple[str, ...] = DEFAULT_PLAN
    rules: tuple[str, ...] = ()
    share: float = 0.0
    weights8: float = 0.0
    group: int = 0
    samples: int = 16
    length: int = 256

    def __post_init__(self) -> None:
        for name in ("share", "weights8"):
            self.expect(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], got {getattr(self, name)}")
        self.expect_one_of("group", GROUPS)
        for name in ("samples", "length"):
            self.expect(getattr(self, name) >= 1, f"{name} must be 1 or more, got {getattr(self, name)}")
        for rule in (*self.plan, *self.rules):
            Rule.parse(rule)

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        return self.share > 0 or self.weights8 > 0

    def check(self, module: ModuleOp, before: Sequence[Pass]) -> None:
        if self.weights8:
            rules = [Rule.parse(rule) for rule in self.rules]
            free = (op for op in linears(module) if not any(rule.selects_weight(op) for rule in rules))
            check_groups(free, self.group)

    def work(self, size: ModelSize, length: int) -> Work:
        # Forwards, backwards, and what rounding does; a weight's error is a product more.
        once = walk(size, self.samples * min(self.length, length), logits=True)
        activations = once + once + once if self.share else Work()
        if not self.weights8:
            return activations
        rounded = Work(written=size.weights, elements=4 * size.weights)
        return activations + once + once + once + once + rounded

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        own = [*given_rules(module), *(Rule.parse(rule) for rule in self.rules)]
        plan = [Rule.parse(rule) for rule in self.plan]
        found = self._search(ctx, module, plan, own) if self.needs_calibration else []
        if found:
            set_searched_precision(module, [str(rule) for rule in found])
        rules = [*plan, *found, *own]
        for op in mqc_ops(module):
            bits = weight_bits(rules, op)
            if bits is not None:
                op.properties["weight_bits"] = attr(bits)
            if not gives_logits(op):
                quantized = value_type(op, value_bits(rules, op))
                new = tensor(quantized, channels(op.results[0]))
                Rewriter.replace_value_with_new_type(op.results[0], new)
        set_level(module, "quant")
        return True

    def _search(
        self, ctx: CompilerContext, module: ModuleOp, plan: list[Rule], own: list[Rule]
    ) -> list[Rule]:
        from mqc.learning.precision_search import search_activations, search_weights

        if ctx.calibration is None:
            raise CalibrationError("assign-precision needs calibration text to search")
        windows = ctx.calibration.part(self.samples, self.length)
        found = []
        if self.share:
            kind = partial(value_type, bits=8)
            found += search_activations(ctx, module, self.share, kind, plan, own, windows)
        if self.weights8:
            found += search_weights(ctx, module, self.weights8, self.group, own, windows)
        return found
