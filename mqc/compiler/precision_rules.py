"""Rules that say how many bits a value or a matrix gets: their text, what they select, and the types that
values get."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from xdsl.dialects.builtin import DenseArrayBase, ModuleOp
from xdsl.ir import Attribute, Operation

from mqc.dialects.llm import ActivationOp, LinearOp, LlmOp, RouteOp
from mqc.dialects.quant import UniformType, affine_range
from mqc.errors import PassError, RecipeError
from mqc.ir.module import gives_logits, mqc_ops
from mqc.ir.op import MqcOp
from mqc.numerics.products import GROUPS

WEIGHT = "weight:"

#: A 16-bit value has room for this many times the extremes that calibration saw, …
BEYOND = 1.25
#: … but for no more than this many times the range that 8 bits would cover.
OUTLIERS = 4.0

#: MobileQuant's plan (arXiv 2408.13933, section 4 and its code), by what an op does: the residual
#: stream and what enters a norm in 16 bits, and the product before the down projection with its
#: factors, squares among them. What a rotation, an activation function, a convolution or one product behind
#: another reads has 16 bits too, lest it be rounded to 8 twice; the logits read 8, since theirs is the
#: largest product. What goes into a recurrent state has 16 bits, since it stays there. Scores of experts and
#: their weights have 16 bits, since a score that is rounded chooses another expert.
DEFAULT_PLAN = (
    "llm.embedding=16",
    "llm.add=16",
    "->llm.add=16",
    "->llm.*_norm=16",
    "llm.mul->llm.linear=16",
    "->llm.mul=16",
    "->llm.silu=16",
    "->llm.sigmoid=16",
    "->llm.*gelu*=16",
    "->llm.relu_squared=16",
    "llm.relu_squared->llm.linear=16",
    "->llm.rope=16",
    "->llm.join=16",
    "->llm.causal_conv=16",
    "->llm.softplus=16",
    "->llm.linear_attention=16",
    "->llm.route=16",
    "llm.route=16",
    "->llm.gate=16",
    "llm.gate->llm.linear=16",
    "llm.linear->llm.linear=16",
    "llm.linear->logits=8",
)


@dataclass(frozen=True)
class Rule:
    """`selector=bits`. Selectors:

    1. `llm.add`: results of that kind of op (a glob);
    2. `->llm.linear`: values that such an op uses; `llm.mul->llm.linear`: both; `->logits`: values that the
       op uses which gives the logits;
    3. `%layers.*.down_proj`: values by name (a glob);
    4. `weight:%layers.0.*`: the matrices of linears by name (a glob).

    bits: 8 or 16 for values, 4 or 8 for matrices. remark: what stands behind a `#` in the text.
    """

    selector: str
    bits: int
    remark: str = ""

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Raises `RecipeError` for text that is no rule."""
        rule, _, remark = text.partition("#")
        selector, _, bits = rule.strip().rpartition("=")
        of_weight = selector.startswith(f"{WEIGHT}%")
        if not selector or bits not in (("4", "8") if of_weight else ("8", "16")):
            raise RecipeError(
                f"precision rule {text!r} must read selector=8 or selector=16, the selector an op (llm.add), "
                "a use (->llm.linear) or a name (%layers.0.*); or weight:%name=4 or =8 for a linear's weights"
            )
        return cls(selector, int(bits), remark.strip())

    def __str__(self) -> str:
        return f"{self.selector}={self.bits}" + (f"  # {self.remark}" if self.remark else "")

    def selects(self, op: MqcOp) -> bool:
        """Whether the rule is about the op's result."""
        if self.selector.startswith("%"):
            return fnmatchcase(op.value_name, self.selector[1:])
        producer, arrow, user = self.selector.partition("->")
        if producer and not fnmatchcase(op.name, producer):
            return False
        return not arrow or any(_is_a(use.operation, user) for use in op.results[0].uses)

    def selects_weight(self, op: MqcOp) -> bool:
        """Whether the rule is about the op's matrix."""
        name = self.selector.removeprefix(f"{WEIGHT}%")
        free = isinstance(op, LinearOp) and not op.fixed
        return free and name != self.selector and fnmatchcase(op.value_name, name)


def _is_a(op: Operation, kind: str) -> bool:
    """Whether an op is one that a selector means behind its arrow."""
    return fnmatchcase(op.name, kind) or (kind == "logits" and isinstance(op, MqcOp) and gives_logits(op))


def matrix_bits(op: MqcOp, bits: int, keep8: Iterable[str]) -> int:
    """Bits of a linear's matrix: 8 if its name matches a glob of `keep8`, else those that a rule gave it
    (`weight_bits`), else 8 if it gives the logits or chooses experts, else `bits`."""
    if any(fnmatchcase(op.value_name, glob) for glob in keep8):
        return 8
    given = op.get("weight_bits")
    if given is not None:
        return int(given)
    return 8 if gives_logits(op) or _chooses_experts(op) else bits


def _chooses_experts(op: MqcOp) -> bool:
    """Whether a result is scores of experts, or an activation function makes it some."""
    users = [use.operation for use in op.results[0].uses]
    return any(
        isinstance(user, RouteOp) or (isinstance(user, ActivationOp) and _chooses_experts(user))
        for user in users
    )


def group_size(op: LinearOp, group: int) -> int:
    """Input channels that share a step: `group`, or all if it is 0.

    Raises `RecipeError` if groups do not fit.
    """
    check_groups([op], group)
    return group or op.weight.shape[1]


def check_groups(ops: Iterable[LinearOp], group: int) -> None:
    """Raise `RecipeError` unless groups of `group` input channels divide the matrices of all ops."""
    unfit = [op for op in ops if group and _inputs(op) % group]
    if not unfit:
        return
    fitting = [str(g) for g in GROUPS if g and not any(_inputs(op) % g for op in unfit)]
    others = f", nor those of {len(unfit) - 1} more matrices" if len(unfit) > 1 else ""
    choices = " or ".join([*fitting, "0"])
    raise RecipeError(
        f"the matrix of %{unfit[0].value_name} has {_inputs(unfit[0])} input channels, which groups "
        f"of {group} do not divide{others}; take group = {choices} (0: one scale per output channel), or "
        "name them in keep8, so that they keep 8 bits"
    )


def _inputs(op: LinearOp) -> int:
    """Input channels that a group must divide: of an expert, if the columns are experts'."""
    return int(op.weight.shape[1]) // op.column_blocks[0]


def linears(module: ModuleOp) -> Iterator[LinearOp]:
    """The linears whose bits are free: not the one that gives the logits, which keeps 8 bits, nor those with
    integers of their own."""
    found = (op for op in mqc_ops(module) if isinstance(op, LinearOp))
    return (op for op in found if not op.fixed and not gives_logits(op))


def given_rules(module: ModuleOp) -> list[Rule]:
    """Rules for the values whose types the model came with: those bits."""
    ops = (op for op in mqc_ops(module) if isinstance(op, LlmOp))
    return [Rule(f"%{op.value_name}", op.given.bits) for op in ops if op.given is not None]


def grouped(
    module: ModuleOp, bits: int, keep8: Iterable[str], before: Iterable[object]
) -> Iterator[LinearOp]:
    """The linears whose matrices will get 4 bits, by `matrix_bits` and the rules of passes `before`."""
    rules = [Rule.parse(text) for p in before for text in getattr(p, "rules", ())]
    for op in linears(module):
        if (weight_bits(rules, op) or 4) == matrix_bits(op, bits, keep8) == 4:
            yield op


def value_bits(rules: Iterable[Rule], op: MqcOp) -> int:
    """Bits of the op's result: the last rule that selects it decides, else 8."""
    return next((rule.bits for rule in reversed([*rules]) if rule.selects(op)), 8)


def weight_bits(rules: Iterable[Rule], op: MqcOp) -> int | None:
    """Bits of the op's matrix, if a rule selects it."""
    return next((rule.bits for rule in reversed([*rules]) if rule.selects_weight(op)), None)


def value_type(op: MqcOp, bits: int) -> UniformType:
    """The quantized type of an op's result: the one that it came with, if it has so many bits. Else by the
    range that was observed: its `clip` with 8 bits; with 16 its `range` and more.

    Raises `PassError` if no range was observed.
    """
    if isinstance(op, LlmOp) and op.given is not None and op.given.bits == bits:
        return op.given
    low, high = _pair(op, "clip")
    if bits == 16:
        lowest, highest = _pair(op, "range")
        low, high = max(lowest * BEYOND, low * OUTLIERS), min(highest * BEYOND, high * OUTLIERS)
    return affine_range(low, high, bits)


def _pair(op: MqcOp, name: str) -> tuple[float, float]:
    stated: Attribute | None = op.attributes.get(name)
    if not isinstance(stated, DenseArrayBase):
        raise PassError(f"%{op.value_name} has no {name}: run observe-ranges first")
    low, high = (float(v) for v in stated.get_values())
    return low, high
