"""Tiny random-weight models of every architecture that the front end is tested on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
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
#: What these do that those above do not: layer norms by hand, norms behind rotary embeddings, factors by
#: position, a scale that no weight takes, attention by their own products, masks of their own, functions that
#: are no activation's, and inputs of each layer.
_FURTHER: dict[str, dict[str, Any]] = {
    "cohere": {**_GATED, "logit_scale": 0.25},
    "ctrl": {"dff": 48},
    "falcon": {"multi_query": True, "ffn_hidden_size": 48},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6, "intermediate_size": 48},
    "gptj": {"rotary_dim": 4, "n_inner": 48},
    "hunyuan_v1_dense": {**_GATED, "head_dim": 8},
    "ministral3": {
        **_GATED, "head_dim": 8,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.1,
        },
    },
    "apertus": _GATED,
    "gemma4_text": {
        **_GATED, "head_dim": 8, "global_head_dim": 16, "sliding_window": 6, "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
    },
    "olmo": {**_GATED, "clip_qkv": 0.5},
    "xglm": {"ffn_dim": 48},
}  # fmt: skip
#: What `npu-int8` refuses. Mixtures of experts: with biases, and attention with sinks; by softmax; with
#: shared ones behind a gate; by sigmoid and a bias among groups. Latent attention. Short convolutions.
#: Softcaps. Attention in chunks, and experts whose inputs are weighted. Norms with a bias that another op
#: than a product reads. Biases of keys by position.
_ROUTED: dict[str, Any] = {
    **_GATED,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
_NOT_ON_NPU: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        **_ROUTED,
        "num_local_experts": 4,
        "head_dim": 8,
        "sliding_window": 6,
        "intermediate_size": 24,
    },
    "deepseek_v2": {
        "intermediate_size": 48,
        "q_lora_rank": 12,
        "kv_lora_rank": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "first_k_dense_replace": 9,
    },
    "llama4_text": {
        **_ROUTED,
        "head_dim": 8,
        "intermediate_size": 24,
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 0],
        "attention_chunk_size": 8,
        "floor_scale": 8,
    },
    "minicpm3": {
        "intermediate_size": 48,
        "q_lora_rank": 12,
        "kv_lora_rank": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },
    "bloom": {"n_layer": 2},
    "mpt": {"max_seq_len": 64},
    "openai-gpt": {},
    "persimmon": {"intermediate_size": 48},
    "gemma2": {**_GATED, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "lfm2": {
        **_GATED,
        "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
        "conv_bias": True,
    },
    "mixtral": {**_ROUTED, "num_local_experts": 4},
    "qwen2_moe": {**_ROUTED, "num_experts": 4},
    "glm4_moe": {
        **_ROUTED,
        "n_routed_experts": 12,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 0,
    },
}
#: What `npu-int8` and `onnx-int8` refuse: linear attention with a state. Fewer key heads than heads, and
#: values of another width; projections apart; a decay of each key channel; the scan of Mamba-2, by
#: itself and beside attention, with factors on its projections; that of Mamba, with norms, beside attention;
#: channels of two values under a norm, and layers that several places share.
_RECURRENT_OF: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_RECURRENT: dict[str, dict[str, Any]] = {
    "qwen3_next": {**_ROUTED, **_RECURRENT_OF, "head_dim": 8, "num_experts": 4},
    "qwen3_5_text": {**_GATED, **_RECURRENT_OF, "head_dim": 8},
    "olmo_hybrid": {**_GATED, **_RECURRENT_OF, "linear_num_key_heads": 4},
    "mamba2": {
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 6,
        "n_groups": 2,
        "chunk_size": 8,
        "tie_word_embeddings": True,
    },
    "mamba": {"state_size": 6, "time_step_rank": 4, "tie_word_embeddings": True},
    "jamba": {
        **_ROUTED,
        "num_experts": 4,
        "mamba_d_state": 6,
        "mamba_dt_rank": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "zamba2": {
        **_GATED,
        "num_key_value_heads": 4,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "num_mem_blocks": 1,
        "adapter_rank": 6,
        "mamba_d_state": 6,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "chunk_size": 8,
    },
    "falcon_h1": {
        **_GATED,
        "head_dim": 8,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 6,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
        "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9],
        "key_multiplier": 0.7,
        "mlp_multipliers": [0.8, 0.9],
        "ssm_in_multiplier": 0.9,
    },
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_heads": 4,
        "linear_head_dim": 6,
        "intermediate_size": 48,
        "q_lora_rank": 12,
        "kv_lora_rank": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "first_k_dense_replace": 9,
    },
}
ARCHITECTURES = sorted(_OWN)
FURTHER = sorted(_FURTHER)
NOT_ON_NPU = sorted(_NOT_ON_NPU)
RECURRENT = sorted(_RECURRENT)
#: For tests of more than the front end.
ON_NPU = [*ARCHITECTURES, *(pytest.param(name, marks=pytest.mark.slow) for name in FURTHER)]
ON_ONNX = [*ON_NPU, *(pytest.param(name, marks=pytest.mark.slow) for name in NOT_ON_NPU)]
ALL = [*ON_ONNX, *(pytest.param(name, marks=pytest.mark.slow) for name in RECURRENT)]


def tokens(count: int) -> torch.Tensor:
    """Token ids `[count]`, the same on every call."""
    return torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(count))


def tiny_model(architecture: str, **changes: Any) -> PreTrainedModel:
    """Two layers, 32 wide, weights random but the same on every call."""
    torch.manual_seed(0)
    own = (_OWN | _FURTHER | _NOT_ON_NPU | _RECURRENT).get(architecture, {})
    config = CONFIG_MAPPING[architecture](**{**_COMMON, **own, **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return model


def sqnr(got: Any, want: Any) -> float:
    """Signal to quantization noise, dB."""
    noise = got.astype(np.float64) - want
    return float(10 * np.log10((want.astype(np.float64) ** 2).sum() / max((noise**2).sum(), 1e-9)))
