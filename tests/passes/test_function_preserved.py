"""Transformations of the float program do not change what it computes, on any architecture."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mqc.analysis.context import CompilerContext
from mqc.analysis.equivalence_groups import apply_scales, discover
from mqc.analysis.evaluation import Evaluation
from mqc.compiler.pass_manager import Pipeline
from mqc.dialects.rotations import random_hadamard
from mqc.ir.module import mqc_ops, prefix_tokens
from mqc.passes.rotate_channels import find_rotatable
from tests.compiled import imported
from tests.models import ALL, ARCHITECTURES, tiny_model, tokens


def logits(ctx: CompilerContext, module, ids: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    evaluation = Evaluation(module, ctx.weights)
    start = evaluation.position
    with torch.no_grad():
        return evaluation.run(ids, torch.arange(start, start + len(ids)))


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("passes", ["fold-constants", "fold-norm", "fold-constants,fold-norm"])
def test_folding(architecture: str, passes: str) -> None:
    ctx, module = imported(tiny_model(architecture))
    ids = tokens(17)
    before = logits(ctx, module, ids)
    Pipeline.parse(passes).run(ctx, module)
    assert relative_error(logits(ctx, module, ids), before) < 1e-5


@pytest.mark.parametrize("architecture", ALL)
def test_prefix_equals_the_tokens_in_front(architecture: str) -> None:
    ctx, module = imported(tiny_model(architecture))
    ids = tokens(17)
    want = logits(ctx, module, torch.cat([torch.tensor([9, 4]), ids]))[2:]
    Pipeline.parse("absorb-prefix{tokens=9,4}").run(ctx, module)
    assert prefix_tokens(module) == (9, 4)
    assert relative_error(logits(ctx, module, ids), want) < 1e-5


@pytest.mark.parametrize("architecture", ALL)
def test_balancing(architecture: str) -> None:
    ctx, module = imported(tiny_model(architecture))
    Pipeline.parse("fold-constants,fold-norm,absorb-prefix{tokens=9}").run(ctx, module)
    ids = tokens(17)
    before = logits(ctx, module, ids)
    Pipeline.parse("balance-scales{alpha=0.7}").run(ctx, module)
    assert relative_error(logits(ctx, module, ids), before) < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox", "gpt2"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5)
def test_any_scales_of_the_groups_preserve_the_function(architecture: str, seed: int) -> None:
    ctx, module = imported(tiny_model(architecture))
    Pipeline.parse("fold-constants,fold-norm,absorb-prefix{tokens=9}").run(ctx, module)
    groups = discover(module)
    ids = tokens(17)
    before = logits(ctx, module, ids)
    scales = np.exp(np.random.default_rng(seed).uniform(-2, 2, groups.count)).astype(np.float32)
    apply_scales(ctx.weights, module, groups, scales)
    assert relative_error(logits(ctx, module, ids), before) < 1e-5


@pytest.mark.parametrize("architecture", ALL)
def test_rotating(architecture: str) -> None:
    ctx, module = imported(tiny_model(architecture))
    Pipeline.parse("fold-constants,fold-norm,absorb-prefix{tokens=9}").run(ctx, module)
    ids = tokens(17)
    before = logits(ctx, module, ids)
    Pipeline.parse("rotate-channels{seed=3}").run(ctx, module)
    assert relative_error(logits(ctx, module, ids), before) < 1e-5


#: Architectures whose norms have no bias, follow the residual stream and feed linears alone.
STREAM_TURNS = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_turns(architecture: str) -> None:
    ctx, module = imported(tiny_model(architecture))
    Pipeline.parse("fold-constants,fold-norm").run(ctx, module)
    names = [{value.owner.value_name for value in free.values} for free in find_rotatable(module)]
    stream = [turned for turned in names if any("norm" in name for name in turned)]
    assert (len(stream) == 1) == (architecture in STREAM_TURNS)
    layers = sum(op.name == "llm.attention" for op in mqc_ops(module))
    assert sum(any("attn" in name or "attention" in name for name in turned) for turned in names) >= layers


@given(width=st.integers(1, 48), blocks=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_rotations_are_orthogonal_and_turn_as_their_matrix_does(width: int, blocks: int, seed: int) -> None:
    rotation = random_hadamard(width, seed)
    matrix = np.diag(rotation.signs) @ reduce(np.kron, rotation.factors)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-12)
    x = np.random.default_rng(seed).standard_normal((4, blocks * width)).astype(np.float32)
    want = np.concatenate([part @ matrix for part in np.split(x, blocks, axis=1)], axis=1)
    np.testing.assert_allclose(rotation.turn(x), want, rtol=1e-6, atol=1e-6)
