"""aten ops that are elementwise functions of one value, as expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from mqc.dialects.expressions import Argument, Call
from mqc.frontend.lanes import Elementwise, Lanes, expression_of, lanes_of, same_lanes
from mqc.frontend.nodes import op_name
from mqc.frontend.source import module_path

#: Where a function is compared with a softcap, in multiples of the cap.
_GRID = torch.linspace(-6, 6, 1201, dtype=torch.float64)


def _clamp(x: Argument, low: Argument | None = None, high: Argument | None = None) -> Argument:
    x = x if low is None else Call("maximum", (x, low))
    return x if high is None else Call("minimum", (x, high))


def _hard_sigmoid(x: Argument) -> Argument:
    return _clamp(Call("add", (Call("div", (x, 6.0)), 0.5)), 0.0, 1.0)


def _elu(x: Argument, alpha: Argument = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Argument:
    if (scale, input_scale) != (1.0, 1.0):
        raise ValueError("with scales has no llm form")
    return Call("where", (Call("gt", (x, 0.0)), x, Call("mul", (alpha, Call("expm1", (x,))))))


def _softplus(x: Argument, beta: float = 1.0, threshold: float = 20.0) -> Argument:
    if (beta, threshold) != (1.0, 20.0):
        raise ValueError("with another beta or threshold has no llm form")
    return Call("softplus", (x,))


def _leaky_relu(x: Argument, slope: Argument = 0.01) -> Argument:
    return Call("where", (Call("gt", (x, 0.0)), x, Call("mul", (slope, x))))


def _gelu(x: Argument, *, approximate: str = "none") -> Argument:
    if approximate == "none":
        return Call("gelu", (x,))
    cube = Call("mul", (0.044715, Call("pow", (x, 3.0))))
    inner = Call("mul", (0.7978845608028654, Call("add", (x, cube))))  # √(2/π)
    return Call("mul", (Call("mul", (0.5, x)), Call("add", (1.0, Call("tanh", (inner,))))))


def _call(name: str) -> Callable[..., Argument]:
    return lambda *arguments: Call(name, arguments)


#: By the op's name, or name and overload: functions of its arguments.
_FORMS: dict[str, Callable[..., Any]] = {
    **{
        name: _call(name)
        for name in (
            "abs", "erf", "exp", "expm1", "ge", "gt", "le", "log", "log1p", "lt", "maximum", "minimum",
            "relu", "sigmoid", "silu", "sqrt", "tanh", "where",
        )
    },
    "clamp": _clamp,
    "clamp_": _clamp,
    "clamp_max": lambda x, high: _clamp(x, None, high),
    "clamp_min": _clamp,
    "clip": _clamp,
    "elu": _elu,
    "gelu": _gelu,
    "hardsigmoid": _hard_sigmoid,
    "hardswish": lambda x: Call("mul", (x, _hard_sigmoid(x))),
    "hardtanh": lambda x, low=-1.0, high=1.0: _clamp(x, low, high),
    "leaky_relu": _leaky_relu,
    "max.other": _call("maximum"),
    "min.other": _call("minimum"),
    "mish": lambda x: Call("mul", (x, Call("tanh", (Call("softplus", (x,)),)))),
    "prelu": _leaky_relu,
    "rsub": lambda x, other: Call("sub", (other, x)),
    "softplus": _softplus,
}  # fmt: skip


def elementwise_form(target: Any) -> Callable[..., Argument] | None:
    """What makes an expression of an aten op's arguments, which are expressions, numbers or None; None if it
    is no such op."""
    name = op_name(target)
    return _FORMS.get(name) or _FORMS.get(f"{name}.{getattr(target, '_overloadname', '')}")


def softcapped(value: Any) -> tuple[Any, float | None]:
    """What a value is the softcap `c · tanh(x / c)` of, and c; the value itself and None if it is none."""
    if isinstance(value, Elementwise):
        cap = float(value.function(torch.full((1,), 1e12, dtype=torch.float64)))
        if 0 < cap < 1e6 and torch.allclose(value.function(_GRID * cap), cap * _GRID.tanh(), rtol=1e-9):
            return value.lanes, cap
    return value, None


def compose(node: Node, value: Lanes | Elementwise, name: str, *more: float) -> Elementwise:
    """A function of a value and numbers."""
    return Elementwise(lanes_of(value), Call(name, (expression_of(value), *more)), module_path(node))


def of_one(node: Node, name: str, a: Any, b: Any) -> Elementwise | None:
    """A function of two functions of the same lanes, if they are that."""
    if (lanes := same_lanes(a, b)) is None:
        return None
    return Elementwise(lanes, Call(name, (expression_of(a), expression_of(b))), module_path(node))
