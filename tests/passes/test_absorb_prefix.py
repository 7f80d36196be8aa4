"""`absorb-prefix`: which tokens it takes, and how it judges them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mqc.calibration import Calibration
from mqc.compiler.pass_manager import Pipeline
from mqc.ir.module import prefix_tokens
from mqc.passes import absorb_prefix
from tests.compiled import imported
from tests.models import VOCABULARY, tiny_model


def _searching(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on any divergence is worth a prefix, if that lowers it."""
    monkeypatch.setattr(absorb_prefix, "_ENOUGH", -1.0)


def test_a_prefix_is_found_on_windows_of_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    _searching(monkeypatch)
    ctx, module = imported(tiny_model("llama"))
    ctx.calibration = Calibration(np.arange(8)[:, None], bos=0)
    Pipeline.parse("fold-norm,absorb-prefix").run(ctx, module)
    assert len(prefix_tokens(module)) <= 2


def test_no_prefix_where_rounding_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried where 8 bits cost less than a prefix; the tokenizer's tokens stand in front anyway."""
    for start in ((), (3,)):
        ctx, module = imported(tiny_model("llama"))
        assert ctx.calibration is not None
        ctx.calibration = replace(ctx.calibration, start=start)
        with monkeypatch.context() as patch:
            patch.setattr(absorb_prefix, "_candidates", None)
            Pipeline.parse("fold-norm,rotate-channels,absorb-prefix").run(ctx, module)
        assert prefix_tokens(module) == start


def test_each_token_must_be_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _searching(monkeypatch)
    ctx, module = imported(tiny_model("llama"))
    Pipeline.parse("fold-norm").run(ctx, module)
    trials = {(): 0.4, (5,): 0.1, (5, 7): 0.095}

    def simulated(self: object, prefixes: list[tuple[int, ...]], tokens: int, report: object) -> list[object]:
        return [absorb_prefix._Trial(p, trials.get(p, 0.5), (5, 5, 7)) for p in prefixes]

    monkeypatch.setattr(absorb_prefix._Simulation, "__call__", simulated)
    Pipeline.parse("absorb-prefix").run(ctx, module)
    assert prefix_tokens(module) == (5,), "a second token gains too little"


@pytest.mark.parametrize("eight_bits", [False, True])
def test_simulated_divergence(eight_bits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without 8-bit values it is that of the transformers model behind the prefix; with them more."""
    monkeypatch.setattr("mqc.numerics.bfloat16.has_bfloat16", lambda: False)  # exact on any CPU
    monkeypatch.setattr("mqc.arrays._BLOCK", 1 << 10)  # the vocabulary in several slices
    model = tiny_model("llama")
    ctx, module = imported(model)
    windows = np.random.default_rng(0).integers(0, VOCABULARY, (3, 12))
    simulation = absorb_prefix._Simulation(ctx, module, (2,), windows)
    if not eight_bits:
        simulation._rounded.clear()
    prefixes = [(2, 9), (2, 4)]
    trials = simulation(prefixes, 8, lambda share: None)

    def log_p(prefix: tuple[int, ...]) -> torch.Tensor:
        rows = torch.tensor([[*prefix, *window] for window in windows[:, :8].tolist()])
        with torch.no_grad():
            return model(rows).logits[:, len(prefix) :].double().log_softmax(-1)

    exact = log_p((2,))
    for prefix, trial in zip(prefixes, trials, strict=True):
        want = float((exact.exp() * (exact - log_p(prefix))).sum(-1).mean())
        assert trial.prefix == prefix and want > 1e-3
        if eight_bits:
            assert abs(trial.divergence / want - 1) > 1e-4
        else:
            assert trial.divergence == pytest.approx(want, rel=1e-3)


def test_no_prefix_on_request() -> None:
    ctx, module = imported(tiny_model("llama"))
    Pipeline.parse("fold-norm,absorb-prefix{most=0}").run(ctx, module)
    assert "mqc.prefix" not in module.attributes
