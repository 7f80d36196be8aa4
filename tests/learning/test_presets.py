"""Presets are fields of a recipe, and each gives an integer program."""

from __future__ import annotations

import numpy as np
import pytest

from mqc.errors import RecipeError
from mqc.evaluation import evaluate
from mqc.ir import level
from mqc.recipe import PRESETS, Recipe, load_recipe
from tests.compiled import quantized
from tests.models import tiny_model


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "recipe", ["w8a8", Recipe("w4", weight_bits=4), Recipe("g", weight_bits=4, group=32)]
)
def test_presets_compile(preset: str, recipe: str | Recipe) -> None:
    chosen = load_recipe(recipe, preset)
    assert chosen.name.endswith(f", {preset}")
    ctx, module = quantized(tiny_model("llama", intermediate_size=64), chosen)
    assert level(module) == "int"
    assert np.isfinite(evaluate(module, ctx.weights, np.arange(9))).all()


def test_tuning_after_quantization_compiles() -> None:
    recipe = Recipe(weight_bits=4, tune="steps=4 length=32 lr_weights=0.001 lr_biases=0.001 lr_scales=0.0")
    ctx, module = quantized(tiny_model("llama"), recipe)
    assert level(module) == "int"
    assert np.isfinite(evaluate(module, ctx.weights, np.arange(9))).all()


def test_a_preset_changes_the_method_alone() -> None:
    base = Recipe("mine", weight_bits=4, group=64, share=0.9, prefix=(3,), precision=("%a=16",))
    for preset in PRESETS:
        chosen = load_recipe(base, preset)
        for kept in ("weight_bits", "group", "share", "prefix", "precision", "keep8"):
            assert getattr(chosen, kept) == getattr(base, kept)


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(RecipeError, match="known: smoothquant, omniquant, mobilequant, learned"):
        load_recipe("w8a8", "quarot")
