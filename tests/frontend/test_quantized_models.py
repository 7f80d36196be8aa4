"""Models that are quantized already: their integers and ranges are those of the program."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from xdsl.dialects.builtin import ModuleOp

import mqc
from mqc.analysis.context import CompilerContext
from mqc.calibration import Calibration
from mqc.compiler.recipe import RECIPES, Recipe
from mqc.dialects import int_ops
from mqc.dialects.llm import EmbeddingOp, LinearOp
from mqc.dialects.quant import UniformType
from mqc.errors import ModelError, RecipeError
from mqc.frontend.checkpoint import integer_matrix
from mqc.frontend.fidelity import check_against_model
from mqc.frontend.given import Given, Stated
from mqc.frontend.raising import raise_program
from mqc.frontend.size import size_of
from mqc.frontend.sources import Source, load_source
from mqc.frontend.trace import trace
from mqc.ir.module import mqc_ops, ops_by_name
from mqc.numerics.packed import unpacked
from mqc.numerics.products import per_input
from tests.models import VOCABULARY, tiny_model, tokens
from tests.quantized_models import (
    Grid,
    Writer,
    awq,
    compressed_config,
    gptq,
    int_quantized,
    pack_quantized,
    packed,
    save,
)
from tests.test_api import TEXT

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
#: Config, writer, bits, group, symmetric.
FORMATS: dict[str, tuple[dict[str, Any], Writer, int, int, bool]] = {
    "w8": (compressed_config("int-quantized"), int_quantized, 8, 0, True),
    "w8 naive": (compressed_config("naive-quantized"), int_quantized, 8, 0, True),
    "w8 asymmetric": (compressed_config("int-quantized"), int_quantized, 8, 0, False),
    "w8 packed": (compressed_config("pack-quantized"), pack_quantized, 8, 0, True),
    "w4": (compressed_config("pack-quantized", 4), pack_quantized, 4, 0, True),
    "w4 asymmetric": (compressed_config("pack-quantized", 4), pack_quantized, 4, 0, False),
    "w4 groups": (compressed_config("pack-quantized", 4), pack_quantized, 4, 32, True),
    "w4 groups asymmetric": (compressed_config("pack-quantized", 4), pack_quantized, 4, 32, False),
    "w3": (compressed_config("pack-quantized", 3), pack_quantized, 3, 0, True),
    "w2": (compressed_config("pack-quantized", 2), pack_quantized, 2, 0, True),
    "gptq": ({**GPTQ, "sym": True}, gptq, 4, 32, True),
    "gptq asymmetric": (GPTQ, gptq, 4, 32, False),
    "gptq 8 bits": ({**GPTQ, "bits": 8, "group_size": -1}, gptq, 8, 0, True),
    "gptq_v2": ({**GPTQ, "checkpoint_format": "gptq_v2"}, partial(gptq, less=0), 4, 32, False),
    "awq": (AWQ, awq, 4, 32, False),
}
#: Those whose integers and scales a program has as they are.
EXACT = ["w8", "w8 naive", "w8 packed", "w4", "w4 asymmetric", "w3", "w2", "gptq 8 bits"]
IN_GROUPS = ["w4 groups", "gptq"]


def raised(source: Source) -> tuple[CompilerContext, ModuleOp, Given, Stated]:
    rng = np.random.default_rng(1)
    ctx = CompilerContext(calibration=Calibration(rng.integers(0, VOCABULARY, (4, 32)), bos=0))
    assert source.given is not None
    module = raise_program(trace(source.model), ctx.weights, 64, VOCABULARY, source.given)
    stated = source.given.state_types(module)
    check_against_model(source.model, module, ctx.weights)
    return ctx, module, source.given, stated


def quantized(ctx: CompilerContext, module: ModuleOp, recipe: Recipe) -> None:
    """Run a recipe's passes up to those that make integers of all."""
    passes = recipe.pipeline("cpu").without("choose-kernels").without("plan-memory").without("lower-to-int")
    passes.run(ctx, module)


def lowered(ctx: CompilerContext, module: ModuleOp) -> None:
    from mqc.compiler.pass_manager import Pipeline

    Pipeline.parse("lower-to-int").run(ctx, module)


def matrices(module: ModuleOp, grids: dict[str, Grid]) -> dict[str, LinearOp]:
    ops = ops_by_name(module)
    return {name: ops[name.removeprefix("model.")] for name in grids}  # type: ignore[misc]


@pytest.mark.parametrize("name", FORMATS)
def test_the_float_model_is_what_the_integers_stand_for(name: str, tmp_path: Path) -> None:
    want, grids = save(tmp_path, *FORMATS[name])
    source = load_source(str(tmp_path))
    for module, grid in grids.items():
        assert np.array_equal(source.model.get_submodule(module).weight.detach().numpy(), grid.floats)
    with torch.no_grad():
        assert torch.equal(source.model(tokens(9)[None]).logits, want(tokens(9)[None]).logits)


@pytest.mark.parametrize(
    "recipe", [Recipe(), RECIPES["w4a8"], Recipe(max_loss=100.0)], ids=["w8", "w4", "loss"]
)
@pytest.mark.parametrize("name", EXACT)
def test_integers_and_scales_are_the_files(name: str, recipe: Recipe, tmp_path: Path) -> None:
    if recipe.weight_bits == 4 and name != "w8":
        pytest.skip("one is enough")
    _, grids = save(tmp_path, *FORMATS[name])
    ctx, module, _, _ = raised(load_source(str(tmp_path)))
    quantized(ctx, module, recipe)
    whole = {
        key: (grid.integers - grid.zeros, op) for (key, grid), op in zip(
            grids.items(), matrices(module, grids).values(), strict=True
        )
    }  # fmt: skip
    for key, (integers, op) in whole.items():
        assert np.array_equal(ctx.weights[op.weight], integers)
        assert op.weight_scale is not None and op.group_scale is None
        assert np.array_equal(ctx.weights[op.weight_scale], grids[key].scale[:, 0])
        assert op.get("weight_bits") == (4 if integers.min() >= -8 and integers.max() <= 7 else 8)
    lowered(ctx, module)
    for key, (integers, _) in whole.items():
        (product,) = (o for o in mqc_ops(module) if o.value_name == f"{key.removeprefix('model.')}.acc")
        assert isinstance(product, int_ops.LinearOp) and np.array_equal(ctx.weights[product.weight], integers)


@pytest.mark.parametrize("name", IN_GROUPS)
def test_integers_of_groups_are_the_files(name: str, tmp_path: Path) -> None:
    _, grids = save(tmp_path, *FORMATS[name])
    ctx, module, found, _ = raised(load_source(str(tmp_path)))
    quantized(ctx, module, Recipe())
    for grid, op in zip(grids.values(), matrices(module, grids).values(), strict=True):
        assert np.array_equal(ctx.weights[op.weight], grid.integers)
        assert op.weight_scale is not None and op.group_scale is not None
        steps = ctx.weights[op.group_scale] * ctx.weights[op.weight_scale][:, None]
        assert np.abs(steps / grid.scale - 1).max() < 1 / 16
    assert "the nearest that a program has" in found.notes[0]


def test_groups_far_apart_are_rounded_to_what_a_program_has(tmp_path: Path) -> None:
    """No weight is farther from the file's than half a step or an eighth, but what the least step cannot
    reach."""
    _, grids = save(tmp_path, *FORMATS["w4 groups"])
    path = tmp_path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name in grids:
        scale = tensors[f"{name}.weight_scale"]
        scale[:, 0] *= torch.tensor([0.01, 0.3, 1e-20, 1.4]).repeat(len(scale) // 4)
    save_file(tensors, path)
    ctx, module, _, _ = raised(load_source(str(tmp_path)))
    floats = {name: ctx.weights[op.weight].copy() for name, op in matrices(module, grids).items()}
    quantized(ctx, module, Recipe())
    for name, op in matrices(module, grids).items():
        assert op.weight_scale is not None and op.group_scale is not None
        steps = ctx.weights[op.group_scale] * ctx.weights[op.weight_scale][:, None]
        steps = per_input(steps.astype(np.float64), floats[name].shape[1])
        integers = ctx.weights[op.weight]
        inside = np.abs(floats[name] / steps) < 7.5
        allowed = np.maximum(0.5001 * steps, np.abs(floats[name]) / 7)
        assert (np.abs(integers * steps - floats[name])[inside] <= allowed[inside]).all()
        assert (np.abs(integers)[~inside] >= 7).all() and inside.mean() > 0.9


def test_a_factor_of_whole_numbers_is_a_factor() -> None:
    """Twice the integers are integers too, and not those of the file."""
    integers = np.array([[3, -1, 2], [5, 0, 1]], np.int16)
    grid = integer_matrix("m", integers, np.array([[0.5], [0.25]], np.float32), "m.scale").grid
    assert grid is not None
    weight = (integers * [[0.5], [0.25]]).astype(np.float32)
    assert grid.holds(weight, slice(None)) and grid.holds(weight[1:], slice(1, 2))
    for factor in (2, -1, 0.5):
        assert not grid.holds(weight * np.float32(factor), slice(None))


@pytest.mark.parametrize("name", ["w8 asymmetric", "w4 groups asymmetric", "awq", "gptq asymmetric"])
def test_what_no_program_holds_is_rounded_again(name: str, tmp_path: Path) -> None:
    _, grids = save(tmp_path, *FORMATS[name])
    ctx, module, found, stated = raised(load_source(str(tmp_path)))
    quantized(ctx, module, RECIPES["w4a8"])
    assert {op.get("weight_bits") for op in matrices(module, grids).values()} == {8}
    lowered(ctx, module)
    report = found.report(stated, module)
    assert report["given"] == [] and len(report["left"]) == len(grids)
    assert all("more than" in line and line.endswith("rounded again") for line in report["left"])


def test_scattered_groups(tmp_path: Path) -> None:
    """GPTQ with desc_act: the integers of a group stand apart."""
    order = np.random.default_rng(3).permutation(64)

    def write(name: str, grid: Grid, bits: int) -> dict[str, torch.Tensor]:
        return gptq(name, grid, bits, order=order if grid.integers.shape[1] == 64 else None)

    _, grids = save(tmp_path, {**GPTQ, "desc_act": True}, write, 4, 32)
    source = load_source(str(tmp_path))
    for name, grid in grids.items():
        floats = grid.floats[:, order] if grid.integers.shape[1] == 64 else grid.floats
        assert np.array_equal(source.model.get_submodule(name).weight.detach().numpy(), floats)
    assert source.given is not None
    left = [name for name, grid in source.given.matrices.items() if grid.scale is None]
    assert len(left) == 12 and "scattered" in source.given.matrices[left[0]].why


@pytest.mark.parametrize("format", ["int-quantized", "pack-quantized"])
def test_zero_points_of_scattered_groups(format: str, tmp_path: Path) -> None:
    """compressed-tensors with `actorder`: both scales and zero points are those that `weight_g_idx` names."""
    order = np.random.default_rng(3).permutation(64)
    write_grid = int_quantized if format == "int-quantized" else pack_quantized

    def write(name: str, grid: Grid, bits: int) -> dict[str, torch.Tensor]:
        inputs = grid.integers.shape[1]
        index = np.arange(inputs) // 32
        if inputs == 64:
            wanted[name] = grid.floats[:, order]
            turned = np.ascontiguousarray(grid.integers[:, order])
            grid, index = Grid(turned, grid.scale, grid.zeros), index[order]
        else:
            wanted[name] = grid.floats
        return {
            **write_grid(name, grid, bits), f"{name}.weight_g_idx": torch.from_numpy(index.astype(np.int32))
        }  # fmt: skip

    wanted: dict[str, Any] = {}
    save(tmp_path, compressed_config(format, 4), write, 4, 32, symmetric=False)
    model = load_source(str(tmp_path)).model
    for name, floats in wanted.items():
        assert np.array_equal(model.get_submodule(name).weight.detach().numpy(), floats)


def test_an_index_of_groups_that_says_nothing(tmp_path: Path) -> None:
    """compressed-tensors begins with -1 for all inputs."""
    _, grids = save(
        tmp_path, compressed_config("pack-quantized", 4), pack_quantized, 4, 32,
        more=lambda name: {f"{name}.weight_g_idx": torch.full((128 if "down" in name else 64,), -1)},
    )  # fmt: skip
    model = load_source(str(tmp_path)).model
    for name, grid in grids.items():
        assert np.array_equal(model.get_submodule(name).weight.detach().numpy(), grid.floats)


def test_a_zero_point_of_0_is_stored_as_all_ones(tmp_path: Path) -> None:
    """GPTQ's first form stores zero points less 1."""

    def write(name: str, grid: Grid, bits: int) -> dict[str, torch.Tensor]:
        grid.zeros[0] = -8  # of the signed integers
        return gptq(name, grid, bits)

    _, grids = save(tmp_path, GPTQ, write, 4, 32, symmetric=False)
    model = load_source(str(tmp_path)).model
    for name, grid in grids.items():
        assert np.array_equal(model.get_submodule(name).weight.detach().numpy(), grid.floats)


def test_groups_without_an_index_are_of_the_configs_size(tmp_path: Path) -> None:
    """The last one is smaller: 64 inputs in 48."""

    def write(name: str, grid: Grid, bits: int) -> dict[str, torch.Tensor]:
        scale = np.repeat(grid.scale, 3 if grid.integers.shape[1] == 128 else 2, 1)
        scale[:, 1:] *= 2
        wanted[name] = (grid.integers * scale[:, np.arange(grid.integers.shape[1]) // 48]).astype(np.float32)
        found = gptq(name, Grid(grid.integers, scale, np.zeros(scale.shape, np.int64)), bits)
        del found[f"{name}.g_idx"]
        return found

    wanted: dict[str, Any] = {}
    save(tmp_path, {**GPTQ, "group_size": 48}, write, 4)
    model = load_source(str(tmp_path)).model
    for name, floats in wanted.items():
        assert np.array_equal(model.get_submodule(name).weight.detach().numpy(), floats)


def test_matrices_that_stand_turned_in_the_model(tmp_path: Path) -> None:
    """GPT-2 has square ones too, for which shapes tell nothing."""
    want, _ = save(tmp_path, {**GPTQ, "sym": True}, gptq, 4, 32, architecture="gpt2")
    source = load_source(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(source.model(tokens(9)[None]).logits, want(tokens(9)[None]).logits)
    stated = raised(source)[-1]
    assert stated.matrices and all(name.endswith(".scales") for name in stated.matrices.values())


def test_rows_of_one_matrix(tmp_path: Path) -> None:
    """Phi-3 has one matrix for queries, keys and values."""
    _, grids = save(tmp_path, *FORMATS["w8"], architecture="phi3")
    ctx, module, _, _ = raised(load_source(str(tmp_path)))
    quantized(ctx, module, Recipe())
    whole = grids["model.layers.0.self_attn.qkv_proj"]
    ops = [op for op in mqc_ops(module) if op.value_name.startswith("layers.0.self_attn.qkv_proj")]
    found = np.concatenate([ctx.weights[op.weight] for op in ops])  # type: ignore[attr-defined]
    assert len(ops) == 3 and sorted(map(bytes, found)) == sorted(map(bytes, whole.integers.astype(np.int8)))


def test_a_table_that_gives_the_logits_too(tmp_path: Path) -> None:
    config = {**compressed_config("int-quantized"), "ignore": []}
    _, grids = save(tmp_path, config, int_quantized, 4, tables=True, tie_word_embeddings=True)
    ctx, module, _, stated = raised(load_source(str(tmp_path)))
    assert stated.matrices["lm_head"] == "model.embed_tokens.weight_scale"
    quantized(ctx, module, Recipe())
    ops = ops_by_name(module)
    table, head = ops["embed_tokens"], ops["lm_head"]
    assert isinstance(table, EmbeddingOp) and isinstance(head, LinearOp)
    assert table.table == head.weight and head.get("weight_bits") == 8
    assert np.array_equal(ctx.weights[head.weight], grids["model.embed_tokens"].integers)


def test_scales_of_a_cache_are_calibrated(tmp_path: Path) -> None:
    save(
        tmp_path, compressed_config("int-quantized"), int_quantized, 8,
        more=lambda name: {f"{name[:-7]}.k_scale": torch.tensor(0.1)} if name.endswith(".k_proj") else {},
    )  # fmt: skip
    found = load_source(str(tmp_path)).given
    assert found is not None and found.notes == ("the files have scales of the cache: calibrated here",)


STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}


def activations(name: str) -> dict[str, torch.Tensor]:
    number = len(name.rpartition(".")[0]) / 300  # any, but the same for all of attention
    return {
        f"{name}.input_scale": torch.tensor([number]), f"{name}.output_scale": torch.tensor(2 * number),
        f"{name}.output_zero_point": torch.tensor([3], dtype=torch.int8),
    }  # fmt: skip


def test_ranges_are_the_files(tmp_path: Path) -> None:
    config = compressed_config("int-quantized", input_activations=STATIC, output_activations=STATIC)
    _, grids = save(tmp_path, config, int_quantized, 8, more=activations)
    ctx, module, found, stated = raised(load_source(str(tmp_path)))
    quantized(ctx, module, Recipe())
    lowered(ctx, module)
    values = {
        op.value_name: op.attributes["represents"] for op in mqc_ops(module) if "represents" in op.attributes
    }
    for name in grids:
        short, number = name.removeprefix("model."), len(name.rpartition(".")[0]) / 300
        (op,) = (op for op in mqc_ops(module) if op.value_name == f"{short}.acc")
        read = op.operands[0].owner.attributes["represents"]  # type: ignore[union-attr]
        scale = float(np.float32(number))
        assert isinstance(op, int_ops.LinearOp) and op.get("x_zero") == 128
        assert read == UniformType.of(8, scale, 128)
        assert values[short] == UniformType.of(8, float(np.float32(2 * number)), 131)
    report = found.report(stated, module)
    assert len([line for line in report["given"] if "weight" not in line.partition(":")[0]]) == 2 * (4 + 7)
    assert report["left"] == [] and "%lm_head weight" in report["calibrated"]


def test_of_several_ranges_for_one_value_the_widest_holds(tmp_path: Path) -> None:
    config = compressed_config("int-quantized", input_activations=STATIC)
    save(
        tmp_path, config, int_quantized, 8,
        more=lambda name: {f"{name}.input_scale": torch.tensor(0.2 if "k_proj" in name else 0.1)},
    )  # fmt: skip
    ctx, module, found, stated = raised(load_source(str(tmp_path)))
    kind, sources = stated.values["layers.0.input_layernorm"]
    assert kind.real_scale == float(np.float32(0.2)) and sources == (
        "model.layers.0.self_attn.k_proj.input_scale",
    )
    quantized(ctx, module, Recipe())
    lowered(ctx, module)
    left = found.report(stated, module)["left"]
    assert left == [f"model.layers.{i}.self_attn.{part}_proj.input_scale" for i in (0, 1) for part in "qv"]


def test_the_range_of_an_input_is_not_that_of_others(tmp_path: Path) -> None:
    """OLMo 2 has no norm in front of its products: they read what sums read too."""
    config = compressed_config("int-quantized", input_activations=STATIC)
    more = {"input_scale": torch.tensor(0.1)}
    save(
        tmp_path, config, int_quantized, 8, architecture="olmo2",
        more=lambda name: {f"{name}.{key}": value.clone() for key, value in more.items()},
    )  # fmt: skip
    _, _, _, stated = raised(load_source(str(tmp_path)))
    assert set(stated.values) == {
        f"layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.attention", "mlp.mul")
    }


def test_what_an_observer_leaves_that_saw_nothing(tmp_path: Path) -> None:
    """llm-compressor saves such scales, and what memory held."""
    config = compressed_config("int-quantized", input_activations=STATIC)
    scales = {"down_proj": 1.1920929e-07, "o_proj": 6e-24}
    save(
        tmp_path, config, int_quantized, 8,
        more=lambda name: {f"{name}.input_scale": torch.tensor(scales.get(name.rpartition(".")[2], 0.1))},
    )  # fmt: skip
    _, _, found, stated = raised(load_source(str(tmp_path)))
    assert set(stated.values) == {
        f"layers.{i}.{name}_layernorm" for i in (0, 1) for name in ("input", "post_attention")
    }
    assert len(found.notes) == 4 and "mlp.down_proj.input_scale is 1.2e-07, so nothing" in found.notes[0]


def test_a_rule_of_the_users_is_above_the_files(tmp_path: Path) -> None:
    config = compressed_config("int-quantized", output_activations=STATIC)
    save(tmp_path, config, int_quantized, 8, more=lambda name: {f"{name}.output_scale": torch.tensor(0.1)})
    ctx, module, found, stated = raised(load_source(str(tmp_path)))
    quantized(ctx, module, Recipe(precision=("%layers.0.self_attn.o_proj=16",)))
    lowered(ctx, module)
    report = found.report(stated, module)
    assert report["left"] == ["model.layers.0.self_attn.o_proj.output_scale"]
    assert "%layers.0.self_attn.o_proj" in report["calibrated"]


def test_dynamic_and_float_activations_are_calibrated(tmp_path: Path) -> None:
    config = compressed_config(
        "int-quantized", input_activations={**STATIC, "dynamic": True, "strategy": "token"}
    )
    save(tmp_path, config, int_quantized, 8)
    found = load_source(str(tmp_path)).given
    assert found is not None and not found.inputs and "dynamic" in found.notes[0]


@pytest.mark.parametrize("block", [None, [32, 32]])
def test_floats_of_8_bits_become_floats(block: list[int] | None, tmp_path: Path) -> None:
    def write(name: str, grid: Grid, bits: int) -> dict[str, torch.Tensor]:
        weight = torch.from_numpy(grid.floats)
        rows, columns = weight.shape
        high, wide = block or (1, columns)
        tiles = weight.reshape(rows // high, high, columns // wide, wide)
        scale = tiles.abs().amax((1, 3)) / 448
        stored = (tiles / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        floats = (stored.float() * scale[:, None, :, None]).reshape(weight.shape)
        wanted[name] = floats
        return {f"{name}.weight": stored.reshape(weight.shape), f"{name}.{ending}": scale}

    wanted: dict[str, torch.Tensor] = {}
    ending = "weight_scale" if block is None else "weight_scale_inv"
    method = compressed_config("float-quantized") if block is None else {"quant_method": "fp8"}
    save(tmp_path, {**method, "weight_block_size": block}, write, 8)
    source = load_source(str(tmp_path))
    for name, floats in wanted.items():
        assert torch.equal(source.model.get_submodule(name).weight, floats)
    assert source.given is not None and not source.given.matrices
    if block is not None:
        assert "became floats" in source.given.notes[0]


@pytest.mark.parametrize("stated", [True, False])
def test_blocks_that_do_not_divide_a_matrix(stated: bool, tmp_path: Path) -> None:
    """llm-compressor's FP8_BLOCK: 64 rows in blocks of 48 are two blocks, and not of 32."""

    def write(name: str, grid: Grid, bits: int) -> dict[str, torch.Tensor]:
        stored = torch.from_numpy(grid.floats).to(torch.float8_e4m3fn)
        rows, columns = (np.arange(n) // 48 for n in stored.shape)
        scale = 1.0 + torch.arange(float((rows[-1] + 1) * (columns[-1] + 1))).reshape(rows[-1] + 1, -1)
        wanted[name] = stored.float() * scale[rows][:, columns]
        return {f"{name}.weight": stored, f"{name}.weight_scale": scale}

    wanted: dict[str, torch.Tensor] = {}
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [48, 48]}
    config = compressed_config(
        "float-quantized", weights=weights if stated else {**weights, "block_structure": None}
    )
    save(tmp_path, config, write, 8)
    if not stated:
        with pytest.raises(ModelError, match=r"is \[2, 3\]: no scales of 64 rows of 128 weights"):
            load_source(str(tmp_path))
        return
    model = load_source(str(tmp_path)).model
    for name, floats in wanted.items():
        assert torch.equal(model.get_submodule(name).weight, floats)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"quant_method": "bitsandbytes"}, r"quantized by 'bitsandbytes', which is not read; known: awq, "),
        ({"quant_method": "hqq"}, "quantized by 'hqq'"),
        (compressed_config("nvfp4-pack-quantized"), "format nvfp4-pack-quantized of compressed-tensors is"),
        (
            {**compressed_config("int-quantized"), "transform_config": {"config_groups": {"R1": {}}}},
            "transform_config",
        ),
        (
            {**compressed_config("int-quantized"), "sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity_config of compressed-tensors is not read",
        ),
        (
            compressed_config("int-quantized", input_activations={**STATIC, "num_bits": 4}),
            "input_activations with strategy tensor and 4 bits are not read",
        ),
        ({**GPTQ, "bits": 3}, "GPTQ with 3 bits"),
        ({**GPTQ, "dynamic": {"x": {}}}, "`dynamic`"),
        ({**AWQ, "version": "gemv"}, "AWQ with 4 bits in form gemv"),
        ({"quant_method": "fp8", "weight_block_size": [0, 2]}, r"a block is \[0, 2\]"),
        ({**GPTQ, "group_size": 0}, "group_size is 0"),
    ],
)  # fmt: skip
def test_methods_that_are_not_read(config: dict[str, Any], match: str, tmp_path: Path) -> None:
    save(tmp_path, config, int_quantized, 8)
    (tmp_path / "model.safetensors").unlink()  # nothing is loaded before
    for load in (load_source, size_of):
        with pytest.raises(ModelError, match=match):
            load(str(tmp_path))


def _changed(
    key: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {**tensors, key: change(tensors[key])}


def _without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name != key}


_Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("w8", _changed(f"{_Q}.weight_scale", lambda x: x * float("nan")), "no numbers"),
        ("w8", _changed(f"{_Q}.weight_scale", lambda x: -x), "negative"),
        ("w8", _changed(f"{_Q}.weight_scale", lambda x: x * 0 + 3e38), "above 1e"),
        ("w8", _changed(f"{_Q}.weight_scale", lambda x: x[:8]), r"is \[8, 1\]: no scales of 64 rows"),
        ("w8", _changed(f"{_Q}.weight", lambda x: x.float()), "is F32; I8 was expected"),
        ("w8", _without(f"{_Q}.weight"), "weight is missing; I8 was expected"),
        ("w8", _without(f"{_Q}.weight_scale"), "I8, and the files have no scale"),
        ("w4 groups", _changed(f"{_Q}.weight_packed", lambda x: x[:, :3].contiguous()), "3 words a row"),
        ("w3", _changed(f"{_Q}.weight_packed", lambda x: torch.cat([x, x[:, :2]], 1)), "64 .* of 3 bits"),
        ("w4 groups", _changed(f"{_Q}.weight_shape", lambda x: x * 2), "128, None. was expected"),
        ("w4 groups asymmetric", _changed(f"{_Q}.weight_zero_point", lambda x: x[:1].clone()), "zero_point"),
        ("gptq", _changed(f"{_Q}.g_idx", lambda x: x + 1), "names groups from 1 to 2; there are 2"),
        ("gptq", _changed(f"{_Q}.qzeros", lambda x: x[:, :1].contiguous()), r"qzeros is \[2, 1\]"),
        ("gptq", _changed(f"{_Q}.scales", lambda x: x[:1].clone()), "scales has 1 groups; 64 inputs in 32"),
        ("awq", _without(f"{_Q}.qzeros"), "qzeros is missing"),
        ("awq", _changed(f"{_Q}.scales", lambda x: x[:, :8].contiguous()), r"scales is \[2, 8\]"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_as_the_format_says(
    name: str, change: Callable[[dict[str, Any]], dict[str, Any]], match: str, tmp_path: Path
) -> None:
    save(tmp_path, *FORMATS[name])
    path = tmp_path / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    with pytest.raises(ModelError, match=match):
        load_source(str(tmp_path))


def test_a_model_that_was_loaded_with_modules_of_its_own() -> None:
    model = tiny_model("llama")
    model.is_quantized = True  # as transformers' quantizers say
    with pytest.raises(ModelError, match="give the folder or id that it was loaded from"):
        trace(model)


@pytest.mark.parametrize("target", ["cpu-int8", "onnx-int8", "npu-int8"])
@pytest.mark.parametrize("name", ["w8", "w4 groups"])
def test_targets_run_it_as_the_oracle_does(name: str, target: str, tmp_path: Path) -> None:
    """Norms keep their gains there, and weights reach -128."""
    _, grids = save(tmp_path / "model", *FORMATS[name])
    assert name != "w8" or min(grid.integers.min() for grid in grids.values()) == -128
    program = mqc.compile(str(tmp_path / "model"), target, Recipe(prefix=()), calibration=TEXT)
    program.save(tmp_path / "x.mqc")
    again, ids = mqc.load(tmp_path / "x.mqc"), tokens(9).tolist()
    if target == "onnx-int8":
        again.configure(style="integer")
    assert np.array_equal(again.integer_logits(ids), again.integer_logits(ids, engine="oracle"))
    assert len(again.manifest["scales"]["given"]) == len(grids)


def test_learning_would_change_integers(tmp_path: Path) -> None:
    save(tmp_path, *FORMATS["w8"])
    module = raised(load_source(str(tmp_path)))[1]
    with pytest.raises(RecipeError, match=r"would change integers and ranges that the model came with"):
        Recipe(tune="steps=1").pipeline("cpu").check(module)


@given(st.integers(1, 8), st.integers(1, 3), st.integers(1, 80), st.randoms(use_true_random=False))
def test_unpacked_is_what_was_packed(bits: int, rows: int, columns: int, random: Any) -> None:
    values = np.array([[random.randrange(1 << bits) for _ in range(columns)] for _ in range(rows)])
    assert np.array_equal(unpacked(packed(values, bits).numpy(), bits, columns), values)
