"""Tiny random-weight models of every architecture that the front end is tested on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 64

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
_GATED = {"intermediate_size": 48, "num_key_value_heads": 2}
_OWN: dict[str, dict[str, Any]] = {
    "llama": _GATED,
    "mistral": {**_GATED, "sliding_window": 6},
    "qwen2": _GATED,
    "qwen3": {**_GATED, "head_dim": 8},
    "gemma": {**_GATED, "head_dim": 8},
    "gemma3_text": {**_GATED, "head_dim": 8, "sliding_window": 6},
    "stablelm": _GATED,
    "phi": _GATED,
    "phi3": _GATED,
    "gpt2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": {"intermediate_size": 48},
    "olmo2": _GATED,
    "nemotron": {**_GATED, "partial_rotary_factor": 0.5},
}
ARCHITECTURES = sorted(_OWN)


def tokens(count: int) -> torch.Tensor:
    """Token ids `[count]`, the same on every call."""
    return torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(count))


def tiny_model(architecture: str, **changes: Any) -> PreTrainedModel:
    """Two layers, 32 wide, weights random but the same on every call."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[architecture](**{**_COMMON, **_OWN.get(architecture, {}), **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def sqnr(got: Any, want: Any) -> float:
    """Signal to quantization noise, dB."""
    noise = got.astype(np.float64) - want
    return float(10 * np.log10((want.astype(np.float64) ** 2).sum() / max((noise**2).sum(), 1e-9)))
