"""No verified module fails when it is evaluated, whatever its properties became."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, StringAttr
from xdsl.ir import Attribute

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import evaluate
from mqc.analysis.values import check_values
from mqc.analysis.verification import verify_module
from mqc.compiler.recipe import Recipe
from mqc.errors import InputError, IRError
from mqc.ir.module import mqc_ops
from mqc.ir.op import MqcOp, WeightAttr, attr
from mqc.ir.weight_store import WeightStore
from mqc.numerics.layouts import LAYOUTS
from tests.compiled import lower_for_cpu, lower_for_npu, lower_for_onnx, quantized
from tests.models import tiny_model

IDS = np.array([5, 1, 7, 30, 2])
EXTREMES = (0, 1, 255, 2**30, 2**31 - 1, 2**62, -1, -(2**31))
GROUPED = Recipe("grouped", weight_bits=4, group=32)


def lower_not(ctx: CompilerContext, module: ModuleOp) -> None:
    """The `int` module before kernels are chosen."""


@pytest.mark.parametrize(
    ("architecture", "lower"),
    [
        ("llama", lower_not), ("opt", lower_for_cpu),
        *(
            pytest.param(name, lower, marks=pytest.mark.slow)
            for name, lower in (
                ("grouped", lower_for_cpu), ("llama", lower_for_onnx), ("grouped", lower_for_npu),
            )
        ),
    ],
)  # fmt: skip
def test_what_verifies_can_be_evaluated(
    architecture: str, lower: Callable[[CompilerContext, ModuleOp], None]
) -> None:
    if architecture == "grouped":
        ctx, module = quantized(
            tiny_model("llama", num_hidden_layers=1, hidden_size=64, intermediate_size=128), GROUPED
        )
    else:
        ctx, module = quantized(tiny_model(architecture, num_hidden_layers=1))
    lower(ctx, module)
    refused, faults = 0, []
    for place, op in {type(op): (i, op) for i, op in enumerate(mqc_ops(module))}.values():
        for name in op.properties:
            for value in others(module, op, name):
                copy = module.clone()
                changed = list(mqc_ops(copy))[place]
                changed.properties.pop(name)
                if value is not None:
                    changed.properties[name] = value
                try:
                    refused += not acceptable(copy, ctx.weights)
                except Exception as error:
                    faults.append(f"{op.name} {name} = {value}: {type(error).__name__}: {error}")
    assert faults == [] and refused > 50


def others(module: ModuleOp, op: MqcOp, name: str) -> Iterator[Attribute | None]:
    """What a property may be instead: another of its kind, or nothing."""
    yield None
    match op.properties[name]:
        case IntegerAttr() as value:
            yield from (attr(n) for n in {*EXTREMES, value.value.data + 1, value.value.data - 1})
        case StringAttr():
            yield from map(StringAttr, (*LAYOUTS, "", "none"))
        case WeightAttr() as ref:
            refs = {r for o in mqc_ops(module) for r in o.properties.values() if isinstance(r, WeightAttr)}
            kinds = {(r.type, r.key.data.split(".")[-1]): r for r in refs if r != ref}
            yield from kinds.values()


def acceptable(module: ModuleOp, weights: WeightStore) -> bool:
    """Whether a module passes the checks of a file that is read; then it is evaluated."""
    try:
        verify_module(module)
        check_values(module, weights)
        evaluate(module, weights, IDS)
    except (IRError, InputError):
        return False
    return True
