"""Which scales are free is found from the ops alone."""

from __future__ import annotations

import numpy as np

from mqc.analysis.equivalence_groups import EquivalenceGroups, discover
from mqc.compiler.pass_manager import Pipeline
from mqc.ir.module import mqc_ops
from tests.compiled import imported
from tests.models import tiny_model


def groups_of(architecture: str) -> tuple[EquivalenceGroups, dict[str, tuple[np.ndarray, np.ndarray]]]:
    ctx, module = imported(tiny_model(architecture))
    Pipeline.parse("fold-constants,fold-norm").run(ctx, module)
    found = discover(module)
    names = {op.value_name: op.results[0] for op in mqc_ops(module)}
    return found, {name: found.channels[value] for name, value in names.items()}


def test_llama_has_all_five_kinds() -> None:
    found, by_name = groups_of("llama")
    layer = "layers.0."
    # norm → linears: every channel alone
    for norm in ("input_layernorm", "post_attention_layernorm"):
        assert len(set(by_name[layer + norm][0])) == 32
    # up → down, through the product with the gate
    assert (by_name[layer + "mlp.up_proj"][0] == by_name[layer + "mlp.mul"][0]).all()
    assert len(set(by_name[layer + "mlp.up_proj"][0])) == 48
    # v → o: two query heads share a value head of 8 channels
    value, attention = by_name[layer + "self_attn.v_proj"][0], by_name[layer + "self_attn.attention"][0]
    assert (attention.reshape(2, 2, 8) == value.reshape(2, 1, 8)).all()
    # q ↔ k: one scale a rotated pair, shared by the heads of a group, reciprocal
    query, sign_q = by_name[layer + "self_attn.rope_q"]
    key, sign_k = by_name[layer + "self_attn.rope_k"]
    heads = query.reshape(2, 2, 8)
    assert (heads == key.reshape(2, 1, 8)).all() and (sign_q[0] == -sign_k).all()
    assert (heads[..., :4] == heads[..., 4:]).all() and len(set(key)) == 8
    assert (by_name[layer + "self_attn.q_proj"][0] == query).all()
    # the residual stream, the gate and the logits are not free; the last norm is
    for name in ("embed_tokens", layer + "add", layer + "mlp.gate_proj", layer + "mlp.act_fn", "lm_head"):
        assert (by_name[name][0] == -1).all()
    # two layers of 32 + 32 + 48 + 16 + 8, and the last norm
    assert found.count == 2 * (32 + 32 + 48 + 16 + 8) + 32


def test_norms_of_queries_and_keys_stay_reciprocal() -> None:
    _, by_name = groups_of("qwen3")
    # the norm before rope fixes what comes before it, not what follows
    assert (by_name["layers.0.self_attn.q_proj"][0] == -1).all()
    assert (by_name["layers.0.self_attn.rope_q"][0] >= 0).all()


def test_no_gate_no_group() -> None:
    _, by_name = groups_of("gpt2")
    assert (by_name["h.0.mlp.c_fc"][0] == -1).all()
    _, by_name = groups_of("opt")  # relu passes positive scales on
    assert (by_name["decoder.layers.0.fc1"][0] >= 0).all()


def test_groups_grow_linearly() -> None:
    counts = []
    for layers in (1, 2, 3):
        ctx, module = imported(tiny_model("llama", num_hidden_layers=layers))
        Pipeline.parse("fold-norm").run(ctx, module)
        counts.append(discover(module).count)
    assert counts[2] - counts[1] == counts[1] - counts[0]
