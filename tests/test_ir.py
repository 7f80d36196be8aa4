"""IR text, dumps and types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import evaluate
from mqc.analysis.ir_text import parse_module, print_module
from mqc.compiler.dump import Dump, read_dump
from mqc.compiler.instruments import Instrument
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import Recipe
from mqc.dialects.quant import UniformType, affine_range
from mqc.errors import IRError, RecipeError
from mqc.ir.module import prefix_tokens
from mqc.pass_base import Pass
from mqc.passes.lower_to_htp import LowerToHtp
from tests.compiled import imported
from tests.models import tiny_model


def test_every_dump_parses_prints_and_evaluates_as_the_compilation_did(tmp_path: Path) -> None:
    ctx, module = imported(tiny_model("llama"))
    ids = np.arange(3, 20)
    dump = Dump(tmp_path)
    during = {}

    class Evaluate(Instrument):
        def after(self, number, p, ctx, module, modified) -> None:  # type: ignore[no-untyped-def]
            during[f"{number:02d}-{p.name}"] = evaluate(module, ctx.weights, ids)

    pipeline = Recipe(prefix=(9,)).pipeline("cpu")
    pipeline.run(ctx, module, [dump, Evaluate()])
    assert len(during) == len(pipeline.passes) and prefix_tokens(module) == (9,)
    for stem, logits in during.items():
        path = tmp_path / f"{stem}.mlir"
        again, weights = read_dump(path)
        assert print_module(again) == path.read_text()
        assert (evaluate(again, weights, ids) == logits).all()
    names = [f.stem for f in tmp_path.glob("*.safetensors")]
    assert "07-assign-precision" not in names  # it changes no weight


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Could not parse"),
        ('builtin.module {\n  llm.silu {a = "x}\n}', "<text>:2: a string does not end"),
        ("builtin.module {", "<text>"),
        ('builtin.module attributes {mqc.level = "llm"} {}', "no function @main"),
        ("builtin.module {\nfunc.func @main() { func.return }\n}", "mqc.level"),
        ("builtin.module {\n  llm.nonsense\n}", "nonsense"),
    ],
)
def test_text_that_is_no_module(text: str, message: str) -> None:
    with pytest.raises(IRError, match=message):
        parse_module(text)


def test_mutated_text_never_crashes() -> None:
    _, module = imported(tiny_model("llama", num_hidden_layers=1))
    text = print_module(module)
    rng = np.random.default_rng(0)
    for _ in range(300):
        place = int(rng.integers(len(text)))
        kind = rng.integers(3)
        if kind == 0:
            mutated = text[:place] + text[place + int(rng.integers(1, 30)) :]
        elif kind == 1:
            mutated = text[:place] + chr(int(rng.integers(32, 127))) + text[place + 1 :]
        else:
            other = int(rng.integers(len(text)))
            mutated = text[:place] + text[other : other + 20] + text[place:]
        try:
            parse_module(mutated)
        except IRError:
            continue


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from([8, 16]))
def test_affine_range_covers_its_range_and_zero(a: float, b: float, bits: int) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    grid = affine_range(a if a < b else b, b if a < b else a, bits)
    slack = grid.real_scale / 2 * 1.001 + 1e-12
    assert (grid.low - grid.zero) * grid.real_scale <= low + slack
    assert (grid.high - grid.zero) * grid.real_scale >= high - slack
    zero = torch.zeros(1)
    assert float(grid.fake_quantize(zero)) == 0.0


@given(st.integers(0, 255), st.floats(1e-6, 10))
def test_fake_quantization_is_rounding_and_passes_gradients(zero: int, scale: float) -> None:
    grid = UniformType.of(8, scale, zero)
    x = torch.linspace(-20, 20, 101, dtype=torch.float64, requires_grad=True)
    y = grid.fake_quantize(x)
    stored = torch.clamp(torch.round(x / scale) + zero, 0, 255)
    assert torch.allclose(y, (stored - zero) * scale, rtol=1e-9, atol=1e-12)
    y.sum().backward()
    real = (x / scale).detach()
    assert x.grad is not None
    assert (x.grad[(real > 1 - zero) & (real < 254 - zero)] == 1).all()
    assert (x.grad[(real < -1 - zero) | (real > 256 - zero)] == 0).all()


class Modified(Instrument):
    """What each pass said of itself, beside whether the module's text changed."""

    def __init__(self) -> None:
        self.said: list[tuple[str, bool, bool]] = []

    def before(self, number: int, p: Pass, ctx: CompilerContext, module: ModuleOp) -> None:
        self.text = print_module(module)

    def after(self, number: int, p: Pass, ctx: CompilerContext, module: ModuleOp, modified: bool) -> None:
        self.said.append((p.name, modified, print_module(module) != self.text))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma"])
def test_passes_say_whether_they_modified(architecture: str) -> None:
    ctx, module = imported(tiny_model(architecture))
    watching = Modified()
    recipe = Recipe(prefix=(), learn="steps=1 samples=1 length=8")
    recipe.pipeline("npu").replace("lower-to-htp", LowerToHtp(tokens=(8,))).run(ctx, module, [watching])
    twice = Pipeline.parse("fold-constants,fold-norm")
    again, module = imported(tiny_model(architecture))
    twice.run(again, module)
    twice.run(again, module, [watching])
    assert {modified for _, modified, _ in watching.said} == {True, False}
    assert [name for name, modified, changed in watching.said if modified != changed] == []


@pytest.mark.parametrize(
    "text",
    [
        "observe-ranges{method=\"nearest\"}", "observe-ranges{windows=0}", "balance-scales{alpha=1.5}",
        "absorb-prefix{most=-1}", "quantize-weights{bits=5}", "quantize-weights{bits=8 group=32}",
        "quantize-weights{bits=4 group=33}", "assign-precision{share=1.5}",
        "assign-precision{rules=\"%a=4\"}", "learn-ranges{steps=0}",
        "learn-ranges{lr_ranges=-1.0}", "learn-ranges{loss=\"mse\"}",
        "lower-to-htp{tokens=0}", "tile-htp{tile_bytes=0}", "allocate-vtcm{vtcm_bytes=0}",
    ],
)  # fmt: skip
def test_options_are_checked_before_anything_runs(text: str) -> None:
    with pytest.raises(RecipeError, match=r"must|is none of|need"):
        Pipeline.parse(text)
