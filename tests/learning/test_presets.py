"""Presets are fields of a recipe, and each gives an integer program."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import evaluate
from mqc.compiler.recipe import PRESETS, Recipe, load_recipe
from mqc.errors import RecipeError
from mqc.ir.module import level, prefix_tokens
from tests.compiled import quantized
from tests.models import tiny_model

ROOT = Path(__file__).parents[2]


def likeness(ctx: CompilerContext, module: ModuleOp) -> float:
    """Correlation of the program's logits with the float model's, behind the same prefix."""
    ids = np.arange(12)
    prefix = prefix_tokens(module)
    given = torch.from_numpy(np.concatenate([prefix, ids]).astype(np.int64))[None]
    with torch.no_grad():
        want = tiny_model("llama", intermediate_size=64)(given).logits[0, len(prefix) :]
    got = evaluate(module, ctx.weights, ids)
    return float(np.corrcoef(got.reshape(-1), want.numpy().reshape(-1))[0, 1])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param("w8a8", marks=pytest.mark.slow),
        pytest.param(Recipe("w4", weight_bits=4), marks=pytest.mark.slow),
        Recipe("g", weight_bits=4, group=32),
    ],
)
def test_presets_compile(preset: str, recipe: str | Recipe) -> None:
    chosen = load_recipe(recipe, preset)
    assert chosen.name.endswith(f", {preset}")
    ctx, module = quantized(tiny_model("llama", intermediate_size=64), chosen)
    assert level(module) == "int"
    assert likeness(ctx, module) > 0.8


def test_tuning_after_quantization_compiles() -> None:
    recipe = Recipe(weight_bits=4, tune="steps=4 length=32 lr_weights=0.001 lr_biases=0.001")
    ctx, module = quantized(tiny_model("llama", intermediate_size=64), recipe)
    assert level(module) == "int"
    assert likeness(ctx, module) > 0.8


def test_the_readme_s_recipe_compiles(tmp_path: Path) -> None:
    """With what is SmolLM2's own replaced, and two steps."""
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "mine.toml").write_text(re.sub(r"steps=\d+", "steps=2 length=32", block))
    stated = load_recipe(tmp_path / "mine.toml")
    assert all(f"{entry.name} =" in block for entry in fields(Recipe) if entry.name != "name")
    ctx, module = quantized(
        tiny_model("llama", intermediate_size=64), replace(stated, group=32, prefix=(3, 5))
    )
    assert level(module) == "int"
    assert likeness(ctx, module) > 0.8


def test_a_preset_changes_the_method_alone() -> None:
    base = Recipe("mine", weight_bits=4, group=64, share=0.9, prefix=(3,), precision=("%a=16",))
    for preset in PRESETS:
        chosen = load_recipe(base, preset)
        for kept in ("weight_bits", "group", "share", "prefix", "precision", "keep8"):
            assert getattr(chosen, kept) == getattr(base, kept)


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(RecipeError, match="known: fast, smoothquant, omniquant, mobilequant, learned"):
        load_recipe("w8a8", "quarot")
