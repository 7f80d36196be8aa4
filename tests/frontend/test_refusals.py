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


def test_mixture_of_experts() -> None:
    config = CONFIG_MAPPING["mixtral"](
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    with pytest.raises(ModelError, match="mixture of experts"):
        trace(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    ("kind", "sizes", "told"),
    [
        (
            "falcon",
            {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "alibi": False},
            r"that cannot be traced: transformer\.h\.0\.self_attention, at modeling_falcon\.py:\d+\n",
        ),
        (
            "mamba2",
            {
                "hidden_size": 8, "num_hidden_layers": 1, "num_heads": 2, "head_dim": 8, "n_groups": 1,
                "state_size": 4,
            },
            "does not do the same for every number of tokens\n",
        ),
        (
            "dbrx",
            {
                "d_model": 8, "n_heads": 2, "n_layers": 1, "max_seq_len": 64,
                "attn_config": {"kv_n_heads": 1, "rope_theta": 10000.0, "clip_qkv": 8.0},
                "ffn_config": {"ffn_hidden_size": 8, "moe_num_experts": 2, "moe_top_k": 1},
            },
            r"values that it computes from the tokens: .*experts, at modeling_dbrx\.py:\d+\n",
        ),
    ],
)  # fmt: skip
def test_code_that_cannot_be_traced(kind: str, sizes: dict[str, Any], told: str) -> None:
    """In our words, with the module; torch.export's are the cause."""
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](vocab_size=16, **sizes))
    with pytest.raises(ModelError, match=told) as caught:
        trace(model)
    assert "export" not in str(caught.value) and caught.value.__cause__ is not None


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
