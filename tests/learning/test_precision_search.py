"""Bits are spent where they pay, within the budget, and the plan is text that gives the same module."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.rewriter import Rewriter

from mqc.analysis.context import CompilerContext
from mqc.analysis.ir_text import print_module
from mqc.api import mac_share_8bit
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.precision_rules import Rule, value_type
from mqc.compiler.recipe import Recipe, load_recipe
from mqc.dialects.llm import LinearOp
from mqc.dialects.quant import uniform
from mqc.errors import RecipeError
from mqc.ir.module import gives_logits, mqc_ops, searched_precision
from mqc.ir.op import MqcOp, channels, tensor
from mqc.learning.methods import divergence
from mqc.learning.sensitivity import sensitivities
from mqc.learning.student import FloatModel, Student
from mqc.passes.assign_precision import AssignPrecision
from mqc.passes.search_precision import SearchPrecision
from tests.compiled import imported, quantized
from tests.models import tiny_model

CPU = torch.device("cpu")


def observed(architecture: str = "llama") -> tuple[CompilerContext, ModuleOp]:
    ctx, module = imported(tiny_model(architecture))
    Pipeline.parse("fold-constants,fold-norm,absorb-prefix{tokens=9},observe-ranges").run(ctx, module)
    return ctx, module


class OneRounded(FloatModel):
    """The float model with the result of one op rounded: what a sensitivity is about, measured."""

    def __init__(self, ctx: CompilerContext, module: ModuleOp, op: MqcOp, step: float) -> None:
        super().__init__(ctx, module, CPU)
        self.op, self.step = op, step

    def value(self, op: MqcOp, operands: list[torch.Tensor]) -> torch.Tensor:
        result = super().value(op, operands)
        return torch.round(result / self.step) * self.step if op is self.op else result


@pytest.mark.slow
def test_sensitivity_is_the_divergence_that_rounding_causes() -> None:
    ctx, module = observed()
    assert ctx.calibration is not None
    windows = np.random.default_rng(5).integers(0, 64, (24, 40))
    ops = [op for op in mqc_ops(module) if not gives_logits(op)]
    steps = {op: 0.05 * float(np.ptp(op.attributes["range"].get_values())) for op in ops}  # type: ignore[attr-defined]
    noises = {
        str(i): (op, lambda _, y, step=steps[op]: torch.round(y / step) * step - y)
        for i, op in enumerate(ops)
    }
    predicted = sensitivities(ctx, module, noises, windows)

    def run(model: FloatModel, window: np.ndarray) -> torch.Tensor:  # type: ignore[type-arg]
        with torch.no_grad():
            return model.run_ops(mqc_ops(module), model.arguments(window))

    float_model = FloatModel(ctx, module, CPU)
    for i, op in enumerate(ops):
        rounded = OneRounded(ctx, module, op, steps[op])
        measured = np.mean([float(divergence(run(rounded, w), run(float_model, w))) for w in windows])
        assert 0.4 < predicted[str(i)] / measured < 2.5, op.value_name


@pytest.mark.parametrize("share", [0.75, 0.9, 1.0])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi"])
def test_share_is_kept_and_the_plan_repeats_it(architecture: str, share: float) -> None:
    _, module = quantized(tiny_model(architecture), Recipe(prefix=(9,), share=share))
    assert mac_share_8bit(module) >= share
    found = tuple(searched_precision(module))
    assert found and all(Rule.parse(rule).remark for rule in found)
    _, again = quantized(tiny_model(architecture), Recipe(prefix=(9,), precision=found))
    del module.attributes["mqc.precision"]
    assert print_module(again) == print_module(module)


def test_more_budget_is_spent() -> None:
    shares = [
        mac_share_8bit(quantized(tiny_model("llama"), Recipe(prefix=(9,), share=share))[1])
        for share in (1.0, 0.9, 0.5)
    ]
    assert shares[0] == 1.0 > shares[1] >= 0.9 > shares[2] >= 0.5


def test_rules_of_the_user_stand() -> None:
    ctx, module = observed()
    rule = "%layers.0.mlp.mul=16"
    AssignPrecision(share=0.8, rules=(rule,)).run(ctx, module)
    assert not any("layers.0.mlp.mul" in found for found in searched_precision(module))
    ctx, module = observed()
    with pytest.raises(RecipeError, match="leave less than"):
        AssignPrecision(share=1.0, rules=(rule,)).run(ctx, module)


def test_a_search_that_has_nothing_left_to_choose_keeps_the_rules() -> None:
    ctx, module = observed()
    AssignPrecision(share=0.5, rules=("%*=8",)).run(ctx, module)
    assert not searched_precision(module)


def bits_of_inputs(module: ModuleOp) -> dict[str, int]:
    """Bits of each value that matrix products alone read."""
    ops = [op for op in mqc_ops(module) if all(isinstance(u.operation, LinearOp) for u in op.results[0].uses)]
    found = {op.value_name: uniform(op.results[0]) for op in ops if not gives_logits(op)}
    return {name: kind.bits for name, kind in found.items() if kind is not None}


def rounded(loss: float, rules: tuple[str, ...] = ()) -> tuple[CompilerContext, ModuleOp]:
    """A module whose precision was searched by its loss, on weights with a bias or two."""
    ctx, module = imported(tiny_model("qwen2"))
    recipe = Recipe(prefix=(), max_loss=loss, precision=rules)
    for p in recipe.pipeline("cpu"):
        p.run(ctx, module)
        if p.name == "search-precision":
            return ctx, module
    raise AssertionError("no search")


def measured(ctx: CompilerContext, module: ModuleOp) -> float:
    """The mean divergence of predictions, the whole logits at once."""
    assert ctx.calibration is not None
    windows = ctx.calibration.part(16, 256)
    with torch.no_grad():
        return float(
            np.mean(
                [
                    divergence(*(model.run_ops(mqc_ops(module), model.arguments(w)) for model in models))
                    for models in [(Student(ctx, module, CPU), FloatModel(ctx, module, CPU))]
                    for w in windows
                ]
            )
        )


def test_a_bound_on_the_loss_is_kept_with_as_few_bits_as_can_be() -> None:
    eight, sixteen = (measured(*rounded(loss)) for loss in (1e9, 1e-9 + np.expm1(lowest_loss())))
    assert sixteen < eight
    bound = (eight + sixteen) / 2
    ctx, module = rounded(float(np.expm1(bound)))
    found = [Rule.parse(rule) for rule in searched_precision(module)]
    assert {f"%{name}": bits for name, bits in bits_of_inputs(module).items()} == {
        r.selector: r.bits for r in found
    }
    assert {rule.bits for rule in found} == {8, 16} and measured(ctx, module) <= bound
    # One value less with 16 bits, and the bound does not hold.
    last = [rule for rule in found if rule.bits == 16][-1]
    (op,) = [op for op in mqc_ops(module) if f"%{op.value_name}" == last.selector]
    Rewriter.replace_value_with_new_type(op.results[0], tensor(value_type(op, 8), channels(op.results[0])))
    assert measured(ctx, module) > bound


def lowest_loss() -> float:
    """What is lost with 16 bits for all values that are searched, by the error of a bound that none keeps."""
    with pytest.raises(RecipeError, match=r"allow more, or give weights more bits") as error:
        rounded(1e-9)
    found = re.search(r"predictions are ([0-9.]+) nats", str(error.value))
    assert found
    return float(found[1]) + 1e-4


def test_a_search_by_loss_leaves_the_users_rules() -> None:
    rules = ("%layers.0.mlp.mul=8", "%layers.1.input_layernorm=16")
    _, module = rounded(1e9, rules)
    bits = bits_of_inputs(module)
    assert bits.pop("layers.1.input_layernorm") == 16 and set(bits.values()) == {8}
    names = " ".join(searched_precision(module))
    assert "layers.0.mlp.mul" not in names and "layers.1.input_layernorm" not in names


def test_a_search_by_loss_that_has_nothing_to_choose() -> None:
    _, module = rounded(1e9, ("%*=8",))
    assert not searched_precision(module)
    with pytest.raises(RecipeError, match="for all 0 values"):
        rounded(1e-9, ("%*=8",))


def test_a_search_by_loss_goes_alone() -> None:
    for more in ({"share": 0.9}, {"learn": "steps=1"}):
        with pytest.raises(RecipeError, match="max_loss goes without"):
            Recipe(max_loss=0.01, **more).pipeline("cpu")  # type: ignore[arg-type]
    ctx, module = quantized_before("lower-to-int")
    with pytest.raises(RecipeError, match="keep_reference=true"):
        SearchPrecision().run(ctx, module)
    with pytest.raises(RecipeError, match="loss must be positive"):
        SearchPrecision(loss=0.0)


def quantized_before(name: str) -> tuple[CompilerContext, ModuleOp]:
    """A tiny module up to a pass of the default recipe."""
    ctx, module = imported(tiny_model("llama"))
    for p in Recipe(prefix=()).pipeline("cpu"):
        if p.name == name:
            break
        p.run(ctx, module)
    return ctx, module


def test_a_share_of_eight_bit_weights_needs_four_bit_ones() -> None:
    with pytest.raises(RecipeError, match="needs weight_bits = 4"):
        Recipe(weights8=0.1).pipeline("cpu")


@pytest.mark.parametrize("keep8", [(), ("layers.0.self_attn.v_proj",)])
def test_weights_get_eight_bits_where_it_pays(keep8: tuple[str, ...]) -> None:
    recipe = Recipe(weight_bits=4, weights8=0.3, keep8=keep8, prefix=(9,))
    pipeline = recipe.pipeline("cpu")
    ctx, module = imported(tiny_model("llama"))
    for p in pipeline.passes[: pipeline.passes.index(*[p for p in pipeline if p.name == "lower-to-int"])]:
        p.run(ctx, module)
    linears = [op for op in mqc_ops(module) if isinstance(op, LinearOp) and not gives_logits(op)]
    eight = sum(op.macs() for op in linears if op.get("weight_bits") == 8)
    assert 0 < eight <= 0.3 * sum(op.macs() for op in linears)
    assert all(op.get("weight_bits") == 8 for op in linears if op.value_name in keep8)


def test_a_rule_gives_a_matrix_four_bits_in_an_eight_bit_recipe() -> None:
    rule = "weight:%layers.0.mlp.up_proj=4"
    _, module = quantized(tiny_model("llama"), Recipe(prefix=(9,), precision=(rule,)))
    linears = [op for op in mqc_ops(module) if op.name == "int.linear"]
    four = [op.value_name.removesuffix(".acc") for op in linears if op.get("weight_bits") == 4]
    assert four == ["layers.0.mlp.up_proj"] and all(op.get("weight_bits") in (4, 8) for op in linears)


@pytest.mark.parametrize("text", ["llm.add", "llm.add=12", "weight:%a=16", "%a=4", "=8"])
def test_wrong_rules_are_named(text: str) -> None:
    with pytest.raises(RecipeError, match="must read selector=8"):
        Rule.parse(text)


def test_a_plan_survives_a_recipe_file(tmp_path: Path) -> None:
    plan = Recipe("plan", precision=tuple(f"%a.{i}=16  # 1.0e-03 nats for 12 MACs" for i in range(9)))
    path = tmp_path / "plan.toml"
    path.write_text(plan.to_toml())
    assert load_recipe(path) == plan
    assert len(path.read_text().splitlines()) > 9
