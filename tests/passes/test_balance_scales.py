"""Scales of `balance-scales`: their definition, and models in which channels carry nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from mqc.analysis.context import CompilerContext
from mqc.analysis.equivalence_groups import EquivalenceGroups, discover
from mqc.analysis.evaluation import evaluate
from mqc.analysis.ir_text import print_module
from mqc.arrays import Array
from mqc.compiler.pass_manager import Pipeline
from mqc.dialects.llm import LinearOp
from mqc.passes import balance_scales
from tests.compiled import imported
from tests.models import VOCABULARY, sqnr, tiny_model

ALPHA = 0.5


def alive() -> PreTrainedModel:
    return tiny_model("llama")


def dead_head() -> PreTrainedModel:
    """The first query head is zero; the second shares its key head."""
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight[:8] = 0
    return model


def quiet_relu() -> PreTrainedModel:
    """Every other ReLU hardly ever fires."""
    model = tiny_model("opt")
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.fc1.bias[::2] = -2.5 * layer.fc1.weight[::2].norm(dim=1)
    return model


@pytest.mark.parametrize("make", [alive, dead_head, quiet_relu])
def test_scales_are_as_defined(make: Callable[[], PreTrainedModel]) -> None:
    ctx, module = imported(make())
    Pipeline.parse("fold-constants,fold-norm").run(ctx, module)
    groups = discover(module)
    assert ctx.calibration is not None
    ranges = balance_scales._channel_ranges(ctx, module, ctx.calibration.part(4, 32))
    magnitudes = {value: np.maximum(-low, high) for value, (low, high) in ranges.items()}
    scales = balance_scales._closed_form(ctx, groups, ranges, ALPHA)
    shares: dict[tuple[int, int], list[float]] = {}
    weights: dict[int, float] = {}
    for value, (group, sign) in groups.channels.items():
        readers = [u.operation for u in value.uses if isinstance(u.operation, LinearOp)]
        for channel in np.flatnonzero(group >= 0):
            place = int(group[channel])
            share = magnitudes[value][channel] / magnitudes[value].max()
            shares.setdefault((place, int(sign[channel])), []).append(share)
            for op in readers:
                largest = float(np.abs(ctx.weights[op.weight][:, channel]).max())
                weights[place] = max(weights.get(place, 0.0), largest)
    for place, scale in enumerate(scales):
        a = {}
        for sign in (1, -1):
            seen = [share for share in shares.get((place, sign), []) if share > 1 / 256]
            a[sign] = float(np.exp(np.log(seen).mean())) if seen else 1 / 256
        meets = (place, -1) in shares
        want = (a[1] / a[-1]) ** 0.5 if meets else a[1] ** ALPHA / weights[place] ** (1 - ALPHA)
        assert scale == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("make", [alive, dead_head, quiet_relu])
def test_the_pass_costs_nothing(make: Callable[[], PreTrainedModel]) -> None:
    """As near to float as without it, on other tokens than it saw; with channels that carry nothing too."""
    assert quality(make(), "fold-norm,balance-scales{windows=2}") > quality(make(), "fold-norm") - 2


@pytest.mark.parametrize("make", [alive, quiet_relu])
def test_scales_that_raise_the_noise_are_withdrawn(
    make: Callable[[], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, module = imported(make())
    Pipeline.parse("fold-constants,fold-norm").run(ctx, module)
    before = print_module(module)

    def wild(ctx: CompilerContext, groups: EquivalenceGroups, *_: object) -> Array:
        return np.exp(np.random.default_rng(0).normal(0, 3, groups.count)).astype(np.float32)

    monkeypatch.setattr(balance_scales, "_closed_form", wild)
    Pipeline.parse("balance-scales").run(ctx, module)
    assert print_module(module) == before


def quality(model: PreTrainedModel, passes: str) -> float:
    """SQNR of the quantized model's logits, in dB."""
    ids = np.random.default_rng(9).integers(0, VOCABULARY, 48)
    ctx, module = imported(model)
    want = evaluate(module, ctx.weights, ids)
    steps = f"fold-constants,{passes},observe-ranges,assign-precision,quantize-weights"
    Pipeline.parse(steps).run(ctx, module)
    return float(sqnr(evaluate(module, ctx.weights, ids), want))
