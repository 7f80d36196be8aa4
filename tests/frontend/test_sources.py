"""Files whose tensors are not the model's do not load."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

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


@pytest.mark.slow
def test_gguf_files_are_models_by_path_and_alone_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(_demo_folder() / _DEMO_FILE)
    digests = set()
    for name in ("demo", str(tmp_path / "model.gguf"), str(tmp_path)):
        source = load_source(name)
        digests.add(model_hash(source.model))
        assert source.tokenizer.chat_template
    assert len(digests) == 1
