"""Tiny models taken through the compiler, for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.calibration import Calibration
from mqc.compiler.dump import Dump
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import Recipe
from mqc.frontend.raising import raise_program
from mqc.frontend.trace import trace
from mqc.ir.weight_store import WeightStore
from tests.models import VOCABULARY, tiny_model

CONTEXT = 64


#: Modules by model, context and passes: many tests start from the same ones, and tracing takes seconds.
_made: dict[tuple[str, str], tuple[ModuleOp, WeightStore]] = {}


def imported(model: PreTrainedModel, context: int = CONTEXT) -> tuple[CompilerContext, ModuleOp]:
    """The `llm` module of a tiny model, with calibration data in its context."""

    def make() -> tuple[ModuleOp, WeightStore]:
        weights = WeightStore()
        return raise_program(trace(model), weights, context, VOCABULARY), weights

    return _once(_identity(model), f"{context}", make)


def quantized(
    model: PreTrainedModel, recipe: Recipe | None = None, context: int = CONTEXT
) -> tuple[CompilerContext, ModuleOp]:
    """The module after every pass but those of the target; by default with a prefix."""
    chosen = recipe or Recipe(prefix=(39, 33))
    pipeline = chosen.pipeline("cpu").without("choose-kernels").without("plan-memory")

    def make() -> tuple[ModuleOp, WeightStore]:
        ctx, module = imported(model, context)
        pipeline.run(ctx, module)
        return module, ctx.weights

    return _once(_identity(model), f"{context} {pipeline}", make)


def _once(
    model: str, passes: str, make: Callable[[], tuple[ModuleOp, WeightStore]]
) -> tuple[CompilerContext, ModuleOp]:
    """A copy of what `make` gave the first time; it shares the arrays, which nobody changes in place."""
    if (model, passes) not in _made:
        _made[model, passes] = make()
    module, weights = _made[model, passes]
    rng = np.random.default_rng(1)
    ctx = CompilerContext(calibration=Calibration(rng.integers(0, VOCABULARY, (4, 32)), bos=0))
    ctx.weights.update(weights)
    return ctx, module.clone()


def _identity(model: PreTrainedModel) -> str:
    """What tells a model from others: its config, and its weights."""
    digest = hashlib.sha256(f"{type(model).__name__} {model.config.to_json_string(use_diff=False)}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def dumped(folder: Path, backend: str = "cpu") -> Path:
    """A folder with the dumps of a tiny model's compilation behind a prefix, and its recipe."""
    recipe = Recipe(prefix=(9,))
    ctx, module = imported(tiny_model("llama"))
    dump = Dump(folder)
    dump.start(ctx, module, {"recipe.toml": recipe.to_toml()})
    recipe.pipeline(backend).run(ctx, module, [dump])
    return folder


def lower_for_cpu(ctx: CompilerContext, module: ModuleOp) -> None:
    Pipeline.parse('choose-kernels{backend="cpu"},plan-memory').run(ctx, module)


def lower_for_onnx(ctx: CompilerContext, module: ModuleOp) -> None:
    Pipeline.parse('choose-kernels{backend="onnx"}').run(ctx, module)


def lower_for_npu(ctx: CompilerContext, module: ModuleOp, tile: int = 16384, vtcm: int = 1 << 20) -> None:
    Pipeline.parse(
        'choose-kernels{backend="npu"},lower-to-htp{tokens=16},'
        f"tile-htp{{tile_bytes={tile}}},allocate-vtcm{{vtcm_bytes={vtcm}}}"
    ).run(ctx, module)
