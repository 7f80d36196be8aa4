"""Whole tiny models for the NPU: every architecture, W8A8 and W4A8, as a schedule and as HVX code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import evaluate
from mqc.analysis.ir_text import parse_module, print_module
from mqc.analysis.verification import verify_fully
from mqc.backends.npu import NpuBackend
from mqc.backends.npu.device_files import integer_program
from mqc.backends.npu.emit import emit
from mqc.backends.npu.engine import NpuEngine, values
from mqc.backends.npu.op_list import read
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import RECIPES, Recipe
from mqc.errors import ArtifactError, InputError, TargetError
from mqc.ir.module import mqc_ops, ops_by_name, static_functions, weight_refs
from mqc.runtime.oracle import OracleEngine
from tests.backends.op_cases import CASES, Lab
from tests.compiled import lower_for_npu, quantized
from tests.models import ARCHITECTURES, ON_NPU, VOCABULARY, tiny_model

IDS = np.random.default_rng(0).integers(0, VOCABULARY, 30).astype(np.int32)
Compiled = tuple[CompilerContext, ModuleOp]
#: The 48 inputs of down_proj are no groups of 32.
GROUPS = Recipe("groups", weight_bits=4, group=32, keep8=("*.down_proj",))


def compiled(architecture: str, recipe: Recipe | None = None) -> Compiled:
    ctx, module = quantized(tiny_model(architecture), recipe)
    lower_for_npu(ctx, module)
    return ctx, module


@pytest.fixture(scope="module")
def tiny() -> Compiled:
    return compiled("llama")


def check(found: Compiled, simulator: str) -> None:
    """In pieces, token by token, against the oracle in one call."""
    ctx, module = found
    want = OracleEngine(module, ctx.weights).forward(IDS)
    engine = NpuEngine(module, ctx.weights, simulator)
    assert (engine.forward(IDS) == want).all()
    engine.reset()
    parts = [engine.forward(IDS[:9]), *(engine.forward(IDS[i : i + 1]) for i in range(9, 30))]
    assert (np.concatenate(parts) == want).all()
    engine.close()


@pytest.mark.parametrize("architecture", ON_NPU)
def test_architectures(architecture: str) -> None:
    found = compiled(architecture)
    check(found, "numpy")
    verify_fully(found[1], found[0].weights)


@pytest.mark.hexagon
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_as_hvx_code(architecture: str) -> None:
    check(compiled(architecture), "qemu")


@pytest.mark.hexagon
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_four_bit_weights(architecture: str) -> None:
    found = compiled(architecture, RECIPES["w4a8"])
    check(found, "numpy")
    check(found, "qemu")


@pytest.mark.hexagon
def test_groups_of_four_bit_weights(tmp_path: Path) -> None:
    found = compiled("llama", GROUPS)
    check(found, "numpy")
    check(found, "qemu")
    # QNN has no form for them: all else is written, and the README says so
    offsets = found[0].weights.save(tmp_path / "w", weight_refs(found[1]))
    NpuBackend().accompany(found[1], found[0].weights, offsets, tmp_path, {})
    assert not (tmp_path / "onnx").exists() and (tmp_path / "hvx" / "linear.o").exists()
    assert "which HTP does not take" in (tmp_path / "README.md").read_text()


def test_lengths_that_do_not_fit_are_halved() -> None:
    ctx, module = quantized(tiny_model("llama"))
    Pipeline.parse(
        'choose-kernels{backend="npu"},lower-to-htp{tokens=32 vtcm_bytes=3160000},tile-htp,allocate-vtcm'
    ).run(ctx, module)
    assert {name for name in static_functions(module)} & {"prefill_32", "prefill_16", "prefill_8"} == {
        "prefill_16"
    }


def test_values_of_one_name_are_told_apart() -> None:
    lab = Lab(0)
    module = CASES["add-u16-u8"](lab)
    lower_for_npu(lab.ctx, module)
    seen: list[np.ndarray] = []
    ids = np.arange(20, dtype=np.int32)
    evaluate(module, lab.ctx.weights, ids, lambda op, value: seen.append(value))
    got = values(module, lab.ctx.weights, ids)
    names = list(ops_by_name(module))
    assert len(got) >= 3
    for name, value in got.items():
        assert (value == seen[names.index(name)]).all(), name


@pytest.mark.hexagon
def test_a_simulator_that_ended_is_started_again(tiny: Compiled) -> None:
    engine = NpuEngine(tiny[1], tiny[0].weights, "qemu")
    want = engine.forward(IDS)
    engine._runner._simulator._process.kill()  # type: ignore[attr-defined]
    with pytest.raises(TargetError, match="ended with status"):
        engine.forward(IDS[:1])
    engine.reset()
    assert (engine.forward(IDS) == want).all()
    engine.close()


def test_text_round_trip(tiny: Compiled) -> None:
    text = print_module(tiny[1])
    again = parse_module(text, "x", CompilerContext())
    assert print_module(again) == text
    one, two = (NpuEngine(module, tiny[0].weights).forward(IDS) for module in (again, tiny[1]))
    assert (one == two).all()


def test_functions_share_weights_with_main(tiny: Compiled) -> None:
    matrices = [op.get("layout") for op in mqc_ops(tiny[1]) if op.name == "int.linear"]
    assert matrices and set(matrices) == {"records"}
    main = {ref for op in mqc_ops(tiny[1]) for ref in op.weight_refs()}
    shared = {ref.key.data for ref in set(weight_refs(tiny[1])) - main}
    assert all("scale" in key or key == "exponentials" for key in shared), shared


@pytest.mark.parametrize("simulator", ["numpy", pytest.param("qemu", marks=pytest.mark.hexagon)])
def test_values_equal_the_oracles(tiny: Compiled, simulator: str) -> None:
    seen: dict[str, np.ndarray] = {}
    evaluate(tiny[1], tiny[0].weights, IDS, lambda op, value: seen.update({op.value_name: value}))
    got = values(tiny[1], tiny[0].weights, IDS, simulator)
    assert len(got) > 20
    for name, value in got.items():
        assert (value == seen[name]).all(), name


def test_op_list_file_round_trip(tiny: Compiled, tmp_path: Path) -> None:
    offsets = tiny[0].weights.save(tmp_path / "w", weight_refs(tiny[1]))
    ops = emit(tiny[1], offsets.__getitem__)
    ops.write(tmp_path / "x.oplist")
    again = read(tmp_path / "x.oplist")
    assert again.to_bytes() == ops.to_bytes()
    assert [item.tokens for item in again.lists] == [item.tokens for item in ops.lists]
    data = (tmp_path / "x.oplist").read_bytes()
    for bad in (data[:-4], b"nope" + data[4:], data[:40]):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ArtifactError):
            read(tmp_path / "bad")


def test_main_alone_is_the_int_program(tiny: Compiled) -> None:
    program, store = integer_program(tiny[1], tiny[0].weights)
    assert not static_functions(program)
    want = OracleEngine(tiny[1], tiny[0].weights).forward(IDS)
    assert (OracleEngine(program, store).forward(IDS) == want).all()


def test_engine_refuses(tiny: Compiled) -> None:
    with pytest.raises(InputError, match="simulator must be numpy or qemu"):
        NpuEngine(tiny[1], tiny[0].weights, "fpga")
    ctx, module = quantized(tiny_model("llama"))
    with pytest.raises(TargetError, match="run lower-to-htp"):
        NpuEngine(module, ctx.weights)
    engine = NpuEngine(tiny[1], tiny[0].weights)
    with pytest.raises(InputError):
        engine.forward(np.zeros(engine.context + 1, np.int32))


def test_vtcm_that_is_too_small_is_explained() -> None:
    ctx, module = quantized(tiny_model("llama"))
    message = r"@prefill_16 does not fit VTCM of 16384 bytes: in use at once are %"
    with pytest.raises(TargetError, match=message):
        lower_for_npu(ctx, module, vtcm=16384)
