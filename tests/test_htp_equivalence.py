"""Functions of level `htp` that compute something else than @main are refused, whatever was changed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from xdsl.dialects.builtin import IntegerAttr, ModuleOp
from xdsl.ir import SSAValue

from mqc.analysis.htp_equivalence import check_static_functions
from mqc.analysis.values import check_values
from mqc.analysis.verification import verify_module
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import Recipe
from mqc.errors import IRError
from mqc.ir.module import function_ops, static_functions
from mqc.ir.op import MqcOp, WeightAttr, attr
from mqc.ir.weight_store import WeightStore
from tests.compiled import lower_for_npu, quantized
from tests.models import ARCHITECTURES, tiny_model

Lowered = tuple[ModuleOp, WeightStore]


@pytest.fixture(scope="module")
def lowered() -> Lowered:
    ctx, module = quantized(tiny_model("llama", num_hidden_layers=1))
    lower_for_npu(ctx, module, tile=2048)
    return module, ctx.weights


def refused(module: ModuleOp, weights: WeightStore) -> bool:
    try:
        verify_module(module)
        check_static_functions(module, weights)
    except IRError:
        return True
    return False


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_the_passes_make_is_accepted(architecture: str) -> None:
    ctx, module = quantized(tiny_model(architecture))
    Pipeline.parse('choose-kernels{backend="npu"},lower-to-htp{tokens=16}').run(ctx, module)
    check_static_functions(module, ctx.weights)
    Pipeline.parse("tile-htp{tile_bytes=4096},allocate-vtcm{vtcm_bytes=1048576}").run(ctx, module)
    check_static_functions(module, ctx.weights)


def test_groups_of_4_bit_weights_are_accepted() -> None:
    ctx, module = quantized(
        tiny_model("llama", hidden_size=64, intermediate_size=128), Recipe("w4", weight_bits=4, group=32)
    )
    lower_for_npu(ctx, module, tile=2048)
    check_static_functions(module, ctx.weights)


def one_of_each_kind(module: ModuleOp) -> Iterator[tuple[str, int, MqcOp]]:
    """Function, place and op: each kind of op once, from the end of the functions."""
    found: dict[type[MqcOp], tuple[str, int, MqcOp]] = {}
    for name, function in static_functions(module).items():
        found |= {type(op): (name, i, op) for i, op in enumerate(function_ops(function))}
    yield from found.values()


def changed(module: ModuleOp, function: str, place: int) -> tuple[ModuleOp, MqcOp]:
    copy = module.clone()
    return copy, list(function_ops(static_functions(copy)[function]))[place]


def test_every_integer_of_every_op_counts(lowered: Lowered) -> None:
    module, weights = lowered
    assert not refused(module, weights)
    accepted = []
    for function, place, op in one_of_each_kind(module):
        for name, value in op.properties.items():
            for step in (1, -1):
                if not isinstance(value, IntegerAttr):
                    continue
                copy, other = changed(module, function, place)
                other.properties[name] = attr(value.value.data + step)
                if not refused(copy, weights):
                    accepted.append(f"@{function} {op.name} {name} {step:+}")
    assert accepted == []


def test_every_operand_counts(lowered: Lowered) -> None:
    """Another value of the same type in place of an operand."""
    module, weights = lowered
    accepted, tried = [], 0
    for function, place, op in one_of_each_kind(module):
        ops = list(function_ops(static_functions(module)[function]))[:place]
        for i, operand in enumerate(op.operands):
            like = [j for j, before in enumerate(ops) if same_type(before.results[0], operand)]
            for j in {*like[:1], *like[-1:]}:
                copy, other = changed(module, function, place)
                other.operands[i] = list(function_ops(static_functions(copy)[function]))[j].results[0]
                tried += 1
                if not refused(copy, weights):
                    accepted.append(f"@{function} {op.name} %{op.value_name}, operand {i}")
    assert accepted == [] and tried > 20


def same_type(value: SSAValue, operand: SSAValue) -> bool:
    return value is not operand and value.type == operand.type


def test_every_constant_counts(lowered: Lowered) -> None:
    """One other element, in the function's constant or in that of @main."""
    module, weights = lowered
    accepted = []
    for ref in {ref for op in all_ops(module) for ref in constants(op)}:
        array = weights[ref].copy()
        array.reshape(-1).view(np.uint8)[0] ^= 1
        other = weights.add("changed", array)
        for in_main in (True, False):
            copy = module.clone()
            ops = [op for op in all_ops(copy) if ref in constants(op) and ("int" in op.LEVELS) == in_main]
            for op in ops:
                op.properties.update({name: other for name, value in op.properties.items() if value == ref})
            if ops and not refused(copy, weights):
                accepted.append(f"{ref.key.data} {'of @main' if in_main else ''}")
    assert accepted == []


def all_ops(module: ModuleOp) -> list[MqcOp]:
    return [op for op in module.walk() if isinstance(op, MqcOp)]


def constants(op: MqcOp) -> list[WeightAttr]:
    return [value for value in op.properties.values() if isinstance(value, WeightAttr)]


def test_the_first_op_that_differs_is_named(lowered: Lowered) -> None:
    module, weights = lowered[0].clone(), lowered[1]
    norm = next(op for op in function_ops(static_functions(module)["decode"]) if op.name == "htp.rms_norm")
    norm.properties["epsilon"] = attr(norm.get("epsilon") + 1)
    with pytest.raises(
        IRError, match=rf"@decode: htp.rms_norm %{norm.value_name} computes what @main does not"
    ):
        check_values(module, weights)
