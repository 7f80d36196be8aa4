"""`assign-precision`: give every value its quantized type."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from xdsl.dialects import func
from xdsl.dialects.builtin import DenseArrayBase, ModuleOp, TensorType
from xdsl.ir import Attribute
from xdsl.rewriter import Rewriter

from mqc.dialects.core import MqcOp, channels, tensor
from mqc.dialects.quant import affine_range
from mqc.errors import PassError, RecipeError
from mqc.ir import CompilerContext, mqc_ops, set_level
from mqc.pass_base import Pass

#: MobileQuant's plan (arXiv 2408.13933, section 4 and its code), by what an op does: the residual
#: stream and what enters a norm in 16 bits, and the product before the down projection with its
#: factors.
DEFAULT_PLAN = (
    "llm.embedding=16",
    "llm.add=16",
    "->llm.add=16",
    "->llm.*_norm=16",
    "llm.mul->llm.linear=16",
    "->llm.mul=16",
)
#: A 16-bit value has room for this many times the extremes that calibration saw, …
BEYOND = 1.25
#: … but for no more than this many times the range that 8 bits would cover.
OUTLIERS = 4.0


@dataclass(frozen=True)
class AssignPrecision(Pass):
    """Turn the observed ranges into `!quant.uniform` types: 8 bits, or what the plan says.

    A rule is `selector=bits`, bits 8 or 16; of several that match, the last decides. Selectors:

    1. `llm.add`: results of that kind of op (a glob);
    2. `->llm.linear`: values that such an op uses; `llm.mul->llm.linear`: both;
    3. `%layers.*.down_proj`: values by name (a glob).

    8-bit values take the op's `clip`; 16-bit ones 1.25 times its `range`, but at most four times its
    `clip`: one token in 10,000 that emits 25,000 must not cost all others their precision.
    Logits stay unquantized here; they leave the integer program as s32.

    Options:
        plan: rules that replace the default plan.
        rules: rules that follow the plan.
    """

    name = "assign-precision"
    ensures: ClassVar[str] = "quant"
    plan: tuple[str, ...] = DEFAULT_PLAN
    rules: tuple[str, ...] = ()

    def run(self, ctx: CompilerContext, module: ModuleOp) -> None:
        rules = [_parse(rule) for rule in (*self.plan, *self.rules)]
        for op in mqc_ops(module):
            result = op.results[0]
            if any(isinstance(use.operation, func.ReturnOp) for use in result.uses):
                continue
            bits = 8
            for selector, wanted in rules:
                if _matches(selector, op):
                    bits = wanted
            low, high = _pair(op, "clip")
            if bits == 16:
                lowest, highest = _pair(op, "range")
                low, high = max(lowest * BEYOND, low * OUTLIERS), min(highest * BEYOND, high * OUTLIERS)
            quantized = affine_range(low, high, bits)
            _retype(op, tensor(quantized, channels(result)))
        set_level(module, "quant")


def _retype(op: MqcOp, new: TensorType) -> None:
    Rewriter.replace_value_with_new_type(op.results[0], new)


def _pair(op: MqcOp, name: str) -> tuple[float, float]:
    stated: Attribute | None = op.attributes.get(name)
    if not isinstance(stated, DenseArrayBase):
        raise PassError(f"assign-precision: %{op.value_name} has no {name}; run observe-ranges first")
    low, high = (float(v) for v in stated.get_values())
    return low, high


def _parse(rule: str) -> tuple[str, int]:
    selector, _, bits = rule.rpartition("=")
    if not selector or bits not in ("8", "16"):
        raise RecipeError(
            f"assign-precision: rule {rule!r} must read selector=8 or selector=16, "
            "the selector an op (llm.add), a use (->llm.linear) or a name (%layers.0.*)"
        )
    return selector, int(bits)


def _matches(selector: str, op: MqcOp) -> bool:
    if selector.startswith("%"):
        return fnmatchcase(op.value_name, selector[1:])
    producer, arrow, user = selector.partition("->")
    if producer and not fnmatchcase(op.name, producer):
        return False
    return not arrow or any(fnmatchcase(use.operation.name, user) for use in op.results[0].uses)
