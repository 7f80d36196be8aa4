"""Expressions of elementwise functions: their text, what is refused, and what they compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mqc.analysis.lut import table_of_256
from mqc.backends.onnx.qdq import QdqForm
from mqc.dialects.expressions import FUNCTIONS, MOST_CALLS, Argument, Call, evaluate, parse
from mqc.dialects.quant import UniformType
from mqc.errors import PassError
from mqc.frontend.elementwise import elementwise_form

aten = torch.ops.aten
_OF_ONE, _OF_TWO, _OF_THREE = ({n for n, count in FUNCTIONS.items() if count == k} for k in (1, 2, 3))
_COMPARISONS = {"ge", "gt", "le", "lt"}


def expressions() -> st.SearchStrategy[Argument]:
    """Of numbers; a comparison only where `where` asks for it."""
    leaves = st.one_of(st.just("x"), st.floats(-4, 4, allow_nan=False))

    def larger(inner: st.SearchStrategy[Argument]) -> st.SearchStrategy[Argument]:
        two = st.tuples(inner, inner)
        compared = st.builds(Call, st.sampled_from(sorted(_COMPARISONS)), two)
        return st.one_of(
            st.builds(lambda n, a: Call(n, (a,)), st.sampled_from(sorted(_OF_ONE)), inner),
            st.builds(Call, st.sampled_from(sorted(_OF_TWO - _COMPARISONS)), two),
            st.builds(lambda c, a, b: Call("where", (c, a, b)), compared, inner, inner),
        )

    return st.recursive(leaves, larger, max_leaves=8)


@given(expressions())
@settings(max_examples=150)
def test_text_comes_back(expression: Argument) -> None:
    again = parse(str(expression))
    assert str(again) == str(expression)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert torch.equal(evaluate(again, x).nan_to_num(), evaluate(expression, x).nan_to_num())


@pytest.mark.parametrize(
    "text",
    [
        "", "y", "x x", "mul(x)", "mul(x, x, x)", "neg(x", "neg x)", "neg(x,)", "exec(x)", "x.real", "1e999",
        "__import__(x)", "'x'", "add(x, nan)", "neg(" * (MOST_CALLS + 1) + "x" + ")" * (MOST_CALLS + 1),
    ],
)  # fmt: skip
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError, match=r"expression|function|arguments|number|calls"):
        parse(text)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        (aten.clamp.default, (-1.0, 2.0)), (aten.clamp.default, (None, 0.5)),
        (aten.clamp_min.default, (0.1,)),
        (aten.clamp_max.default, (0.1,)), (aten.elu.default, (0.7,)), (aten.gelu.default, ()),
        (aten.hardsigmoid.default, ()), (aten.hardswish.default, ()), (aten.hardtanh.default, (0.0, 6.0)),
        (aten.leaky_relu.default, (0.2,)), (aten.min.other, (0.3,)), (aten.max.other, (0.3,)),
        (aten.mish.default, ()), (aten.rsub.Scalar, (1.5,)), (aten.silu.default, ()),
        (aten.softplus.default, ()), (aten.expm1.default, ()), (aten.abs.default, ()),
    ],
    ids=str,
)  # fmt: skip
def test_aten_ops(op: Callable[..., torch.Tensor], arguments: tuple[float | None, ...]) -> None:
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    form = elementwise_form(op)
    assert form is not None
    given_ = [torch.tensor(a, dtype=x.dtype) if "other" in str(op) else a for a in arguments]
    torch.testing.assert_close(evaluate(form("x", *arguments), x), op(x, *given_), rtol=1e-12, atol=1e-12)


def test_the_tanh_form_of_gelu() -> None:
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    form = elementwise_form(aten.gelu.default)
    assert form is not None
    got = evaluate(form("x", approximate="tanh"), x)
    torch.testing.assert_close(got, torch.nn.functional.gelu(x, approximate="tanh"), rtol=1e-12, atol=1e-12)


def test_options_that_have_no_form() -> None:
    for op, arguments in ((aten.elu.default, (1.0, 2.0)), (aten.softplus.default, (2.0,))):
        form = elementwise_form(op)
        assert form is not None
        with pytest.raises(ValueError, match="has no llm form"):
            form("x", *arguments)
    assert elementwise_form(aten.min.dim) is None


def test_a_function_of_too_many_steps_is_refused_at_once() -> None:
    """Its parts are shared: squared 64 times, it would be evaluated 2^64 times."""
    square: Argument = "x"
    with pytest.raises(ValueError, match="more than 100 steps of one"):
        for _ in range(64):
            square = Call("mul", (square, square))


def test_a_function_without_a_value_is_refused() -> None:
    eight = UniformType.of(8, 0.1, 128)
    with pytest.raises(PassError, match=r"has no value at -12\.8"):
        table_of_256(lambda x: torch.log(x), eight, eight)


class _Graph:
    """Collects ONNX nodes, as the emitter's graph does."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: float, hint: str = "", dtype: object = None) -> str:
        tensor = onnx.numpy_helper.from_array(np.asarray(value, np.float32))
        return self.op("Constant", value=tensor)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_has_an_onnx_form(name: str) -> None:
    x = np.linspace(0.25, 3, 12, dtype=np.float32)
    expression = Call(name, ("x", 1.5) if name in _OF_TWO else ("x",)) if name not in _OF_THREE else None
    if name in _COMPARISONS or expression is None:
        expression = Call("where", (expression or Call("gt", ("x", 1.0)), "x", -1.0))
    form, graph = QdqForm.__new__(QdqForm), _Graph()
    form.graph = graph  # type: ignore[assignment]
    result = form.expression(expression, "x")
    kind = onnx.TensorProto.FLOAT
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes, "g", [onnx.helper.make_tensor_value_info("x", kind, [12])],
            [onnx.helper.make_tensor_value_info(result, kind, [12])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", QdqForm.OPSET)], ir_version=10,
    )  # fmt: skip
    (got,) = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(got, evaluate(expression, torch.from_numpy(x)).numpy(), rtol=2e-5, atol=2e-6)
