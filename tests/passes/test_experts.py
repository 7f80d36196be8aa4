"""Mixtures of experts in the passes: 4-bit groups, error feedback, learning, and what is told of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.backends.cpu import CpuEngine
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import Recipe
from mqc.dialects import int_ops
from mqc.dialects.llm import LinearOp
from mqc.errors import RecipeError, UnsupportedOpError
from mqc.ir.module import experts_not_chosen, mqc_ops
from mqc.runtime.oracle import OracleEngine
from tests.compiled import imported, lower_for_cpu, quantized
from tests.models import VOCABULARY, sqnr, tiny_model

LEARN = "method=end-to-end loss=kl steps=20 lr_scales=0.001 lr_clipping=0.01"
IDS = np.random.default_rng(0).integers(0, VOCABULARY, 29).astype(np.int32)
WIDE = {
    "hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 64,
    "shared_expert_intermediate_size": 32,
}  # fmt: skip


def logits(found: tuple[CompilerContext, ModuleOp]) -> np.ndarray:
    ctx, module = found
    lower_for_cpu(ctx, module)
    want = OracleEngine(module, ctx.weights).forward(IDS)
    with CpuEngine(module, ctx.weights, threads=2) as engine:
        assert (engine.forward(IDS) == want).all()
    return want


@pytest.mark.slow
@pytest.mark.parametrize("group", [0, 32])
def test_4_bit_weights(group: int) -> None:
    model = tiny_model("qwen2_moe", **WIDE)
    found = quantized(model, Recipe("w4", weight_bits=4, group=group, prefix=()))
    matrices = {op.value_name: op for op in mqc_ops(found[1]) if isinstance(op, int_ops.LinearOp)}
    assert {op.get("weight_bits") for op in matrices.values() if op.gates is not None} == {4}
    assert {op.get("weight_bits") for name, op in matrices.items() if name.endswith("mlp.gate.acc")} == {8}
    exact = logits(quantized(model, Recipe(prefix=())))
    assert sqnr(logits(found), exact) > 5


def test_groups_must_divide_an_experts_inputs() -> None:
    """16 experts of 24 inputs have 384 columns, which 32 divides; but a group would be of two experts."""
    ctx, module = imported(tiny_model("qwen2_moe", hidden_size=64, num_experts=16, intermediate_size=64))
    recipe = Recipe("w4", weight_bits=4, group=32, keep8=("*shared*",))
    with pytest.raises(RecipeError, match="has 24 input channels, which groups of 32 do not divide"):
        recipe.pipeline("cpu").run(ctx, module)


def test_error_feedback_gains_in_each_expert() -> None:
    """The last matrices' results on calibration data are nearer to the float ones than with rounding to the
    nearest, by the tokens of every expert that was chosen."""
    errors = {}
    for rounding in ("nearest", "feedback"):
        ctx, module = imported(tiny_model("mixtral", **WIDE))
        exact = {op.value_name: ctx.weights[op.weight] for op in mqc_ops(module) if isinstance(op, LinearOp)}
        steps = f"observe-ranges,assign-precision,quantize-weights{{bits=4 rounding={rounding}}}"
        Pipeline.parse(steps).run(ctx, module)
        last = [op for op in mqc_ops(module) if isinstance(op, LinearOp) and op.get("expert_axis") == 1]
        errors[rounding] = _errors_by_expert(ctx, module, last, exact)
    assert len(errors["nearest"]) == 2 * 4
    assert (errors["feedback"] < errors["nearest"]).all()


def _errors_by_expert(
    ctx: CompilerContext, module: ModuleOp, last: list[LinearOp], exact: dict[str, np.ndarray]
) -> np.ndarray:
    from mqc.compiler.observation import observe

    found = []

    def note(op: object, operands: list[tuple[torch.Tensor, ...]]) -> None:
        if op not in last:
            return
        assert isinstance(op, LinearOp) and op.weight_scale is not None
        x = torch.cat([given[0] for given in operands]).numpy()
        lost = ctx.weights[op.weight] * ctx.weights[op.weight_scale][:, None] - exact[op.value_name]
        count = op.experts[0]
        products = np.einsum("teo,neo->etn", *(m.reshape(len(m), count, -1) for m in (x, lost)))
        found.extend(np.linalg.norm(products, axis=(1, 2)))

    assert ctx.calibration is not None
    observe(ctx, module, ctx.calibration.windows, before=note)
    return np.array(found)


@pytest.mark.slow
def test_learning_goes_through_experts() -> None:
    """The learned program is near the unlearned one of 8 bits, and the CPU gives the oracle's logits."""
    ctx, module = quantized(tiny_model("mixtral"), Recipe("learned", learn=LEARN, prefix=(), weight_bits=4))
    assert sqnr(logits((ctx, module)), logits(quantized(tiny_model("mixtral"), Recipe(prefix=())))) > 5


def test_experts_that_no_token_chose_are_told() -> None:
    model = tiny_model("glm4_moe")
    with torch.no_grad():
        model.model.layers[1].mlp.gate.e_score_correction_bias[[2, 5]] = -100
    ctx, module = imported(model)
    Pipeline.parse("observe-ranges").run(ctx, module)
    (told,) = (text for text in experts_not_chosen(module) if text.startswith("%layers.1."))
    name, experts = told.split(": ")
    assert name == "%layers.1.mlp.experts.gates" and {"2", "5"} <= set(experts.split(", "))


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("mixtral", "%layers.0.mlp.experts.gates: llm.route"),
        ("mpt", "%blocks.0.attn.attention: llm.attention with a bias of keys"),
        ("openai-gpt", "%h.0.ln.1: llm.layer_norm with a bias that no product takes up"),
    ],
)
def test_npus_refuse_before_anything_is_calibrated(architecture: str, what: str) -> None:
    ctx, module = imported(tiny_model(architecture))
    ctx.calibration = None
    with pytest.raises(UnsupportedOpError, match=f"{what} has no form for NPUs"):
        Recipe(prefix=()).pipeline("npu").run(ctx, module)
