"""How a model chooses experts, from the aten ops that do it: scores, a choice, and the weights of the chosen.

An FX value `[tokens, experts]`, or one of its parts, is kept as one of the classes below until `mqc::gates`
asks for the whole as one `llm.route`. What is taken for granted on the way (which value of a mask hides a
group) is checked when the program is compared with the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from mqc.dialects.expressions import Call
from mqc.frontend.lanes import Elementwise, Lanes, expression_of, lanes_of, same_lanes
from mqc.frontend.nodes import number_of

#: A number that is added to a sum of weights, or that it is not less than, lest it be 0.
TINY = 1e-5


@dataclass(frozen=True)
class Preference:
    """By what experts are chosen: scores, or their softmax (`shares`), plus a bias; in `groups`.

    part: which value of the computation it is. `all` `[tokens, experts]`; the same `grouped`
    `[tokens, groups, …]`; the `best` of each group; their `sums` `[tokens, groups]`; the numbers of the
    `kept` groups; `zeros` and a `mask` of them; `nowhere` −infinity for all experts.
    """

    WHAT: ClassVar = "a softmax or a sum with a vector, but to choose experts,"

    scores: Lanes | Elementwise
    shares: bool = False
    bias: torch.Tensor | None = None
    groups: int = 1
    group_scores: int = 1
    top_groups: int = 1
    part: str = "all"


@dataclass(frozen=True)
class Chosen:
    """The numbers of the chosen experts `[tokens, count]`."""

    by: Preference
    count: int


@dataclass(frozen=True)
class Weights:
    """The weights of the chosen experts `[tokens, count]`, or their sum `[tokens, 1]`.

    gathered: from the scores, so that they do not contain the bias of the choice.
    """

    chosen: Chosen
    gathered: bool = False
    normalization: str = "none"
    factor: float = 1.0
    gain: torch.Tensor | None = None
    sum: bool = False


@dataclass(frozen=True)
class Gains:
    """A vector's elements `[tokens, count]` at the chosen experts."""

    chosen: Chosen
    vector: torch.Tensor


@dataclass(frozen=True)
class Everywhere:
    """The scores of the chosen experts among all `[tokens, experts]`, −infinity elsewhere; the sigmoid of
    them, which is 0 elsewhere, once it was taken. by_expert: `[experts, tokens]`; stacked:
    `[experts · tokens, 1]`."""

    chosen: Chosen
    sigmoid: bool = False
    by_expert: bool = False
    stacked: bool = False

    def weights(self, path: str) -> Weights:
        """The same as the weights of a choice by the sigmoid, whose order is that of the scores."""
        scores = self.chosen.by.scores
        gates = Elementwise(lanes_of(scores), Call("sigmoid", (expression_of(scores),)), path)
        return Weights(replace(self.chosen, by=Preference(gates)), gathered=True)


Routed = Preference | Chosen | Weights | Gains | Everywhere


def nowhere(scores: Any, value: Any) -> Preference:
    """`full_like` of scores of experts. Raises `ValueError` for another number than −infinity."""
    if not isinstance(scores, Lanes | Elementwise) or number_of(value) != -torch.inf:
        raise ValueError("has no llm form")
    return Preference(scores, part="nowhere")


def softmax_of(value: Any, dim: int, ndim: int) -> Preference:
    """Softmax over experts. Raises `ValueError` for another axis, or of anything but scores."""
    if not isinstance(value, Lanes | Elementwise) or dim not in (-1, ndim - 1):
        raise ValueError("has no llm form but of attention scores and of scores of experts")
    return Preference(value, shares=True)


def step(name: str, args: list[Any], shape: tuple[int, ...]) -> Any:
    """What an aten op makes of arguments of which one is a value of this file, or `topk` of scores.

    Args:
        name: of the op, without overload. shape: of its result, the token axis of size 1.

    Raises `ValueError` for what has no form as a choice of experts.
    """
    name = name.removesuffix("_")
    first, *others = args
    match first:
        case Lanes() | Elementwise() if name == "topk":
            return _top(Preference(first), *others)
        case Lanes() | Elementwise() if name == "gather" and isinstance(others[1], Chosen):
            return _gathered(Preference(first), others[1])
        case Preference(part="all"):
            return _of_all(name, first, others, shape)
        case Preference():
            return _of_groups(name, first, others)
        case Weights():
            return _of_weights(name, first, others)
        case Everywhere():
            return _of_everywhere(name, first, others)
        case torch.Tensor() if name == "index" and isinstance(others[0][0], Chosen):
            return Gains(others[0][0], first)
        case _ if name in ("mul", "add") and others and not isinstance(first, Chosen):
            return step(name, [others[0], first], shape)
    raise ValueError("of a choice of experts has no llm form")


def _top(by: Preference, count: int, dim: int = -1, largest: bool = True, *_: Any) -> list[Any]:
    if dim not in (-1, 1) or not largest:
        raise ValueError("of anything but the largest scores of a token has no llm form")
    chosen = Chosen(by, int(count))
    return [Weights(chosen), chosen]


def _gathered(by: Preference, chosen: Chosen) -> Weights:
    if by.shares != chosen.by.shares or same_lanes(by.scores, chosen.by.scores) is None:
        raise ValueError("takes weights that experts were not chosen by, which has no llm form")
    if _expression(by.scores) != _expression(chosen.by.scores):
        raise ValueError("takes weights that experts were not chosen by, which has no llm form")
    return Weights(chosen, gathered=True)


def _expression(scores: Lanes | Elementwise) -> str:
    return str(scores.expression) if isinstance(scores, Elementwise) else "x"


def _of_all(name: str, by: Preference, others: list[Any], shape: tuple[int, ...]) -> Any:
    other = others[0] if others else None
    match name:
        case "topk":
            return _top(by, *others)
        case "gather":
            return _gathered(by, others[1])
        case "add" if isinstance(other, torch.Tensor) and by.bias is None:
            return replace(by, bias=other.reshape(-1))
        case "view" | "reshape" if len(shape) == 3:
            return replace(by, groups=shape[1], part="grouped")
        case "view" | "reshape" | "squeeze":
            return by
        case "masked_fill" if isinstance(other, Preference) and other.part == "mask":
            return replace(other, part="all")
    raise ValueError("of scores of experts has no llm form")


def _of_groups(name: str, by: Preference, others: list[Any]) -> Any:
    match by.part, name:
        case "grouped", "topk":
            return [replace(by, part="best", group_scores=int(others[0])), None]
        case "grouped", "max":
            return [replace(by, part="sums"), None]
        case "grouped", "amax":
            return replace(by, part="sums")
        case "best", "sum":
            return replace(by, part="sums")
        case "sums", "topk":
            return [None, replace(by, part="kept", top_groups=int(others[0]))]
        case "nowhere", "scatter" if _are_scores(others, by):
            return Everywhere(others[1])
        case "sums", "zeros_like":
            return replace(by, part="zeros")
        case "zeros", "scatter":
            return replace(next(o for o in others if isinstance(o, Preference)), part="mask")
        case "mask", "unsqueeze" | "expand" | "reshape" | "view" | "bitwise_not" | "logical_not":
            return by
    raise ValueError("of groups of experts has no llm form")


def _are_scores(arguments: list[Any], by: Preference) -> bool:
    """Whether scores are scattered to where they were chosen by themselves."""
    dim, index, values = (*arguments, None, None, None)[:3]
    if dim not in (-1, 1) or not isinstance(index, Chosen) or values != Weights(index):
        return False
    return index.by == replace(by, part="all")


def _of_everywhere(name: str, gates: Everywhere, others: list[Any]) -> Everywhere:
    match name:
        case "sigmoid" if not gates.sigmoid:
            return replace(gates, sigmoid=True)
        case "transpose" if sorted(others) == [0, 1] and not gates.stacked:
            return replace(gates, by_expert=not gates.by_expert)
        case "reshape" | "view" if gates.by_expert and others == [[-1, 1]]:
            return replace(gates, stacked=True)
    raise ValueError("of scores of chosen experts has no llm form")


def _of_weights(name: str, weights: Weights, others: list[Any]) -> Any:
    other = others[0] if others else None
    number = number_of(other)
    match name:
        case "sum" if not weights.sum and weights.normalization == "none":
            return replace(weights, sum=True)
        case "add" | "clamp" | "clamp_min" if weights.sum and number is not None and 0 <= number <= TINY:
            return weights
        case "div" if _is_sum_of(other, weights):
            return replace(weights, normalization="sum", factor=1.0)
        case "softmax" if weights.normalization == "none" and weights.factor == 1 and weights.gain is None:
            return replace(weights, normalization="softmax")
        case "mul" | "div" if number is not None and not weights.sum:
            return replace(weights, factor=weights.factor * (number if name == "mul" else 1 / number))
        case "mul" if isinstance(other, Gains) and weights.gain is None:
            return replace(weights, gain=other.vector)
        case "view" | "reshape" if not weights.sum:
            return weights
    raise ValueError("of weights of experts has no llm form")


def _is_sum_of(total: Any, weights: Weights) -> bool:
    return (
        isinstance(total, Weights)
        and total.sum
        and total.chosen is weights.chosen
        and not weights.sum
        and weights.normalization == "none"
        and total.factor == weights.factor
    )


def route_properties(weights: Weights) -> dict[str, Any]:
    """Properties of the `llm.route` that gives the weights, but for its constants.

    Raises `ValueError` where the weights are something else.
    """
    by = weights.chosen.by
    if weights.sum or by.part != "all":
        raise ValueError("of a part of a choice of experts has no llm form")
    if by.bias is not None and not weights.gathered:
        raise ValueError("weighs experts by scores with the bias of the choice, which has no llm form")
    shares, normalization = by.shares, weights.normalization
    if shares and normalization == "softmax":
        raise ValueError("takes the softmax of shares, which has no llm form")
    if shares and normalization == "sum" and by.bias is None and by.groups == 1:
        shares, normalization = False, "softmax"  # the same, and more exact in integers
    return {
        "top_k": weights.chosen.count, "shares": int(shares), "normalization": normalization,
        "groups": by.groups, "top_groups": by.top_groups, "group_scores": by.group_scores,
    }  # fmt: skip
