"""`mqc.compile` as a user calls it, on a tiny model with a tokenizer of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import mqc
from mqc.calibration import Calibration
from mqc.compiler.dump import dump_files
from mqc.compiler.recipe import Recipe, load_recipe
from mqc.errors import CalibrationError, InputError, ModelError, RecipeError, StorageError
from mqc.frontend.trace import check_model
from tests.models import tiny_model
from tests.runtime.conftest import byte_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog. " * 60


def tokenizer() -> PreTrainedTokenizerFast:
    import tokenizers

    raw = tokenizers.Tokenizer.from_str(byte_tokenizer().files["tokenizer.json"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<unk>", eos_token="<eos>")


def test_compile_save_load_generate(tmp_path: Path) -> None:
    steps: list[str] = []
    program = mqc.compile(
        tiny_model("llama"), tokenizer=tokenizer(), calibration=TEXT, dump_ir=tmp_path / "dump",
        progress=lambda message, share: steps.append(message),
    )  # fmt: skip
    program.save(tmp_path / "x.mqc")
    again = mqc.load(tmp_path / "x.mqc")
    assert again.generate("the quick", 6) == program.generate("the quick", 6, engine="oracle")
    assert 0 < again.manifest["mac_share_8bit"] <= 1 and again.manifest["recipe"] == "w8a8"
    dumped = [path.stem.partition("-")[2] for path in dump_files(tmp_path / "dump")]
    assert dumped == ["import", *(p.name for p in mqc.pipeline("cpu-int8"))]
    assert {"tracing", "observe-ranges", "lower-to-int"} <= set(steps)


def test_two_compilations_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mqc", "b.mqc"):
        mqc.compile(tiny_model("qwen2"), tokenizer=tokenizer(), calibration=TEXT).save(tmp_path / name)
    for file in (tmp_path / "a.mqc").iterdir():
        assert file.read_bytes() == (tmp_path / "b.mqc" / file.name).read_bytes()


@pytest.mark.parametrize("text", ["", "too short"])
def test_calibration_text_must_be_long_enough(text: str) -> None:
    with pytest.raises(CalibrationError, match="at least 60 tokens"):
        mqc.compile(tiny_model("llama"), tokenizer=tokenizer(), calibration=text)


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        (Recipe(weight_bits=4, group=64), "q_proj has 32 input channels, which groups of 64 do not divide"),
        (Recipe(weight_bits=4, group=64), r"take group = 0 \(0: one scale"),
        (Recipe(weight_bits=4, group=32), "down_proj has 48 input .* nor those of 1 more"),
        (Recipe(weight_bits=4, group=32, keep8=("layers.0.*",)), r"layers\.1\.mlp\.down.*do not divide;"),
        (Recipe(weight_bits=4, group=32, weights8=0.2, keep8=("layers.0.*",)), r"layers\.1\.mlp\.down_proj"),
        (Recipe(weight_bits=4, group=64, learn="steps=1 lr_clipping=0.1"), "groups of 64"),
    ],
)  # fmt: skip
def test_groups_that_do_not_fit_are_found_before_calibration(recipe: Recipe, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        mqc.compile(tiny_model("llama"), tokenizer=tokenizer(), recipe=recipe, calibration="too short")


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(weight_bits=4, group=32, keep8=("*.down_proj",)),
        Recipe(weight_bits=4, group=32, keep8=("*.down_proj",), weights8=0.2),
        Recipe(weight_bits=4, group=32, precision=("weight:%*.down_proj=8",)),
        Recipe(weight_bits=4),
    ],
)
def test_groups_that_fit_come_to_calibration(recipe: Recipe) -> None:
    with pytest.raises(CalibrationError, match="at least 60 tokens"):
        mqc.compile(tiny_model("llama"), tokenizer=tokenizer(), recipe=recipe, calibration="too short")


def test_calibration_with_another_tokenizer() -> None:
    with pytest.raises(CalibrationError, match="outside"):
        Calibration.of([np.full((10, 10), 63), np.full((1, 10), 64)], 64)


def test_no_tokenizer() -> None:
    with pytest.raises(InputError, match="tokenizer="):
        mqc.compile(tiny_model("llama"))


def test_vision_model() -> None:
    model = tiny_model("llama")
    model.config.vision_config = {"hidden_size": 8}
    with pytest.raises(ModelError, match="images or audio"):
        check_model(model)


def test_dump_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create the dump folder"):
        mqc.compile(
            tiny_model("llama"), tokenizer=tokenizer(), calibration=TEXT, dump_ir=tmp_path / "file" / "d"
        )


def test_a_recipe_is_read_as_it_was_written(tmp_path: Path) -> None:
    recipe = Recipe(name="r", precision=('llm.silu=16  # \U0001f600 \x7f \x1b "',), keep8=("é*",))
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    assert load_recipe(tmp_path / "r.toml") == recipe


def test_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('weight_bits = 4\ngroup = 32\nalpha = 1\nprecision = ["llm.silu=16"]\nprefix = [3]\n')
    recipe = load_recipe(path)
    assert (recipe.name, recipe.weight_bits, recipe.alpha, recipe.prefix) == ("mine", 4, 1.0, (3,))
    assert 'rules="llm.silu=16"' in str(recipe.pipeline("cpu"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bits = 4", "unknown field 'bits'"),
        ("weight_bits = '4'", "weight_bits must be a int"),
        ("prefix = ['a']", "prefix must be a list of int"),
        ("= 4", "cannot read the recipe"),
    ],
)
def test_bad_recipe_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "r.toml")
