"""Tiny models taken through the compiler, for tests."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedModel
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.calibration import Calibration
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import Recipe
from mqc.frontend.raising import raise_program
from mqc.frontend.trace import trace
from tests.models import VOCABULARY

CONTEXT = 64


def imported(model: PreTrainedModel) -> tuple[CompilerContext, ModuleOp]:
    """The `llm` module of a tiny model, with calibration data in its context."""
    ctx = CompilerContext()
    module = raise_program(trace(model), ctx.weights, CONTEXT, VOCABULARY)
    rng = np.random.default_rng(1)
    ctx.calibration = Calibration(rng.integers(0, VOCABULARY, (4, 32)), bos=0)
    return ctx, module


def quantized(model: PreTrainedModel, recipe: Recipe | None = None) -> tuple[CompilerContext, ModuleOp]:
    """The module after every pass but those of the target."""
    ctx, module = imported(model)
    pipeline = (recipe or Recipe()).pipeline("cpu").without("choose-kernels").without("plan-memory")
    pipeline.run(ctx, module)
    return ctx, module


def lower_for_cpu(ctx: CompilerContext, module: ModuleOp) -> None:
    Pipeline.parse('choose-kernels{backend="cpu"},plan-memory').run(ctx, module)


def lower_for_onnx(ctx: CompilerContext, module: ModuleOp) -> None:
    Pipeline.parse('choose-kernels{backend="onnx"}').run(ctx, module)


def lower_for_npu(ctx: CompilerContext, module: ModuleOp, tile: int = 16384, vtcm: int = 1 << 20) -> None:
    Pipeline.parse(
        'choose-kernels{backend="npu"},lower-to-htp{tokens=16},'
        f"tile-htp{{tile_bytes={tile}}},allocate-vtcm{{vtcm_bytes={vtcm}}}"
    ).run(ctx, module)
