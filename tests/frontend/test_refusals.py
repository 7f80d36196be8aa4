"""Models that cannot be compiled are refused with an error that says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from mqc.errors import ModelError, UnsupportedOpError
from mqc.frontend.raising import raise_program
from mqc.frontend.trace import trace
from mqc.ir.weight_store import WeightStore
from tests.models import VOCABULARY, tiny_model


def test_not_a_model() -> None:
    with pytest.raises(ModelError, match="expected a transformers PreTrainedModel"):
        trace(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(value: float) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 4] = value
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        trace(model)


def test_encoder_decoder() -> None:
    config = CONFIG_MAPPING["t5"](vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ModelError, match="encoder-decoder"):
        trace(AutoModelForSeq2SeqLM.from_config(config))


@pytest.mark.parametrize(
    ("kind", "sizes", "told"),
    [
        (
            "minimax",
            {
                "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
                "head_dim": 4, "intermediate_size": 8, "num_local_experts": 2, "block_size": 8,
                "layer_types": ["linear_attention"],
            },
            "does not do the same for every number of tokens\n",
        ),
    ],
)  # fmt: skip
def test_code_that_cannot_be_traced(kind: str, sizes: dict[str, Any], told: str) -> None:
    """In our words, with the module; torch.export's are the cause."""
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](vocab_size=16, **sizes))
    with pytest.raises(ModelError, match=told) as caught:
        trace(model)
    assert "export" not in str(caught.value) and caught.value.__cause__ is not None


def test_code_that_leaves_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(model.model.layers[1].mlp, "forward", lambda x: torch.from_numpy(x.numpy()))
    with pytest.raises(ModelError, match=r"that cannot be traced: model\.layers\.1\.mlp, at .*:\d+\n"):
        trace(model)


def test_code_that_decides_by_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(model.model.layers[1].mlp, "forward", lambda x: x if x.sum() > 0 else -x)
    with pytest.raises(
        ModelError, match=r"by values that it computes from the tokens: model\.layers\.1\.mlp, at "
    ):
        trace(model)


def test_dense_models_of_an_architecture_with_experts() -> None:
    """What counts is what the model consists of, not what its config could have."""
    model = tiny_model(
        "qwen3_moe", intermediate_size=48, num_key_value_heads=2, head_dim=8, mlp_only_layers=[0, 1]
    )
    raise_program(trace(model), WeightStore(), 64, VOCABULARY)


def test_model_without_head() -> None:
    with pytest.raises(ModelError, match="no language-model head"):
        trace(tiny_model("llama").model)


class Sine(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


def test_unknown_op_names_op_module_and_source() -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp.act_fn = Sine()
    with pytest.raises(UnsupportedOpError) as caught:
        raise_program(trace(model), WeightStore(), 64, VOCABULARY)
    message = str(caught.value)
    assert "layers.0.mlp.act_fn: aten.sin" in message
    assert "traced at" in message and "known: llm.add" in message


def test_a_function_of_too_many_steps() -> None:
    class Power(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(64):
                x = x * x
            return x

    model = tiny_model("llama")
    model.model.layers[0].mlp.act_fn = Power()
    with pytest.raises(UnsupportedOpError, match=r"act_fn: aten\.mul\.Tensor makes more than 100 steps"):
        raise_program(trace(model), WeightStore(), 64, VOCABULARY)


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    model.train()
    before = model.config._attn_implementation
    trace(model)
    assert model.config._attn_implementation == before and model.training
