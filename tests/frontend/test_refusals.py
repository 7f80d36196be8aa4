"""Models that cannot be compiled are refused with an error that says why."""

from __future__ import annotations

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


def test_mixture_of_experts() -> None:
    config = CONFIG_MAPPING["mixtral"](
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    with pytest.raises(ModelError, match="mixture of experts"):
        trace(AutoModelForCausalLM.from_config(config))


def test_model_without_head() -> None:
    with pytest.raises(ModelError, match="no language-model head"):
        trace(tiny_model("llama").model)


def test_unknown_op_names_op_module_and_source() -> None:
    model = tiny_model("llama", hidden_act="mish")
    with pytest.raises(UnsupportedOpError) as caught:
        raise_program(trace(model), WeightStore(), 64, VOCABULARY)
    message = str(caught.value)
    assert "layers.0.mlp.act_fn: aten.mish" in message
    assert "traced at" in message and "known: llm.add" in message


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    model.train()
    before = model.config._attn_implementation
    trace(model)
    assert model.config._attn_implementation == before and model.training
