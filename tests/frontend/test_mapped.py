"""Models whose files hold bf16 or f16 compile as if they were f32, and their weights stay in the files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mqc.analysis.ir_text import print_module
from mqc.frontend.fidelity import check_against_model
from mqc.frontend.mapped import Widened, shapes_only, widened
from mqc.frontend.raising import raise_program
from mqc.frontend.sources import load_source, model_hash
from mqc.frontend.trace import trace
from mqc.ir.weight_store import WeightStore
from tests.models import ARCHITECTURES, VOCABULARY, tiny_model, tokens
from tests.test_api import tokenizer


def saved(folder: Path, architecture: str, kind: torch.dtype, stated: str | None = None) -> str:
    """A model saved as `kind`, with the type that its config states."""
    tiny_model(architecture).to(kind).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if stated is not None:
        config = folder / "config.json"
        config.write_text(re.sub(r'"dtype": "\w+"', f'"dtype": "{stated}"', config.read_text()))
    return str(folder)


def raised(name: str) -> tuple[str, torch.Tensor, str]:
    """What a folder's model is: its `llm` module, logits and hash."""
    model = load_source(name).model
    weights = WeightStore()
    module = raise_program(trace(model), weights, 64, VOCABULARY)
    check_against_model(model, module, weights)
    with torch.no_grad():
        logits = model(tokens(9)[None]).logits
    return print_module(module), logits, model_hash(model)


@pytest.mark.parametrize(
    ("architecture", "kind"), [*((name, torch.bfloat16) for name in ARCHITECTURES), ("llama", torch.float16)]
)
def test_narrow_weights_are_the_same_as_wide_ones(
    tmp_path: Path, architecture: str, kind: torch.dtype
) -> None:
    """The same numbers in f32: equal IR with equal hashes of weights, equal logits, equal model hash."""
    narrow = saved(tmp_path / "narrow", architecture, kind)
    wide = saved(tmp_path / "wide", architecture, kind)
    path = tmp_path / "wide" / "model.safetensors"
    save_file({key: tensor.float() for key, tensor in load_file(path).items()}, path, {"format": "pt"})
    model = load_source(narrow).model
    assert any(isinstance(parameter, Widened) for parameter in model.parameters())
    assert {buffer.dtype for buffer in model.buffers()} <= {torch.float32, torch.int64, torch.bool}
    (text, logits, digest), (same_text, same_logits, same_digest) = raised(narrow), raised(wide)
    assert text == same_text
    assert torch.equal(logits, same_logits)
    assert digest == same_digest


def test_the_files_decide_and_not_the_config(tmp_path: Path) -> None:
    """A config that states bf16 beside f32 files costs no bits."""
    name = saved(tmp_path, "llama", torch.float32, stated="bfloat16")
    want = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(load_source(name).model.get_input_embeddings().weight, want)


def test_files_of_several_types_load_as_f32(tmp_path: Path) -> None:
    name = saved(tmp_path, "llama", torch.bfloat16)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-6
    save_file(tensors, path, {"format": "pt"})
    model = load_source(name).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.model.norm.weight, tensors["model.norm.weight"])


def test_ops_see_the_elements_as_f32() -> None:
    narrow = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    w, wide = Widened(narrow), narrow.float()
    assert w.dtype == torch.float32
    assert isinstance(w.T, Widened) and torch.equal(widened(w.T), wide.T)
    assert [isinstance(part, Widened) for part in w.chunk(2)] == [True, True]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.nn.functional.linear(x, w), x @ wide.T)
    assert torch.equal(torch.nn.functional.embedding(torch.tensor([4, 0]), w), wide[[4, 0]])
    assert torch.equal(w * 2, wide * 2) and type(w * 2) is torch.Tensor


def test_they_cannot_be_changed_in_place() -> None:
    w = Widened(torch.ones(2, 2).half())
    with pytest.raises(TypeError, match="would change weights that stay in their file"):
        w.mul_(2)
    assert torch.equal(w.view(torch.int32), torch.ones(2, 2).view(torch.int32))


def test_gains_may_be_matrices(tmp_path: Path) -> None:
    """And a parameter may have no elements."""
    saved(tmp_path, "qwen3", torch.bfloat16)
    model = load_source(str(tmp_path)).model
    attention = model.model.layers[0].self_attn
    gain = torch.linspace(0.5, 2, 32).reshape(4, 8).bfloat16()
    attention.q_norm.weight = torch.nn.Parameter(Widened(gain), requires_grad=False)
    model.register_parameter("none", torch.nn.Parameter(torch.zeros(0, 4)))
    weights = WeightStore()
    module = raise_program(trace(model), weights, 64, VOCABULARY)
    check_against_model(model, module, weights)


def test_for_tracing_they_are_plain_and_tied_ones_stay_tied() -> None:
    module = torch.nn.Module()
    module.a = module.b = torch.nn.Parameter(Widened(torch.ones(2, 2).half()), requires_grad=False)
    kept = module.a
    with shapes_only(module):
        assert type(module.a) is torch.nn.Parameter and module.a is module.b
    assert module.a is kept and module.b is kept
