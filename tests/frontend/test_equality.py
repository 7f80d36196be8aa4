"""The raised program computes what the model computes, for every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from mqc.analysis.evaluation import Evaluation
from mqc.analysis.ir_text import parse_module, print_module
from mqc.frontend.raising import raise_program
from mqc.frontend.trace import trace
from mqc.ir.weight_store import WeightStore
from tests.models import ALL, VOCABULARY, tiny_model, tokens


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


#: Forms of an architecture that take other paths of the front end.
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),  # a norm of each head
    # queries times a number for each position, a gate with a bias of each head
    (
        "beam",
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 48,
            "moe_intermediate_size": 24,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse"],
        },
    ),
    # layers that are called several times, with a vector in front
    ("hrm_text", {"intermediate_size": 48, "head_dim": 8, "num_hidden_layers": 12}),
    ("falcon", {"alibi": True}),
    ("falcon", {"alibi": True, "attn_implementation": "eager"}),  # its code for this adds the bias twice
]


@pytest.mark.parametrize("architecture", ALL)
def test_logits_equal_the_models(architecture: str) -> None:
    check_logits(tiny_model(architecture))


@pytest.mark.parametrize(("architecture", "changes"), FORMS)
def test_logits_of_other_forms(architecture: str, changes: dict[str, Any]) -> None:
    check_logits(tiny_model(architecture, **changes))


def check_logits(model: PreTrainedModel) -> None:
    """At two lengths, at once and token by token."""
    weights = WeightStore()
    module = raise_program(trace(model), weights, 64, VOCABULARY)
    module.verify()
    text = print_module(module)
    assert print_module(parse_module(text)) == text
    evaluation = Evaluation(module, weights)
    for length in (5, 23):
        ids = tokens(length)
        with torch.no_grad():
            want = model(ids[None]).logits[0]
            evaluation.reset()
            whole = evaluation.run(ids, torch.arange(length))
            evaluation.reset()
            steps = [evaluation.run(ids[i : i + 1], torch.arange(i, i + 1)) for i in range(length)]
        assert relative_error(whole, want) < 1e-5
        assert relative_error(torch.cat(steps), want) < 1e-5


@pytest.mark.parametrize("architecture", ["gpt_neox", "phi"])
def test_partial_rotary_is_one_rope(architecture: str) -> None:
    model = tiny_model(architecture)
    text = print_module(raise_program(trace(model), WeightStore(), 64, VOCABULARY))
    assert text.count("llm.rope") == 4  # queries and keys of two layers


def test_shared_weights_stay_shared() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    text = print_module(raise_program(trace(model), WeightStore(), 64, VOCABULARY))
    table, head = (line for line in text.splitlines() if "tensor<64x32xf32>" in line and "#mqc" in line)
    assert table.split("#mqc.weight<")[1].split(">")[0] == head.split("#mqc.weight<")[1].split(">")[0]


def test_inputs_of_each_layer_are_columns_of_their_table() -> None:
    """Of norm, sum and table alike: no value holds those of all layers."""
    model = tiny_model("gemma4_text", hidden_size_per_layer_input=6)
    text = print_module(raise_program(trace(model), WeightStore(), 64, VOCABULARY))
    tables = [line for line in text.splitlines() if "llm.embedding" in line and "tensor<64x6xf32>" in line]
    assert len(tables) == 4 and "tensor<?x24xf32>" not in text
