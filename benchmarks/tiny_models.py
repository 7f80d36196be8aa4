"""Tiny configs of the decoders that transformers registers as causal language models."""

from __future__ import annotations

import dataclasses
from typing import Any

#: Kinds of two layers.
SLIDING = ["sliding_attention", "full_attention"]
LINEAR = ["linear_attention", "full_attention"]

# fmt: off
#: What a config gets of these, if it has a field of that name. Multipliers are not 1, their default.
COMMON: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "d_model": 64, "n_embd": 64, "emb_dim": 64,
    "embedding_size": 64, "input_embedding_size": 64, "output_embedding_size": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 96, "ffn_dim": 96, "decoder_ffn_dim": 96, "encoder_ffn_dim": 96,
    "ffn_hidden_size": 96, "n_inner": 96, "dff": 96, "dim_ff": 96, "d_inner": 96, "feed_forward_size": 96,
    "intermediate_size_mlp": 96, "dense_intermediate_size": 96, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32,
    "expert_ffn_hidden_size": 32, "shared_intermediate_size": 32, "shared_experts_intermediate_size": 32,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2,
    "encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_layers": 2, "num_attention_heads": 4,
    "n_head": 4, "n_heads": 4, "attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "num_key_value_heads": 2,
    "num_kv_heads": 2, "head_dim": 16, "swa_head_dim": 16, "kv_channels": 16, "dim_head": 16,
    "attention_head_size": 16,
    "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256, "n_ctx": 256,
    "model_max_length": 256, "max_target_positions": 256, "context_length": 256, "sliding_window": 6,
    "attention_window_size": 6, "window_size": 6, "sliding_window_size": 6, "attention_chunk_size": 8,
    "local_attention": 12, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "num_experts": 4, "n_routed_experts": 4,
    "num_local_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2,
    "n_group": 1, "topk_group": 1, "num_shared_experts": 1, "n_shared_experts": 1,
    "moe_num_shared_experts": 1, "first_k_dense_replace": 1, "num_dense_layers": 1, "zero_expert_num": 2,
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_chunk_size": 8, "mamba_d_ssm": 128,
    "mamba_ngroups": 1, "n_mamba_heads": 2, "state_size": 8, "chunk_size": 8, "mamba_num_heads": 8,
    "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_head_dim": 16, "linear_num_heads": 4, "index_topk": 4, "index_head_dim": 16,
    "index_n_heads": 2, "laurel_rank": 8, "altup_num_inputs": 2, "vocab_size_per_layer_input": 256,
    "hidden_size_per_layer_input": 16, "query_pre_attn_scalar": 16, "rotary_dim": 8,
    "audio_vocab_size": 256, "type_vocab_size": 2, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 0,
    "router_jitter_noise": 0.0, "input_jitter_noise": 0.0, "d_rel": 8, "rel_extent": 32,
    "conv_L_cache": 3, "adapter_rank": 8, "hc_lowrank": 8, "router_hidden_size": 16,
    "output_router_logits": False,
    "original_max_position_embeddings": 256, "expansion_ratio": 2, "intermediate_multiple_size": 2,
    "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
    "attention_multiplier": 0.2, "lm_head_multiplier": 0.5, "key_multiplier": 0.7,
    "attention_out_multiplier": 0.8, "attention_in_multiplier": 1.2, "ssm_in_multiplier": 0.9,
    "ssm_out_multiplier": 1.1, "logit_scale": 0.25,
}

#: What an architecture needs besides.
OWN: dict[str, dict[str, Any]] = {
    "afmoe": {"layer_types": SLIDING},
    "axk1": {"num_key_value_heads": 4},
    "axk2": {"num_key_value_heads": 4},
    "bailing_hybrid": {"num_key_value_heads": 4, "layer_types": LINEAR, "num_mtp_layers": 0},
    "bamba": {"attn_layer_indices": [1]},
    "beam": {"layer_types": SLIDING},
    "cohere2": {"layer_types": SLIDING},
    "cohere2_moe": {"layer_types": SLIDING},
    "cohere_compass_text": {"layer_types": SLIDING,
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0,
        "mrope_section": [4, 2, 2]}, "full_attention": None}},
    "cpmant": {"position_bias_num_buckets": 16, "position_bias_max_distance": 64, "prompt_length": 4},
    "cwm": {"layer_types": SLIDING},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v2": {"num_key_value_heads": 4, "head_dim": 8},
    "deepseek_v3": {"num_key_value_heads": 4},
    "deepseek_v32": {"num_key_value_heads": 4},
    "deepseek_v4": {"num_hidden_layers": 3, "layer_types": ["sliding_attention",
        "compressed_sparse_attention", "heavily_compressed_attention"], "num_key_value_heads": 1,
        "head_dim": 32, "o_groups": 2, "o_lora_rank": 8, "hc_mult": 2},
    "dots1": {"layer_types": SLIDING},
    "dots3_note_text": {"num_key_value_heads": 4},
    "ernie4_5_moe": {"moe_layer_start_index": 1, "moe_layer_end_index": -1},
    "exaone4": {"layer_types": SLIDING},
    "exaone_moe": {"layer_types": SLIDING},
    "falcon_h1": {"mlp_multipliers": [0.8, 0.9], "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9]},
    "flint": {"layer_types": SLIDING},
    "gemma2": {"layer_types": SLIDING},
    "gemma3_text": {"layer_types": SLIDING},
    "gemma3n_text": {"num_hidden_layers": 4, "layer_types": SLIDING * 2, "num_kv_shared_layers": 2,
        "intermediate_size": 96, "activation_sparsity_pattern": [0.0, 0.0, 0.0, 0.0]},
    "gemma4_text": {"num_hidden_layers": 4, "layer_types": SLIDING * 2, "num_kv_shared_layers": 2,
        "num_experts": None},
    "gemma4_unified_text": {"layer_types": SLIDING, "use_bidirectional_attention": None},
    "glm4_moe_lite": {"num_key_value_heads": 4},
    "glm_moe_dsa": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_oss": {"layer_types": SLIDING},
    "granite_swa": {"layer_types": SLIDING},
    "granitemoe_swa": {"layer_types": SLIDING},
    "granitemoehybrid": {"layer_types": LINEAR},
    "hrm_text": {"num_attention_heads": 4},
    "hy_v4": {"num_key_value_heads": 4},
    "inkling2_text": {"layer_types": ["hybrid_sliding", "hybrid"], "n_layers_per_attn_res_block": 1},
    "inkling_text": {"layer_types": ["hybrid_sliding", "hybrid"], "mlp_layer_types": ["dense", "sparse"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "use_mamba_kernels": False},
    "jetmoe": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "kimi_linear": {"num_key_value_heads": 4, "layer_types": LINEAR},
    "kolibri1": {"layer_types": SLIDING},
    "laguna": {"layer_types": SLIDING},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"num_hidden_layers": 3, "layer_types": ["conv", "sliding_attention", "full_attention"]},
    "llama4_text": {"num_hidden_layers": 2, "no_rope_layers": [1, 0], "floor_scale": 8,
        "interleave_moe_layer_step": 2},
    "longcat_flash": {"num_key_value_heads": 4, "head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mellum": {"layer_types": SLIDING},
    "mimo_v2_flash": {"layer_types": SLIDING},
    "minicpm3": {"num_key_value_heads": 4},
    "minimax": {"layer_types": LINEAR, "block_size": 8},
    "minimax_m3_vl_text": {"num_key_value_heads": 2},
    "ministral": {"layer_types": SLIDING},
    "modernbert-decoder": {"layer_types": SLIDING},
    "mpt": {"logit_scale": None},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "num_hidden_layers": 4},
    "olmo3": {"layer_types": SLIDING},
    "olmo_hybrid": {"layer_types": LINEAR},
    "qwen2_moe": {"decoder_sparse_step": 1, "num_key_value_heads": 2},
    "qwen3_5_moe_text": {"layer_types": LINEAR},
    "qwen3_5_text": {"layer_types": LINEAR},
    "qwen3_next": {"layer_types": LINEAR},
    "qwen4_exp_text": {"layer_types": LINEAR, "ngram_vocab_size_base": 101, "split_ngram_parts": 1,
        "hc_count": 2, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16,
        "indexer_budget": 8, "indexer_compress_ratio": 2, "ple_layer_ids": [1], "ple_embed_dim": 16,
        "heads_per_ngram": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "rwkv": {"attention_hidden_size": 64},
    "smollm3": {"no_rope_layers": [1, 0]},
    "vaultgemma": {"layer_types": SLIDING},
    "xlstm": {"num_heads": 4, "chunk_size": 8, "qk_dim_factor": 1.0},
    "youtu": {"num_key_value_heads": 4},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid",
        "linear_attention", "hybrid"], "use_mamba_kernels": False, "num_key_value_heads": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "num_key_value_heads": 4,
        "num_mem_blocks": 1, "use_mamba_kernels": False},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"]},
}

#: Other forms of an architecture: its name, and what is changed.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere+qk_norm": ("cohere", {"use_qk_norm": True}),
    "deepseek_v2+lite": ("deepseek_v2", {"q_lora_rank": None}),
    "deepseek_v3+dense": ("deepseek_v3", {"first_k_dense_replace": 2}),
    "doge+0experts": ("doge", {"num_experts": 1}),
    "doge+0experts+window": ("doge", {"num_experts": 1, "keep_window_size": 8}),
    "doge+window": ("doge", {"keep_window_size": 8}),
    "exaone4+allfull": ("exaone4", {"layer_types": ["full_attention", "full_attention"],
        "sliding_window": None}),
    "falcon+40b": ("falcon", {"new_decoder_architecture": True, "multi_query": False}),
    "falcon+alibi": ("falcon", {"alibi": True}),
    "falcon+sequential": ("falcon", {"parallel_attn": False, "bias": True}),
    "gemma+bidirectional": ("gemma", {"use_bidirectional_attention": True}),
    "gemma2+nocap": ("gemma2", {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
    "gemma2+nofinalcap": ("gemma2", {"final_logit_softcapping": None}),
    "gemma3_text+bidirectional": ("gemma3_text", {"use_bidirectional_attention": True}),
    "gemma3_text+linearrope": ("gemma3_text",
        {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}}}),
    "gemma4_text+keqv": ("gemma4_text", {"num_kv_shared_layers": 0, "attention_k_eq_v": True}),
    "gemma4_text+moe": ("gemma4_text", {"num_kv_shared_layers": 0, "enable_moe_block": True,
        "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}),
    "gemma4_text+noPLE": ("gemma4_text", {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}),
    "gemma4_text+noshare": ("gemma4_text", {"num_kv_shared_layers": 0}),
    "gpt2+inverse_layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_bigcode+mha": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox+gelu_new": ("gpt_neox", {"hidden_act": "gelu_new"}),
    "gpt_neox+sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "granitemoehybrid+dense": ("granitemoehybrid", {"layer_types": ["full_attention", "full_attention"],
        "num_local_experts": 0, "num_experts_per_tok": 0, "position_embedding_type": "rope"}),
    "granitemoehybrid+dense+mamba": ("granitemoehybrid", {"num_local_experts": 0,
        "num_experts_per_tok": 0}),
    "hrm_text+causal": ("hrm_text", {"prefix_lm": False}),
    "hunyuan_v1_dense+bias": ("hunyuan_v1_dense", {"attention_bias": True}),
    "hunyuan_v1_moe+1expert": ("hunyuan_v1_moe", {"num_experts": 1, "moe_topk": 1}),
    "lfm2+conv_only_first": ("lfm2", {"layer_types": ["full_attention", "full_attention"]}),
    "llama+act=gelu_fast": ("llama", {"hidden_act": "gelu_fast"}),
    "llama+act=gelu_new": ("llama", {"hidden_act": "gelu_new"}),
    "llama+act=gelu_pytorch_tanh": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama+act=quick_gelu": ("llama", {"hidden_act": "quick_gelu"}),
    "llama+act=relu": ("llama", {"hidden_act": "relu"}),
    "llama+act=relu2": ("llama", {"hidden_act": "relu2"}),
    "llama+act=tanh": ("llama", {"hidden_act": "tanh"}),
    "llama+bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama+gelu": ("llama", {"hidden_act": "gelu"}),
    "llama+rope=dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0,
        "rope_theta": 10000.0}}),
    "llama+rope=linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0,
        "rope_theta": 10000.0}}),
    "llama+rope=llama3": ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        "rope_theta": 10000.0}}),
    "llama+rope=yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 10000.0}}),
    "llama+tied": ("llama", {"tie_word_embeddings": True}),
    "llama4_text+dense": ("llama4_text", {"moe_layers": []}),
    "llama4_text+dense+chunk": ("llama4_text", {"moe_layers": [], "num_local_experts": 1,
        "attn_temperature_tuning": False, "use_qk_norm": False}),
    "llama4_text+dense+nochunk": ("llama4_text", {"moe_layers": [], "num_local_experts": 1,
        "no_rope_layers": [0, 0]}),
    "ministral3+scale": ("ministral3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0,
        "factor": 4.0, "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.1,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "mpt+noalibi": ("mpt", {"attn_config": {"alibi": False}}),
    "olmo+clip_qkv": ("olmo", {"clip_qkv": 1.0}),
    "opt+350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "phi+qk_layernorm": ("phi", {"qk_layernorm": True}),
    "phi3+rope=longrope": ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0,
        "short_factor": [1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875],
        "long_factor": [2.0, 2.125, 2.25, 2.375, 2.5, 2.625, 2.75, 2.875],
        "original_max_position_embeddings": 32}, "original_max_position_embeddings": 32}),
    "qwen2+sliding": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3_moe+dense": ("qwen3_moe", {"num_local_experts": 1, "mlp_only_layers": [0, 1]}),
    "stablelm+parallel": ("stablelm", {"use_parallel_residual": True}),
    "stablelm+parallel+qknorm": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "xglm+noscale": ("xglm", {"scale_embedding": False}),
}

#: Names that are registered too and are no text decoders: models that take images or audio,
TAKE_MORE_THAN_TEXT = frozenset((
    "blt", "dots3_note", "emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_assistant",
    "gemma4_unified", "gemma4_unified_assistant", "git", "got_ocr2", "llama4", "mllama", "moshi",
    "moss_transcribe_diarize", "musicgen", "musicgen_melody", "phi4_multimodal", "qwen3_5",
    "qwen3_5_moe", "qwen4_exp", "trocr", "whisper"
))
#: encoders with a head for language modelling,
ENCODERS = frozenset((
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
    "megatron-bert", "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
    "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod"
))
#: and decoders that read what an encoder says.
ENCODER_DECODERS = frozenset((
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "musicgen",
    "musicgen_melody", "mvp", "pegasus", "plbart", "prophetnet", "trocr", "whisper"
))
# fmt: on


def registered() -> list[str]:
    """Names of all models that transformers registers as causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def decoders() -> list[str]:
    """Those that read text and nothing else, and are decoders."""
    return [n for n in registered() if n not in TAKE_MORE_THAN_TEXT | ENCODERS | ENCODER_DECODERS]


def tiny_model(name: str) -> Any:
    """A transformers model with random weights, of an architecture or a variant.

    Raises whatever transformers raises where the config is none for it.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    base, changes = VARIANTS.get(name, (name, {}))
    kind = CONFIG_MAPPING[base]
    fields = {field.name for field in dataclasses.fields(kind)}
    common = {key: value for key, value in COMMON.items() if key in fields}
    config = kind(**common | OWN.get(base, {}) | changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # gains and biases are not 1 and 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model
