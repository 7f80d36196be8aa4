"""mqc compile --estimate: what it counts is what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import BartConfig

import mqc as package
from mqc.api import pipeline
from mqc.compiler.estimate import Machine, estimate
from mqc.compiler.pass_manager import Pipeline
from mqc.costs import ModelSize, Work
from mqc.dialects.llm import LinearOp
from mqc.errors import ModelError, TargetError
from mqc.frontend.size import size_of
from mqc.ir.module import gives_logits, mqc_ops
from mqc.registry import target_names
from tests.compiled import imported
from tests.in_process import mqc
from tests.models import tiny_model

#: A second for each thing.
UNIT = Machine(1.0, 1.0, 1.0, 1.0)
SIZE = ModelSize(((64, 32), (32, 64)), 1, 32, 100, 10_000, True, 2048, True)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "opt", "gpt2"])
def test_the_size_is_that_of_the_module(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    _, module = imported(model)
    linears = [op for op in mqc_ops(module) if isinstance(op, LinearOp)]
    size = size_of(str(tmp_path))
    shapes = [op.weight.shape for op in linears if not gives_logits(op)]
    assert size.weights == sum(n * k for n, k in shapes) and size.outputs == sum(n for n, _ in shapes)
    assert size.widest == max(k for _, k in shapes)
    assert [(size.vocabulary, size.hidden)] == [op.weight.shape for op in linears if gives_logits(op)]
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.tied == bool(model.config.tie_word_embeddings) and size.mapped


@pytest.mark.parametrize("target", target_names())
def test_every_pass_of_the_default_recipes_says_what_it_does(target: str) -> None:
    for recipe in ("w8a8", "w4a8", "w4a8-g64"):
        assert estimate(SIZE, pipeline(target, recipe), UNIT, 2048, 0.0).unknown == ()


def test_what_is_not_known_is_named() -> None:
    steps = Pipeline.parse("fold-norm,learn-ranges")
    found = estimate(SIZE, steps, UNIT, 2048, 0.0)
    assert found.unknown == ("learn-ranges",)
    assert "fold-norm" in found.seconds and "learn-ranges" not in found.seconds


def test_searches_say_what_they_take() -> None:
    for search in ("assign-precision{share=0.9}", "assign-precision{weights8=0.1}", "search-precision"):
        found, once = (
            estimate(SIZE, Pipeline.parse(passes), UNIT, 2048, 0.0).seconds
            for passes in (search, "observe-ranges")
        )
        name = search.partition("{")[0]
        assert found[name] > 2 * once["observe-ranges"]


def test_counts() -> None:
    steps = Pipeline.parse("observe-ranges{windows=2},quantize-weights{bits=4}")
    one, longer = (estimate(SIZE, steps, UNIT, context, 0.0) for context in (104, 204))
    assert longer.seconds["observe-ranges"] == pytest.approx(2 * one.seconds["observe-ranges"])
    assert one.seconds["quantize-weights"] == UNIT.seconds(
        Work(written=SIZE.weights + 3200, elements=4 * (SIZE.weights + 3200))
    )
    assert one.program == SIZE.weights // 2 + 3200 + 90 * 100  # 4-bit matrices, one table, the tokenizer
    assert one.temporary == 10 * SIZE.parameters


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    data = json.loads(mqc("compile", "model", "--estimate", "--json").stdout)
    assert data["total_seconds"] == pytest.approx(sum(data["seconds"].values())) and data["memory"] > 2**28
    assert "quantize-weights" in mqc("compile", "model", "--estimate", "--recipe", "w4a8").stdout
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    short = mqc("compile", "model", "--estimate", "--context", 8)
    assert short.returncode == 1 and "a context of 8 positions" in short.stderr
    without = mqc("compile", "model")
    assert without.returncode == 1 and "-o FOLDER" in without.stderr


def test_a_wrong_target_is_an_error_beside_passes_too() -> None:
    with pytest.raises(TargetError, match="unknown target 'tpu'"):
        package.estimate("demo", "tpu", passes="fold-norm")


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    BartConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encoder-decoder"):
        size_of(str(tmp_path))


def test_experts_are_refused(tmp_path: Path) -> None:
    tiny_model("mixtral").config.save_pretrained(tmp_path / "routed")
    with pytest.raises(ModelError, match="is a mixture of experts"):
        size_of(str(tmp_path / "routed"))


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the config"):
        size_of(str(tmp_path))
