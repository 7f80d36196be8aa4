"""LoRA adapters are merged as PEFT merges them; what is no plain LoRA is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from mqc.cli.common import app  # noqa: F401  (commands are registered)
from mqc.errors import ModelError
from mqc.frontend.float_model import float_source
from mqc.frontend.size import size_of
from mqc.frontend.sources import load_source, model_hash
from tests import in_process
from tests.models import tiny_model, tokens
from tests.test_api import tokenizer

RANK, ALPHA = 4, 6.0
TARGETS = {
    "llama": [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")],
    "gpt2": ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"],
}


def matrices(module: torch.nn.Module, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A `[rank, inputs]` and B `[outputs, rank]`; torch's Conv1D and embeddings have their matrix turned."""
    rows, columns = module.weight.shape  # type: ignore[misc, union-attr]
    outputs, inputs = (rows, columns) if isinstance(module, torch.nn.Linear) else (columns, rows)
    return 0.1 * torch.randn(rank, int(inputs)), 0.1 * torch.randn(int(outputs), rank)


def adapter(
    folder: Path, base: PreTrainedModel, names: list[str], wrapper: str = "base_model.model.", **config: Any
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Save an adapter, and the model that it adapts in `base` beside it. Its matrices by module."""
    base.save_pretrained(folder.parent / "base")
    tokenizer().save_pretrained(folder.parent / "base")
    folder.mkdir()
    torch.manual_seed(1)
    rank = config.get("rank_pattern", {})
    found = {n: matrices(base.get_submodule(n), rank.get(n.rsplit(".", 1)[-1], RANK)) for n in names}
    tensors = {}
    for name, (a, b) in found.items():
        kind = "lora_embedding_" if "embed" in name else "lora_"
        end = "" if "embed" in name else ".weight"
        tensors |= {f"{wrapper}{name}.{kind}A{end}": a, f"{wrapper}{name}.{kind}B{end}": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    whole = {
        "peft_type": "LORA", "base_model_name_or_path": str(folder.parent / "base"), "r": RANK,
        "lora_alpha": ALPHA, "bias": "none", "use_dora": False, "modules_to_save": None, **config,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    return found


def adapted(base: PreTrainedModel, found: dict[str, Any], scale: dict[str, float]) -> torch.Tensor:
    """Logits of the model with the adapter beside its matrices, as it was trained: x·W + scale·B·(A·x)."""

    def beside(name: str) -> Any:
        a, b = found[name]

        def hook(module: torch.nn.Module, given: tuple[torch.Tensor], result: torch.Tensor) -> torch.Tensor:
            if isinstance(module, torch.nn.Embedding):
                return result + scale[name] * a.T[given[0]] @ b.T
            return result + scale[name] * given[0] @ a.T @ b.T

        return hook

    hooks = [base.get_submodule(name).register_forward_hook(beside(name)) for name in found]
    with torch.no_grad():
        logits = base(tokens(9)[None]).logits
    for hook in hooks:
        hook.remove()
    return torch.as_tensor(logits)


def merged(folder: Path, base: str | None = None) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(load_source(str(folder), base).model(tokens(9)[None]).logits)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_merged_is_as_trained(architecture: str, stored: torch.dtype, tmp_path: Path) -> None:
    base = tiny_model(architecture).to(stored)
    found = adapter(tmp_path / "adapter", base, TARGETS[architecture])
    base = load_source(str(tmp_path / "base")).model
    want = adapted(base, found, dict.fromkeys(found, ALPHA / RANK))
    with torch.no_grad():
        assert (want - base(tokens(9)[None]).logits).norm() > 0.01 * want.norm()
    assert torch.allclose(merged(tmp_path / "adapter"), want, rtol=1e-4, atol=1e-5)


def test_scales_of_modules(tmp_path: Path) -> None:
    base, names = tiny_model("llama"), [*TARGETS["llama"], "model.embed_tokens"]
    options = {
        "use_rslora": True, "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3.0},
    }  # fmt: skip
    found = adapter(tmp_path / "adapter", base, names, wrapper="", **options)
    scale = {n: ALPHA / math.sqrt(2 if "down_proj" in n else RANK) for n in names}
    scale["model.layers.1.self_attn.q_proj"] = 3.0 / math.sqrt(RANK)
    assert torch.allclose(merged(tmp_path / "adapter"), adapted(base, found, scale), rtol=1e-4, atol=1e-5)


def test_where_the_base_is(tmp_path: Path) -> None:
    base = tiny_model("llama")
    found = adapter(tmp_path / "adapter", base, TARGETS["llama"], base_model_name_or_path="../base")
    want = adapted(base, found, dict.fromkeys(found, ALPHA / RANK))
    assert torch.allclose(merged(tmp_path / "adapter"), want, rtol=1e-4, atol=1e-5)
    (tmp_path / "base").rename(tmp_path / "moved")
    moved = str(tmp_path / "moved")
    assert torch.allclose(merged(tmp_path / "adapter", moved), want, rtol=1e-4, atol=1e-5)
    source = load_source(str(tmp_path / "adapter"), moved)
    manifest = {"source": {**source.info, "hash": model_hash(source.model)}}
    assert model_hash(float_source(manifest).model) == manifest["source"]["hash"] != model_hash(base)
    assert size_of(str(tmp_path / "adapter"), moved) == size_of(moved)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not merged here"),
        ({"use_dora": True}, "use_dora = True is not merged here"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"r": 0}, "r and its pattern must be numbers above 0"),
        ({"lora_alpha": "6"}, "lora_alpha and its pattern"),
        ({"alpha_pattern": {"(a+)+$": 3.0}}, "expressions are not read"),
        ({"r": 5}, "with rank 5 was expected"),
        ({"base_model_name_or_path": None}, "give --base MODEL"),
        ({"base_model_name_or_path": "."}, "is an adapter too"),
    ],
)
def test_what_is_no_plain_lora(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", tiny_model("llama"), TARGETS["llama"], **config)
    with pytest.raises(ModelError, match=message):
        load_source(str(tmp_path / "adapter"))


def test_tensors_of_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    base = tiny_model("llama", tie_word_embeddings=True)
    adapter(folder, base, TARGETS["llama"])
    path = folder / "adapter_model.safetensors"
    good = load_file(path)
    first = next(key for key in good if "lora_A" in key)
    bad = {
        "one matrix": {k: v for k, v in good.items() if k != first},
        "x.A is no matrix of a LoRA adapter": {**good, "x.A": good[first].clone()},
        "x.bias is no matrix of a LoRA adapter": {**good, "base_model.model.x.bias": good[first].clone()},
        "finite": {**good, first: good[first] / 0},
        "was expected": {**good, first: good[first][:, 1:].contiguous()},
        "which .* has not": {k.replace("layers.1", "layers.7"): v for k, v in good.items()},
        "is not merged here": {
            **good,
            "model.norm.lora_A.weight": torch.ones(RANK, 32),
            "model.norm.lora_B.weight": torch.ones(32, RANK),
        },
        "whose weight is also": {
            **good,
            "model.embed_tokens.lora_embedding_A": torch.ones(RANK, 64),
            "model.embed_tokens.lora_embedding_B": torch.ones(32, RANK),
        },
    }  # fmt: skip
    for message, tensors in bad.items():
        save_file(tensors, path)
        with pytest.raises(ModelError, match=message):
            load_source(str(folder))
    a, b = (torch.ones(shape) for shape in ((RANK, 32), (64, RANK)))
    head = {"model.lm_head.lora_A.weight": a, "model.lm_head.lora_B.weight": b}
    table = {"model.lm_head.base_layer.weight": base.lm_head.weight.detach() + 1.0}
    save_file({k.removeprefix("model."): v for k, v in (head | table).items()}, path)
    tiny_model("llama").save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="has a table of lm_head beside its matrices"):
        load_source(str(folder))
    path.write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="is no safetensors file"):
        load_source(str(folder))
    path.unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        load_source(str(folder))
    with pytest.raises(ModelError, match="--base is for an adapter"):
        load_source(str(tmp_path / "base"), "demo")


def test_on_the_command_line(tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", tiny_model("llama"), TARGETS["llama"], base_model_name_or_path="no/where")
    given = "compile", tmp_path / "adapter", "--base", tmp_path / "base", "--context", 64
    estimate = in_process.mqc(*given, "--estimate", "--json")
    assert estimate.returncode == 0 and json.loads(estimate.stdout)["total_seconds"] > 0, estimate.stderr
    made = in_process.mqc(*given, "-o", tmp_path / "out.mqc", "--json")
    assert made.returncode == 0, made.stderr
    source = json.loads(made.stdout)["source"]
    assert source["id"] == str(tmp_path / "adapter") and source["base"] == str(tmp_path / "base")
