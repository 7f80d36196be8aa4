"""Transformations of the float program do not change what it computes, on any architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mqc.passes.balance_scales import apply_scales

from mqc.equivalence_groups import discover
from mqc.evaluation import Evaluation
from mqc.ir import CompilerContext, prefix_tokens
from mqc.pass_manager import Pipeline
from tests.compiled import imported
from tests.models import ARCHITECTURES, VOCABULARY, tiny_model


def logits(ctx: CompilerContext, module, ids: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    evaluation = Evaluation(module, ctx.weights)
    start = evaluation.position
    with torch.no_grad():
        return evaluation.run(ids, torch.arange(start, start + len(ids)))


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("passes", ["fold-constants", "fold-norm", "fold-constants,fold-norm"])
def test_folding(architecture: str, passes: str) -> None:
    ctx, module = imported(tiny_model(architecture))
    ids = torch.randint(0, VOCABULARY, (17,))
    before = logits(ctx, module, ids)
    Pipeline.parse(passes).run(ctx, module)
    assert relative_error(logits(ctx, module, ids), before) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prefix_equals_the_tokens_in_front(architecture: str) -> None:
    ctx, module = imported(tiny_model(architecture))
    ids = torch.randint(0, VOCABULARY, (17,))
    want = logits(ctx, module, torch.cat([torch.tensor([9, 4]), ids]))[2:]
    Pipeline.parse("absorb-prefix{tokens=9,4}").run(ctx, module)
    assert prefix_tokens(module) == (9, 4)
    assert relative_error(logits(ctx, module, ids), want) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_balancing(architecture: str) -> None:
    ctx, module = imported(tiny_model(architecture))
    Pipeline.parse("fold-constants,fold-norm,absorb-prefix{tokens=9}").run(ctx, module)
    ids = torch.randint(0, VOCABULARY, (17,))
    before = logits(ctx, module, ids)
    Pipeline.parse("balance-scales{alpha=0.7}").run(ctx, module)
    assert relative_error(logits(ctx, module, ids), before) < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox", "gpt2"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_any_scales_of_the_groups_preserve_the_function(architecture: str, seed: int) -> None:
    ctx, module = imported(tiny_model(architecture))
    Pipeline.parse("fold-constants,fold-norm,absorb-prefix{tokens=9}").run(ctx, module)
    groups = discover(module)
    ids = torch.randint(0, VOCABULARY, (17,))
    before = logits(ctx, module, ids)
    scales = np.exp(np.random.default_rng(seed).uniform(-2, 2, groups.count)).astype(np.float32)
    apply_scales(ctx, module, groups, scales)
    assert relative_error(logits(ctx, module, ids), before) < 1e-5
