"""A table that gives the logits too stands once in a program, whatever turned, scaled and rounded it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import Recipe
from mqc.dialects.int_ops import EmbeddingOp, LinearOp
from mqc.dialects.llm import shared_tables
from mqc.dialects.rotations import paley
from mqc.ir.module import gives_logits, mqc_ops
from tests.compiled import imported, lower_for_cpu, lower_for_onnx, quantized
from tests.models import ARCHITECTURES, tiny_model
from tests.passes.test_function_preserved import logits, relative_error

FOLDED = "fold-constants,fold-norm,absorb-prefix{tokens=9}"


@pytest.mark.parametrize(
    "recipe", [Recipe(prefix=(9,)), Recipe("w4", weight_bits=4, rotate=False, prefix=(9,))]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_table_in_the_program(architecture: str, recipe: Recipe) -> None:
    ctx, module = quantized(tiny_model(architecture, tie_word_embeddings=True), recipe)
    for lower in (lower_for_cpu, lower_for_onnx):
        lower(ctx, module)
        (embedding,) = (
            op for op in mqc_ops(module) if isinstance(op, EmbeddingOp) and op.indices.name_hint == "ids"
        )
        head = next(op for op in mqc_ops(module) if isinstance(op, LinearOp) and "head" in op.value_name)
        assert embedding.table == head.weight


@pytest.mark.parametrize(
    "passes", [FOLDED, f"{FOLDED},rotate-channels", f"{FOLDED},rotate-channels,balance-scales"]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_they_stay_one(architecture: str, passes: str) -> None:
    ctx, module = imported(tiny_model(architecture, tie_word_embeddings=True))
    Pipeline.parse(passes).run(ctx, module)
    ((_, head),) = shared_tables(module)
    assert gives_logits(head)


def test_a_factor_of_tied_logits_goes_into_the_norm() -> None:
    """Granite divides its logits."""
    model = tiny_model("granite", tie_word_embeddings=True, logits_scaling=8.0, intermediate_size=48)
    ctx, module = imported(model)
    ids = torch.arange(9)
    before = logits(ctx, module, ids)
    Pipeline.parse("fold-constants").run(ctx, module)
    assert len(list(shared_tables(module))) == 1
    assert not any(op.name == "llm.scale" and gives_logits(op) for op in mqc_ops(module))
    assert relative_error(logits(ctx, module, ids), before) < 1e-5


def test_a_search_leaves_the_matrices_in_front_alone() -> None:
    """They have 8 bits where all others have 4."""
    ctx, module = imported(tiny_model("llama", tie_word_embeddings=True, hidden_size=64))
    search = "observe-ranges,assign-precision{weights8=0.05 samples=2 length=16}"
    Pipeline.parse(f"{FOLDED},rotate-channels,{search}").run(ctx, module)
    by_name = {op.value_name: op for op in mqc_ops(module)}
    assert all(by_name[name].get("weight_bits") == 8 for name in ("norm.gain", "norm.basis"))


def test_two_where_that_is_asked_for() -> None:
    ctx, module = imported(tiny_model("llama", tie_word_embeddings=True))
    Pipeline.parse("fold-constants,fold-norm{share-tables=false}").run(ctx, module)
    assert not list(shared_tables(module))


@given(st.integers(1, 300))
def test_paley_matrices_are_hadamard_matrices(order: int) -> None:
    matrix = paley(order)
    if matrix is not None:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(order), atol=1e-12)
        np.testing.assert_allclose(np.abs(matrix) * np.sqrt(order), 1)


def test_the_usual_widths_have_one() -> None:
    assert all(paley(order) is not None for order in (12, 20, 28, 36, 44, 60))
    assert all(paley(order) is None for order in (1, 2, 3, 6, 14, 22, 52, 92))
