"""Rotations and activation functions of 16-bit values, in whole models on every target."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.verification import verify_fully
from mqc.backend import Engine
from mqc.backends.cpu import CpuEngine
from mqc.backends.cpu.build import supported_isas
from mqc.backends.npu.engine import NpuEngine
from mqc.backends.onnx.engine import OnnxEngine
from mqc.compiler.recipe import Recipe
from mqc.dialects import int_ops, llm
from mqc.ir.module import mqc_ops
from mqc.ir.op import attr, element_type, u8, u16
from mqc.runtime.oracle import OracleEngine
from tests.compiled import imported, lower_for_cpu, lower_for_npu, lower_for_onnx
from tests.models import VOCABULARY, tiny_model

WIDE = Recipe("wide", precision=("->llm.rope=16", "->llm.silu=16", "->llm.gelu=16"))
IDS = np.random.default_rng(0).integers(0, VOCABULARY, 30).astype(np.int32)
#: Rotated whole, after norms of heads, and in part: in halves, or as if the pairs were neighbours.
MODELS = ("llama", "qwen3", "gpt_neox", "gpt_neox, interleaved")


@pytest.fixture(scope="module", params=MODELS)
def whole(request: pytest.FixtureRequest) -> tuple[CompilerContext, ModuleOp]:
    architecture, *interleaved = request.param.split(", ")
    ctx, module = imported(tiny_model(architecture))
    for op in mqc_ops(module):
        if isinstance(op, llm.RopeOp) and interleaved:
            op.properties["interleaved"] = attr(1)
    WIDE.pipeline("cpu").without("choose-kernels").without("plan-memory").run(ctx, module)
    return ctx, module


@pytest.fixture
def compiled(whole: tuple[CompilerContext, ModuleOp]) -> tuple[CompilerContext, ModuleOp]:
    """A copy to lower."""
    ctx = CompilerContext()
    ctx.weights = deepcopy(whole[0].weights)
    return ctx, whole[1].clone()


def check(engine: Engine, module: ModuleOp, ctx: CompilerContext) -> None:
    """At once, and in pieces through the cache."""
    want = OracleEngine(module, ctx.weights).forward(IDS)
    assert (engine.forward(IDS) == want).all()
    engine.reset()
    parts = [engine.forward(IDS[a:b]) for a, b in ((0, 9), (9, 10), (10, 30))]
    assert (np.concatenate(parts) == want).all()


def test_the_rules_give_16_bits(whole: tuple[CompilerContext, ModuleOp]) -> None:
    ctx, module = whole
    verify_fully(module, ctx.weights)
    rotations = [op for op in mqc_ops(module) if isinstance(op, int_ops.RopeOp)]
    tables = [op for op in mqc_ops(module) if isinstance(op, int_ops.LutOp)]
    assert len(rotations) == 4 and len(tables) == 2
    assert all(element_type(op.x) == u16 for op in (*rotations, *tables))
    assert all(element_type(use.operation.results[0]) == u8 for op in rotations for use in op.result.uses)


@pytest.mark.parametrize("isa", supported_isas())
def test_cpu(compiled: tuple[CompilerContext, ModuleOp], isa: str) -> None:
    ctx, module = compiled
    lower_for_cpu(ctx, module)
    with CpuEngine(module, ctx.weights, threads=2, isa=isa) as engine:
        check(engine, module, ctx)


def test_onnx(compiled: tuple[CompilerContext, ModuleOp]) -> None:
    ctx, module = compiled
    lower_for_onnx(ctx, module)
    check(OnnxEngine(module, ctx.weights, style="integer", threads=1), module, ctx)


@pytest.mark.parametrize("options", [{}, {"runtime": "npu", "tokens": (8, 1)}], ids=["cpu", "npu"])
def test_qdq(compiled: tuple[CompilerContext, ModuleOp], options: dict[str, object]) -> None:
    ctx, module = compiled
    lower_for_onnx(ctx, module)
    want = OracleEngine(module, ctx.weights).forward(IDS).astype(np.float64)
    noise = OnnxEngine(module, ctx.weights, threads=1, **options).forward(IDS) - want
    assert 10 * np.log10((want**2).sum() / (noise**2).sum()) > 25


@pytest.fixture(params=["numpy", pytest.param("qemu", marks=pytest.mark.hexagon)])
def npu(
    compiled: tuple[CompilerContext, ModuleOp], request: pytest.FixtureRequest
) -> Iterator[tuple[CompilerContext, ModuleOp, NpuEngine]]:
    ctx, module = compiled
    lower_for_npu(ctx, module)
    engine = NpuEngine(module, ctx.weights, request.param)
    yield ctx, module, engine
    engine.close()


def test_npu(npu: tuple[CompilerContext, ModuleOp, NpuEngine]) -> None:
    ctx, module, engine = npu
    check(engine, module, ctx)
