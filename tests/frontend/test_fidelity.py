"""A program that is not the model does not compile; tracing and comparing leave the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from mqc.errors import ModelError, UnsupportedOpError
from mqc.frontend.fidelity import check_against_model
from mqc.frontend.raising import raise_program
from mqc.frontend.trace import trace
from mqc.ir.weight_store import WeightStore
from tests.models import ARCHITECTURES, VOCABULARY, tiny_model, tokens

#: Scaled from 16 positions on, of 64.
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
        "long_factor": [1.0, 4.0, 7.0, 10.0], "original_max_position_embeddings": 16, "factor": 4.0,
    },
    "original_max_position_embeddings": 16,
}  # fmt: skip
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}


def checked(model: PreTrainedModel, context: int = 64) -> None:
    weights = WeightStore()
    check_against_model(model, raise_program(trace(model), weights, context, VOCABULARY), weights)


def snapshot(model: PreTrainedModel) -> tuple[Any, Any, torch.Tensor]:
    """Attributes that are plain values, all parameters and buffers, logits."""
    plain = {
        (path, name): str(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | str | bool | dict | None) and not name.startswith("_")
    }
    tensors = {name: t.clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    with torch.no_grad():
        return plain, tensors, model(tokens(40)[None]).logits


def models() -> list[Any]:
    return [pytest.param(name, {}, 64, id=name) for name in ARCHITECTURES] + [
        pytest.param("phi3", LONGROPE, 16, id="longrope"),
        pytest.param("llama", DYNAMIC, 64, id="dynamic"),
    ]


@pytest.mark.parametrize(("architecture", "changes", "context"), models())
def test_the_model_is_left_as_it_was(architecture: str, changes: dict[str, Any], context: int) -> None:
    model = tiny_model(architecture, **changes)
    snapshot(model)  # some write to themselves as they compute
    before = snapshot(model)
    checked(model, context)
    after = snapshot(model)
    assert after[0] == before[0]
    assert after[1].keys() == before[1].keys()
    for name, value in before[1].items():
        assert type(after[1][name]) is type(value) and torch.equal(after[1][name], value), name
    assert torch.equal(after[2], before[2])


def test_no_context_across_a_switch_by_length() -> None:
    """Longrope turns all keys again when a sequence grows past its first context."""
    with pytest.raises(UnsupportedOpError, match=r"layers.0.self_attn.*by the length of the sequence"):
        checked(tiny_model("phi3", **LONGROPE))


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("bert", {"is_decoder": False, "intermediate_size": 48}),
        ("roberta", {"is_decoder": True, "intermediate_size": 48}),
    ],
)
def test_other_masks_and_positions_are_found(architecture: str, changes: dict[str, Any]) -> None:
    own = (
        {"head_dim": 8, "intermediate_size": 48, "num_key_value_heads": 2} if "gemma" in architecture else {}
    )
    with pytest.raises(ModelError, match="the float program is not the model"):
        checked(tiny_model(architecture, **own, **changes))


def test_the_first_module_that_differs_is_named() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] += 1
    weights = WeightStore()
    module = raise_program(trace(tiny_model("llama")), weights, 64, VOCABULARY)
    with pytest.raises(ModelError, match=r"first module that differs is layers\.1\.mlp\.up_proj"):
        check_against_model(model, module, weights)


def test_windows_are_crossed() -> None:
    """A window that a program lacks is seen only behind it."""
    model = tiny_model("mistral", sliding_window=40)
    weights = WeightStore()
    module = raise_program(trace(tiny_model("mistral", sliding_window=None)), weights, 64, VOCABULARY)
    with pytest.raises(ModelError, match="for 47 tokens"):
        check_against_model(model, module, weights)


def test_a_model_in_bfloat16_is_compared_in_its_own_precision() -> None:
    checked(tiny_model("llama").to(torch.bfloat16))
