"""Files whose tensors are not the model's do not load."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quantize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mqc.errors import ModelError
from mqc.frontend.sources import _DEMO_FILE, _demo_folder, load_source, model_hash
from tests.models import tiny_model
from tests.test_api import tokenizer

Weights = dict[str, Any]


def saved(folder: Path, change: Callable[[Weights], Weights], **config: Any) -> str:
    tiny_model("llama", **config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("tied", [False, True])
def test_whole_files_load(tmp_path: Path, tied: bool) -> None:
    """Tied weights that the file does not repeat are not missing."""
    load_source(saved(tmp_path, dict, tie_word_embeddings=tied))


def test_a_pipe_is_no_file_of_a_model(tmp_path: Path) -> None:
    name = saved(tmp_path, dict)
    (tmp_path / "notes").symlink_to("nothing")
    load_source(name)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"config\.json: it is a pipe, not a file"):
        load_source(name)


def test_all_that_a_library_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("first line\n\nsecond line")

    name = saved(tmp_path, dict)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(ModelError, match=r"first line\n  second line") as told:
        load_source(name)
    assert "a folder with config.json" in told.value.__notes__[0]


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "base_model.model."])
def test_names_of_a_wrapper(tmp_path: Path, wrapper: str) -> None:
    name = saved(tmp_path, lambda w: {wrapper + k: v for k, v in w.items()})
    with pytest.raises(ModelError, match=f"names begin with '{wrapper}'"):
        load_source(name)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: {k: v for k, v in w.items() if "lm_head" not in k}, "not in the files: lm_head.weight"),
        (
            lambda w: {k: v for k, v in w.items() if "layers.1." not in k},
            "9 in the model and not in the files",
        ),
        (lambda w: {**w, "model.extra.weight": w["lm_head.weight"].clone()}, "not in the model: model.extra"),
        (lambda w: {**w, "model.norm.weight": w["model.norm.weight"][:8].clone()}, "model.norm.weight"),
    ],
    ids=["head", "layer", "unexpected", "shape"],
)
def test_tensors_that_do_not_fit(tmp_path: Path, change: Callable[[Weights], Weights], match: str) -> None:
    name = saved(tmp_path, change, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=match):
        load_source(name)


def test_a_gguf_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*none\.gguf: No such file"):
        load_source(str(tmp_path / "none.gguf"))
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=r"cannot load .* as a decoder LLM"):
        load_source(str(tmp_path / "a.gguf"))
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelError, match=r"has several GGUF files: give one, e\.g\. .*a\.gguf"):
        load_source(str(tmp_path))


def _write_gguf(path: Path, model: Any, quantized: GGMLQuantizationType) -> None:
    """A Llama as llama.cpp's converter writes it, with a vocabulary of single bytes."""
    config, weights = model.config, dict(model.named_parameters())
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*(chr(0x100 + i) for i in range(config.vocab_size - 1)), "Āā"])
    writer.add_token_merges(["Ā ā"])
    writer.add_token_types([1] * config.vocab_size)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in weights.items():
        value = parameter.detach().numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # llama.cpp turns neighbouring channels, transformers halves of a head
                value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        kind = quantized if value.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(names.get_name(name, (".weight",)), quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "kind", ["F32", "Q8_0", *(pytest.param(k, marks=pytest.mark.slow) for k in ("F16", "Q4_0"))]
)
def test_gguf_files_hold_what_transformers_reads(
    tmp_path: Path, kind: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, small tensors and those that are written to temporary files in blocks."""
    monkeypatch.setattr("mqc.arrays._BLOCK", 1 << 9)
    monkeypatch.setattr("mqc.frontend.gguf_file.LEAST_BYTES", 1 << 13)
    model = tiny_model("llama", tie_word_embeddings=tied, intermediate_size=64)
    _write_gguf(tmp_path / "a.gguf", model, GGMLQuantizationType[kind])
    want = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    source = load_source(str(tmp_path))
    assert model_hash(source.model) == model_hash(want)
    assert (source.model.lm_head.weight is source.model.model.embed_tokens.weight) == tied
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(source.model(ids).logits, want(ids).logits)
        if kind == "F32":
            assert torch.allclose(source.model(ids).logits, model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("end", [30, 200, 900, 2000])
def test_a_gguf_file_that_ends_early(tmp_path: Path, end: int) -> None:
    _write_gguf(tmp_path / "whole.gguf", tiny_model("llama"), GGMLQuantizationType.F32)
    (tmp_path / "part.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:end])
    with pytest.raises(ModelError, match=r"cannot load .* as a decoder LLM"):
        load_source(str(tmp_path / "part.gguf"))


def test_a_gguf_file_without_a_tensor(tmp_path: Path) -> None:
    model = tiny_model("llama")
    del model.model.layers[1].mlp.up_proj
    _write_gguf(tmp_path / "a.gguf", model, GGMLQuantizationType.F32)
    with pytest.raises(ModelError, match=r"1 in the model and not in the files: model.layers.1.mlp.up_proj"):
        load_source(str(tmp_path))


@pytest.mark.slow
def test_gguf_files_are_models_by_path_and_alone_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(_demo_folder() / _DEMO_FILE)
    digests = set()
    for name in ("demo", str(tmp_path / "model.gguf"), str(tmp_path)):
        source = load_source(name)
        digests.add(model_hash(source.model))
        assert source.tokenizer.chat_template
    assert len(digests) == 1
