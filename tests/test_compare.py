"""Comparing programs value by value: figures, blame, and the plan that mends."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp, f32
from xdsl.rewriter import Rewriter

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import evaluate
from mqc.backend import Backend
from mqc.compiler.instruments import Instrument
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import Recipe, load_recipe
from mqc.debugging.compare import attribute, compare
from mqc.debugging.precision_plan import propose
from mqc.debugging.value_trace import Side, Trace
from mqc.dialects.int_ops import RequantOp
from mqc.errors import InputError, TargetError
from mqc.ir.module import level, mqc_ops, returned_value
from mqc.ir.op import MqcOp, channels, tensor
from mqc.ir.weight_store import WeightStore
from mqc.registry import backend
from tests.compiled import imported, lower_for_cpu
from tests.models import tiny_model

IDS = np.arange(2, 40)


def note(kept: dict[str, np.ndarray], op: MqcOp, value: np.ndarray) -> None:
    kept[op.value_name] = value


class Levels(Instrument):
    """Keeps the module after each level's last pass, and all weights."""

    def __init__(self) -> None:
        self.weights = WeightStore()
        self.modules: dict[str, ModuleOp] = {}

    def after(self, number: int, p: object, ctx: CompilerContext, module: ModuleOp, modified: bool) -> None:
        self.modules[level(module)] = module.clone()
        self.weights.update(ctx.weights)

    def side(self, name: str) -> Side:
        return Side(name, self.modules[name], self.weights)


def compiled(recipe: Recipe, arch: str = "llama") -> Levels:
    ctx, module = imported(tiny_model(arch))
    levels = Levels()
    recipe.pipeline("cpu").run(ctx, module, [levels])
    return levels


@pytest.fixture(scope="module")
def levels() -> Levels:
    return compiled(Recipe(prefix=(9,)))


def test_a_program_equals_itself(levels: Levels) -> None:
    result = compare(levels.side("int"), levels.side("int"), [IDS])
    assert {v.local_db for v in result.values} == {v.sqnr_db for v in result.values} == {np.inf}
    assert result.kl < 1e-7 and result.first_bad(100) is None and not result.unaligned


def test_names_given_twice(levels: Levels) -> None:
    """A pass may name two values alike; both are compared."""
    module = levels.modules["int"].clone()
    first, second = [op for op in mqc_ops(module) if op.name == "int.lut"]
    second.results[0].name_hint = first.value_name
    side = Side("twice", module, levels.weights)
    result = compare(side, side, [IDS])
    assert [v.name for v in result.values if v.op == "int.lut"] == [first.value_name, f"{first.value_name}#1"]
    assert result.kl < 1e-7
    on_cpu = compare(side, Side("cpu", module, levels.weights, backend("cpu")), [IDS])
    assert {v.sqnr_db for v in on_cpu.values} == {np.inf}


def test_figures_against_their_definitions(levels: Levels) -> None:
    """Cumulative figures of one value, computed from scratch."""
    name = "layers.1.mlp.up_proj"
    float_values, integers = {}, {}
    evaluate(
        levels.modules["llm"], levels.weights, IDS, lambda op, x: float_values.update({op.value_name: x})
    )
    evaluate(levels.modules["int"], levels.weights, IDS, lambda op, x: integers.update({op.value_name: x}))
    op = next(op for op in mqc_ops(levels.modules["int"]) if op.value_name == name)
    kind = op.represents  # type: ignore[attr-defined]
    a = float_values[name].astype(np.float64)
    b = (integers[name].astype(np.float64) - kind.zero) * kind.real_scale
    value = next(v for v in compare(levels.side("llm"), levels.side("int"), [IDS]).values if v.name == name)
    assert np.isclose(value.sqnr_db, 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))
    assert np.isclose(value.cosine, (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert np.isclose(value.max_error, abs(a - b).max())
    assert value.used == (int(integers[name].max()) - int(integers[name].min())) / (2**kind.bits - 1)
    low, high = ((end - kind.zero) * kind.real_scale for end in (kind.low, kind.high))
    assert value.clipped == np.mean((a < low) | (a > high))
    assert value.low == a.min() and value.high == a.max()
    assert value.loc.startswith("modeling_llama.py:") and value.local_db > value.sqnr_db


def fault(side: Side, name: str) -> Side:
    """The side with one multiplier off by a factor of two."""
    module, weights = side.module.clone(), WeightStore()
    weights.update(side.weights)
    op = next(op for op in mqc_ops(module) if op.value_name == name)
    assert isinstance(op, RequantOp)
    op.properties["shift"] = weights.add(f"{name}.shift", weights[op.shift] - 1)
    return Side("faulty", module, weights)


@pytest.mark.parametrize("reference", ["llm", "quant", "int"])
@pytest.mark.parametrize(
    "name", ["layers.0.self_attn.rope_k", "layers.1.mlp.up_proj", "layers.1.input_layernorm"]
)
def test_a_planted_fault_is_named(levels: Levels, reference: str, name: str) -> None:
    result = compare(levels.side(reference), fault(levels.side("int"), name), [IDS])
    bad = result.first_bad(10)
    assert bad is not None and bad.name == name == result.worst().name  # type: ignore[union-attr]
    attribute(result, levels.side(reference), fault(levels.side("int"), name), IDS)
    assert max(result.values, key=lambda v: v.kl or 0).name == name


def test_attribution_is_quantizing_one_op_at_a_time(levels: Levels) -> None:
    """The same by hand: a module in which one value alone has a quantized type."""
    name = "layers.0.mlp.up_proj"
    quant = Side("quant", levels.modules["quant"].clone(), levels.weights)
    for op in mqc_ops(quant.module):
        if op.value_name != name:
            Rewriter.replace_value_with_new_type(op.results[0], tensor(f32, channels(op.results[0])))
        for key in ("weight_scale", "weight_bits", "table_scale"):
            op.properties.pop(key, None)
        twin = next(o for o in mqc_ops(levels.modules["llm"]) if o.value_name == op.value_name)
        for key in ("weight", "table"):
            if key in op.properties:
                op.properties[key] = twin.properties[key]
    llm = levels.side("llm")
    result = compare(llm, quant, [IDS])
    attribute(result, llm, quant, IDS)
    value = next(v for v in result.values if v.name == name)
    assert value.kl is not None and np.isclose(value.kl, result.kl, rtol=1e-2) and value.kl > 1e-10
    assert all(v.kl == 0 or (v.kl or 0) < value.kl / 100 for v in result.values if v.name != name)


def test_values_of_the_cpu_equal_the_oracle(levels: Levels) -> None:
    side = levels.side("int")
    result = compare(side, Side("cpu", side.module, side.weights, backend("cpu")), [IDS])
    assert {v.sqnr_db for v in result.values} == {v.local_db for v in result.values} == {np.inf}
    stored = [op.value_name for op in mqc_ops(side.module) if "fused_into" not in op.attributes]
    assert [v.name for v in result.values] == stored


def test_a_backend_that_computes_an_op_wrongly_is_found(levels: Levels) -> None:
    """Later values inherit the error; only the op itself is to blame."""
    side, name = levels.side("int"), "layers.0.mlp.act_fn"

    class Broken(type(backend("cpu"))):  # type: ignore[misc]
        def values(self, module, weights, ids, **options):  # type: ignore[no-untyped-def]
            stored = super().values(module, weights, ids)
            wrong = fault_after(module, weights, ids, name)
            return {k: wrong[k] for k in stored}

    result = compare(side, Side("broken", side.module, side.weights, Broken()), [IDS])
    assert [v.name for v in result.values if v.local_db < np.inf] == [name]
    below = result.first_below(60)
    assert below is not None and below.name == name
    assert sum(v.sqnr_db < np.inf for v in result.values) > 5


def fault_after(module: ModuleOp, weights: WeightStore, ids: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """The oracle's values, if one value came out 9 larger."""
    running = Trace(Side("", module, weights))
    running.run(ids)
    values = {op.value_name: running.native[op.results[0]] for op in running.ops.values()}
    values[name] = np.clip(values[name].astype(np.int64) + 9, 0, 65535).astype(values[name].dtype)
    known = {running.ops[n].results[0]: values[n] for n in values}
    later = False
    for op_name, op in running.ops.items():
        if later:
            inputs = {operand: known.get(operand, running.native.get(operand)) for operand in op.operands}
            running._evaluation.state = {}
            known[op.results[0]] = values[op_name] = running._evaluate(op, inputs)
        later = later or op_name == name
    return values


def test_a_backend_without_values_says_so(levels: Levels) -> None:
    with pytest.raises(TargetError, match="does not give its values"):
        Backend.values(backend("cpu"), levels.modules["int"], levels.weights, IDS)


def test_the_plan_mends(tmp_path) -> None:  # type: ignore[no-untyped-def]
    base = Recipe(prefix=(9,), weight_bits=4)
    before = compiled(base)
    result = compare(before.side("llm"), before.side("int"), [IDS])
    attribute(result, before.side("llm"), before.side("int"), IDS)
    plan = propose(result, before.modules["int"])
    assert plan.keep8 and plan.mended > 0.5
    (tmp_path / "mended.toml").write_text(plan.recipe(base).to_toml())
    recipe = load_recipe(tmp_path / "mended.toml")
    assert recipe.keep8 == plan.keep8 and recipe.precision == plan.precision and recipe.prefix == (9,)
    after = compiled(recipe)
    assert compare(after.side("llm"), after.side("int"), [IDS]).kl < 0.6 * result.kl


def test_a_plan_of_activations_lowers(levels: Levels) -> None:
    """Every rule that a plan gives can be carried out: attention and rope keep 8 bits."""
    result = compare(levels.side("llm"), levels.side("int"), [IDS])
    plan = propose(result, levels.modules["int"], at_most=1000)
    assert plan.precision and not plan.keep8
    ctx, module = imported(tiny_model("llama"))
    plan.recipe(Recipe(prefix=(9,))).pipeline("cpu").run(ctx, module)
    assert returned_value(module) is not None


def test_pipelines_by_text_give_the_same_module(levels: Levels) -> None:
    ctx, module = imported(tiny_model("llama"))
    Pipeline.parse(
        str(Recipe(prefix=(9,)).pipeline("cpu").without("choose-kernels").without("plan-memory"))
    ).run(ctx, module)
    lower_for_cpu(ctx, module)
    assert str(module) == str(levels.modules["int"])


def test_a_backend_computes_integer_programs_only() -> None:
    ctx, module = imported(tiny_model("llama"))
    with pytest.raises(InputError, match="x is at level llm: a backend"):
        Side("x", module, ctx.weights, backend("cpu"))
