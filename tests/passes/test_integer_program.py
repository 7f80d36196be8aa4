"""Every architecture becomes an integer program that the CPU runs as the oracle does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mqc.analysis.proofs import check_accumulators
from mqc.backends.cpu import CpuEngine
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import Recipe
from mqc.errors import InputError, IRError, PassError, RecipeError, UnsupportedOpError
from mqc.ir.module import mqc_ops
from mqc.ir.op import attr, plain
from mqc.runtime.oracle import OracleEngine
from tests.compiled import imported, lower_for_cpu, quantized
from tests.models import ALL, VOCABULARY, tiny_model

W4 = Recipe("w4", weight_bits=4)


@pytest.mark.parametrize("architecture", ALL)
def test_close_to_float_and_equal_on_the_cpu(architecture: str) -> None:
    model = tiny_model(architecture)
    ctx, module = quantized(model, Recipe(prefix=(9,)))
    lower_for_cpu(ctx, module)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 29).astype(np.int32)
    oracle = OracleEngine(module, ctx.weights).forward(ids)
    with torch.no_grad():
        want = model(torch.tensor([[9, *ids.tolist()]])).logits[0, 1:].numpy()
    got = oracle * plain(module.attributes["mqc.logit_scale"])
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error < 0.15, f"relative error {error:.3f}"
    with CpuEngine(module, ctx.weights, threads=2) as engine:
        assert (engine.forward(ids) == oracle).all()
        engine.reset()
        steps = [engine.forward(ids[i : i + 1]) for i in range(len(ids))]
        assert (np.concatenate(steps) == oracle).all()


def test_convolutions_go_back_and_go_on_elsewhere() -> None:
    """What they read of earlier tokens belongs to the sequence, as keys and values do."""
    ctx, module = quantized(tiny_model("lfm2"), Recipe(prefix=(9, 3)))
    lower_for_cpu(ctx, module)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 29).astype(np.int32)
    want = OracleEngine(module, ctx.weights).forward(ids)
    with CpuEngine(module, ctx.weights) as engine, CpuEngine(module, ctx.weights) as other:
        engine.forward(ids[::-1].copy())
        engine.rewind(engine.prefix_length)
        assert (engine.forward(ids[:20]) == want[:20]).all()
        other.write_state(engine.position, engine.read_state())
        assert (other.forward(ids[20:]) == want[20:]).all()
        engine.forward(ids[:5])
        engine.rewind(engine.prefix_length + 20)
        assert (engine.forward(ids[20:]) == want[20:]).all()
        oracle = OracleEngine(module, ctx.weights)
        oracle.write_state(other.position, other.read_state())
        assert (oracle.forward(ids[:3]) == other.forward(ids[:3])).all()


def test_states_go_on_elsewhere_and_do_not_go_back() -> None:
    """What linear attention keeps of a sequence is that of its last position alone."""
    ctx, module = quantized(tiny_model("qwen3_5_text"), Recipe(prefix=(9, 3)))
    lower_for_cpu(ctx, module)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 29).astype(np.int32)
    oracle = OracleEngine(module, ctx.weights)
    want = oracle.forward(ids)
    with CpuEngine(module, ctx.weights) as engine, CpuEngine(module, ctx.weights) as other:
        fresh = engine.read_state()["recurrent.0"]
        assert fresh.shape == (4, 8, 6) and fresh.dtype == np.int32 and fresh.any(), "that behind the prefix"
        engine.forward(ids[::-1].copy())
        engine.reset()
        assert (engine.read_state()["recurrent.0"] == fresh).all()
        assert (engine.forward(ids[:20]) == want[:20]).all()
        with pytest.raises(
            InputError, match=r"state recurrent\.0 .* cannot go back; fork the session before"
        ):
            engine.rewind(engine.position - 1)
        kept = engine.read_state()
        other.write_state(engine.position, kept)
        assert (engine.forward(ids[20:]) == want[20:]).all()
        assert (other.forward(ids[20:21]) == want[20:21]).all()
        oracle.write_state(oracle.prefix_length + 20, kept)
        assert (oracle.forward(ids[20:]) == want[20:]).all()
        assert all((array == engine.read_state()[name]).all() for name, array in oracle.read_state().items())


@pytest.mark.parametrize("target", ["onnx", "npu"])
def test_targets_without_states_refuse_before_anything_is_calibrated(target: str) -> None:
    _, module = imported(tiny_model("qwen3_5_text"))
    with pytest.raises(UnsupportedOpError, match=r"has no form .*target cpu-int8 has one"):
        Recipe().pipeline(target).check(module)


@pytest.mark.parametrize(
    "recipe",
    [
        W4,
        Recipe("w4g", weight_bits=4, group=32),
        Recipe("16", precision=("llm.silu=16", "%*gate_proj=16", "%*norm=16")),
        Recipe("8", precision=("llm.*=8",), ranges="mse", prefix=()),
        Recipe("minmax", ranges="minmax", alpha=0.5),
    ],
    ids=lambda r: r.name,
)
def test_recipes(recipe: Recipe) -> None:
    changes = {"hidden_size": 64, "intermediate_size": 96} if recipe.group else {}
    ctx, module = quantized(tiny_model("llama", **changes), recipe)
    lower_for_cpu(ctx, module)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 29).astype(np.int32)
    oracle = OracleEngine(module, ctx.weights).forward(ids)
    for isa in ("portable", "auto"):
        with CpuEngine(module, ctx.weights, threads=1, isa=isa) as engine:
            assert (engine.forward(ids) == oracle).all()


def test_the_proof_covers_all_products_and_refuses_a_planted_fault() -> None:
    ctx, module = quantized(tiny_model("llama"))
    linears = [op for op in mqc_ops(module) if op.name == "int.linear"]
    channels = sum(plain_shape[0] for plain_shape in (op.properties["bias"].shape for op in linears))  # type: ignore[attr-defined]
    assert check_accumulators(module, ctx.weights) == channels
    broken = linears[3]
    bias = np.full(broken.properties["bias"].shape, 2**31 - 1, np.int32)  # type: ignore[attr-defined]
    broken.properties["bias"] = ctx.weights.add("bias", bias)
    with pytest.raises(IRError, match=broken.value_name):
        check_accumulators(module, ctx.weights)


def test_rotary_tables_that_16_bits_do_not_hold() -> None:
    factors = {
        "rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 1.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    with pytest.raises(UnsupportedOpError, match=r"with factors up to 2\.\d+; 16 bits hold less than 2"):
        quantized(tiny_model("ministral3", rope_parameters=factors))


def test_the_proof_covers_rotations_of_16_bits() -> None:
    """A table whose |cos| + |sin| exceeds 2 · 2^14 could take them beyond s32; no table those of 8 bits."""
    for rule, refused in (("->llm.rope=16", True), ("->llm.rope=8", False)):
        ctx, module = quantized(tiny_model("llama"), Recipe(precision=(rule,)))
        check_accumulators(module, ctx.weights)
        rope = next(op for op in mqc_ops(module) if op.name == "int.rope")
        rope.properties["x_zero"] = attr(0)
        for name in ("cos", "sin"):
            table = ctx.weights[rope.properties[name]].copy()  # type: ignore[index]
            table[3, 1] = 3 << 13
            rope.properties[name] = ctx.weights.add(name, table)
        if not refused:
            check_accumulators(module, ctx.weights)
            continue
        with pytest.raises(IRError, match=rf"int.rope %{rope.value_name}: .* goes up to 49152"):
            check_accumulators(module, ctx.weights)


def test_order_is_checked() -> None:
    ctx, module = imported(tiny_model("llama"))
    with pytest.raises(PassError, match=r"lower-to-int, takes level quant"):
        Pipeline.parse("fold-norm,lower-to-int").run(ctx, module)
    ctx, module = imported(tiny_model("llama"))
    with pytest.raises(PassError, match="run observe-ranges first"):
        Pipeline.parse("assign-precision").run(ctx, module)


@pytest.mark.parametrize(
    "text",
    ["no-such-pass", "fold-norm{", "balance-scales{beta=1}", 'balance-scales{alpha="x"}', "fold-norm,,"],
)
def test_pipeline_text_that_cannot_be_read(text: str) -> None:
    with pytest.raises(RecipeError):
        Pipeline.parse(text)


def test_pipelines_are_edited() -> None:
    pipeline = Recipe().pipeline("cpu")
    first = pipeline.passes[0]
    names = [p.name for p in pipeline.without("absorb-prefix").insert_after("fold-norm", first)]
    assert [p.name for p in pipeline.insert_before("fold-norm", first)][:2] == ["fold-constants"] * 2
    assert names[:4] == ["fold-constants", "fold-norm", "fold-constants", "rotate-channels"]
    assert str(Pipeline.parse(str(pipeline))) == str(pipeline)
    with pytest.raises(RecipeError, match="has no pass 'x'"):
        pipeline.replace("x")


@pytest.mark.parametrize("value", ["2", "2.5", "1e-06", "0", "1E3"])
def test_float_options(value: str) -> None:
    (learning,) = Pipeline.parse(f"learn-ranges{{lr_zeros={value}}}")
    assert learning.lr_zeros == float(value)  # type: ignore[attr-defined]
    assert Pipeline.parse(str(Pipeline((learning,)))) == Pipeline((learning,))
    with pytest.raises(RecipeError, match="pass learn-ranges"):
        Pipeline.parse("learn-ranges{lr_zeros=fast}")


@pytest.mark.parametrize("rule", ["x", "x=7", "=8"])
def test_bad_precision_rules(rule: str) -> None:
    with pytest.raises((RecipeError, PassError), match="must read selector"):
        quantized(tiny_model("llama"), Recipe(precision=(rule,)))


def test_groups_must_divide_the_inputs() -> None:
    with pytest.raises(RecipeError, match="groups of 64"):
        quantized(tiny_model("llama"), Recipe(weight_bits=4, group=64))
