"""What is learned is what runs: grids, transformations and their folding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import Evaluation
from mqc.analysis.ir_text import print_module
from mqc.compiler.pass_manager import Pipeline
from mqc.dialects.llm import LinearOp
from mqc.dialects.quant import UniformType
from mqc.ir.module import mqc_ops
from mqc.ir.op import channels, tensor
from mqc.learning.fake_quantize import FakeQuantize
from mqc.learning.parameters import WeightGrid
from mqc.learning.segments import segments
from mqc.learning.student import FloatModel, Student
from mqc.passes.quantize_weights import QuantizeWeights
from tests.compiled import imported
from tests.models import ARCHITECTURES, NOT_ON_NPU, RECURRENT, VOCABULARY, tiny_model

CPU = torch.device("cpu")
CLOSED_FORM = (
    "fold-constants,fold-norm,absorb-prefix{tokens=9},rotate-channels,balance-scales,observe-ranges,"
    "assign-precision"
)


def at_quant(architecture: str) -> tuple[CompilerContext, ModuleOp]:
    ctx, module = imported(tiny_model(architecture))
    Pipeline.parse(CLOSED_FORM).run(ctx, module)
    return ctx, module


def tokens(count: int = 17) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(3))


def logits(model: FloatModel, module: ModuleOp) -> torch.Tensor:
    with torch.no_grad():
        return model.run_ops(mqc_ops(module), model.arguments(tokens().numpy()))


def evaluated(ctx: CompilerContext, module: ModuleOp) -> torch.Tensor:
    evaluation = Evaluation(module, ctx.weights)
    ids, first = tokens(), evaluation.position
    with torch.no_grad():
        return evaluation.run(ids, torch.arange(first, first + len(ids)))


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def perturb(student: Student, seed: int, amount: float) -> None:
    """As if learned: change parameters by about `amount`, those that are counted in integers by more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for kind, named in student.parameters.kinds().items():
            for parameter in named.values():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += noise * amount * {"zeros": 4, "offsets": 15}.get(kind, 1)
                parameter.requires_grad_()


@given(
    log_step=st.floats(-3, 1),
    zero=st.floats(0, 255),
    seed=st.integers(0, 2**32 - 1),
    per_channel=st.booleans(),
)
@settings(max_examples=50)
def test_gradients_are_those_of_rounding_passed_straight_through(
    log_step: float, zero: float, seed: int, per_channel: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(7, 5, generator=generator) * 60).requires_grad_()
    step = torch.full((5 if per_channel else 1,), log_step, requires_grad=True)
    origin = torch.tensor([zero], requires_grad=True)
    upstream = torch.randn(7, 5, generator=generator)

    def straight(v: torch.Tensor) -> torch.Tensor:
        return v + (torch.round(v) - v).detach()

    d, z = step.exp(), straight(origin)
    # Rounding before the clamp, so that both sides call the same elements clipped.
    plain = (torch.clamp(straight(x / d) + z, 0, 255) - z) * d
    clipped = (torch.round(x / d) + torch.round(origin)).detach()
    at_bound = bool(((clipped == 0) | (clipped == 255)).any())
    want = torch.autograd.grad((plain * upstream).sum(), (x, step, origin))
    got_value = FakeQuantize.apply(x, step, origin, 0, 255)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(got_value, plain, rtol=1e-5, atol=1e-4)
    if at_bound:
        return
    got = torch.autograd.grad((got_value * upstream).sum(), (x, step, origin))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_cover_the_model(architecture: str) -> None:
    _, module = at_quant(architecture)
    parts = segments(module)
    flat = [*parts.stem, *(op for layer in parts.layers for op in layer), *parts.head]
    assert flat == list(mqc_ops(module))
    assert [sum(op.name == "llm.attention" for op in layer) for layer in parts.layers] == [1, 1]
    for layer, next_layer in zip(parts.layers, (*parts.layers[1:], parts.head), strict=True):
        outside = {o for op in next_layer for o in op.operands if o.owner not in next_layer}
        assert {o for o in outside if o.owner in flat} == {layer[-1].results[0]}


@pytest.mark.parametrize(
    "architecture",
    [*ARCHITECTURES, *(pytest.param(name, marks=pytest.mark.slow) for name in (*NOT_ON_NPU, *RECURRENT))],
)
def test_student_begins_at_the_quant_level(architecture: str) -> None:
    ctx, module = at_quant(architecture)
    student = Student(ctx, module, CPU, None)
    # In f32, a value between two integers may go either way, which is one step of one value. Where short keys
    # are normalized that is more.
    allowed = 3e-2 if architecture in RECURRENT else 1e-2
    assert relative_error(logits(student, module), evaluated(ctx, module)) < allowed


def test_convolutions_and_linear_attention_are_one_layer() -> None:
    _, module = at_quant("qwen3_5_text")
    parts = segments(module)
    kept = [[op.name for op in layer if op.states()] for layer in parts.layers]
    assert kept == [["llm.causal_conv"] * 3 + ["llm.linear_attention"], ["llm.attention"]]
    assert list(parts.ops) == list(mqc_ops(module))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_keeps_what_was_learned_and_the_float_function(architecture: str) -> None:
    ctx, module = at_quant(architecture)
    before = logits(FloatModel(ctx, module, CPU), module)
    student = Student(ctx, module, CPU, None)
    perturb(student, 5, 0.1)
    with torch.no_grad():
        for bias in student.parameters.biases.values():
            bias.zero_()
    learned = logits(student, module)
    student.fold()
    assert relative_error(logits(FloatModel(ctx, module, CPU), module), before) < 1e-5
    # Values that lie between two integers may go either way, which is one step of one value.
    assert relative_error(evaluated(ctx, module), learned) < 1e-2


@pytest.mark.parametrize("grid", [WeightGrid(8), WeightGrid(4), WeightGrid(4, 32, ("*.q_proj",))], ids=str)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=4)
def test_weights_are_quantized_as_they_were_learned(grid: WeightGrid, seed: int) -> None:
    """The matrices that `quantize-weights` makes are those that the student multiplied by."""
    ctx, module = imported(tiny_model("llama", intermediate_size=64))
    Pipeline.parse(CLOSED_FORM).run(ctx, module)
    student = Student(ctx, module, CPU, grid)
    perturb(student, seed, 0.1)
    linears = [op for op in mqc_ops(module) if isinstance(op, LinearOp)]
    with torch.no_grad():
        learned = [student.matrix(op) * student.transformation(op) for op in linears]
    student.fold()
    QuantizeWeights(bits=grid.bits, group=grid.group, keep8=grid.keep8).run(ctx, module)
    for op, want in zip(linears, learned, strict=True):
        assert op.weight_scale is not None
        got = ctx.weights[op.weight] * ctx.weights[op.weight_scale][:, None]
        if op.group_scale is not None:
            # Groups have integer factors in 1 … 16, which learned steps are rounded to.
            got *= ctx.weights[op.group_scale].repeat(grid.group, 1)
            assert np.linalg.norm(got - want.numpy()) < 0.15 * np.linalg.norm(got)
        else:
            # What lies between two integers may go either way in f32.
            assert np.mean(abs(got - want.numpy()) > 1e-4 * abs(got).max()) < 0.005


def test_integer_weights_learn_their_scales_against_the_float_reference() -> None:
    ctx, module = at_quant("llama")
    want = logits(FloatModel(ctx, module, CPU), module)
    Pipeline.parse("quantize-weights{bits=4 keep_reference=true}").run(ctx, module)
    torch.testing.assert_close(logits(FloatModel(ctx, module, CPU), module), want)
    student = Student(ctx, module, CPU, None)
    assert not student.parameters.scales
    assert relative_error(logits(student, module), evaluated(ctx, module)) < 1e-2
    perturb(student, 1, 0.02)
    learned = logits(student, module)
    student.fold()
    assert relative_error(evaluated(ctx, module), learned) < 1e-2


@pytest.mark.parametrize("options", ["bits=8", "bits=4", "bits=4 group=32"])
def test_integers_of_weights_are_learned(options: str) -> None:
    ctx, module = imported(tiny_model("llama", intermediate_size=64))
    Pipeline.parse(f"{CLOSED_FORM},quantize-weights{{{options} keep_reference=true}}").run(ctx, module)
    given = [ctx.weights[op.weight] for op in mqc_ops(module) if isinstance(op, LinearOp)]
    student = Student(ctx, module, CPU, rounding=True)
    stored = student.parameters.offsets
    assert relative_error(logits(student, module), logits(Student(ctx, module, CPU), module)) < 1e-6
    perturb(student, 1, 0.02)
    with torch.no_grad():
        next(iter(stored.values())).fill_(1000.0)
    learned = logits(student, module)
    student.fold()
    *layers, head = (op for op in mqc_ops(module) if isinstance(op, LinearOp))
    assert set(stored) == {student.names[op] for op in layers}
    assert (ctx.weights[layers[0].weight] == (127 if options == "bits=8" else 7)).all()
    for op, before in zip(layers, given[:-1], strict=True):
        after = ctx.weights[op.weight]
        assert after.dtype == np.int8 and not np.array_equal(after, before)
    assert np.array_equal(ctx.weights[head.weight], given[-1])
    assert relative_error(evaluated(ctx, module), learned) < 1e-2


def test_a_learned_bias_fits_its_row() -> None:
    """A row of zeros has a tiny scale, which the bias must not overflow."""
    ctx, module = at_quant("llama")
    op = next(op for op in mqc_ops(module) if isinstance(op, LinearOp))
    weight = ctx.weights[op.weight].copy()
    weight[3] = 0.0
    op.replace_weight(ctx.weights, "weight", weight)
    Pipeline.parse("quantize-weights{keep_reference=true}").run(ctx, module)
    student = Student(ctx, module, CPU)
    with torch.no_grad():
        student.parameters.biases[student.names[op]].fill_(2.0).requires_grad_()
    student.fold()
    Pipeline.parse("lower-to-int").run(ctx, module)
    lowered = next(op for op in mqc_ops(module) if op.name == "int.linear")
    assert 2**28 < ctx.weights[lowered.properties["bias"]][3] <= 2**29  # type: ignore[index]


def test_what_was_not_learned_stays() -> None:
    ctx, module = at_quant("llama")
    before = print_module(module)
    Student(ctx, module, CPU, WeightGrid(4)).fold()
    assert print_module(module) == before


def test_integers_begin_where_the_float_weight_was() -> None:
    ctx, module = at_quant("llama")
    Pipeline.parse("quantize-weights{rounding=feedback keep_reference=true}").run(ctx, module)
    student = Student(ctx, module, CPU, rounding=True)
    moved = 0
    for op, name in student.names.items():
        if name in student.parameters.offsets:
            assert isinstance(op, LinearOp) and op.reference is not None and op.weight_scale is not None
            offsets = student.parameters.offsets[name].detach().float().numpy()
            exact = ctx.weights[op.reference] / ctx.weights[op.weight_scale][:, None]
            integers = ctx.weights[op.weight]
            np.testing.assert_array_equal(np.rint(integers + offsets), integers)
            same = np.abs(exact - integers) < 0.45
            np.testing.assert_allclose((integers + offsets)[same], exact[same], atol=2**-9)
            moved += int((~same).sum())
    assert moved


def test_a_learned_range_replaces_the_type() -> None:
    ctx, module = at_quant("llama")
    op = next(op for op in mqc_ops(module) if op.name == "llm.attention")
    student = Student(ctx, module, CPU, None)
    name = student.names[op]
    with torch.no_grad():
        student.parameters.steps[name].fill_(float(np.log(0.25))).requires_grad_()
        student.parameters.zeros[name].fill_(300.4).requires_grad_()
    student.fold()
    learned = UniformType.of(8, float(torch.tensor(np.log(0.25), dtype=torch.float32).exp()), 255)
    assert op.results[0].type == tensor(learned, channels(op.results[0]))
