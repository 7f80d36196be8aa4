"""Causal convolutions over the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mqc.frontend.lanes import Lanes, Length


@dataclass(frozen=True)
class Convolved:
    """A causal convolution that goes on behind the last token, where it sees what was padded."""

    lanes: Lanes

    def slice(self, arguments: list[Any]) -> Lanes:
        """The result up to the last token. Raises `ValueError` for another slice."""
        dim, start, stop = (*arguments, None, None, None)[:3]
        along = dim is not None and dim % self.lanes.index.ndim == self.lanes.axis
        if not along or start not in (0, None) or not isinstance(stop, Length):
            raise ValueError("of a convolution, but up to the last token, has no llm form")
        return self.lanes


def check_convolution(lanes: Lanes, weight: torch.Tensor, arguments: tuple[Any, ...]) -> None:
    """Raise `ValueError` unless a convolution sees each channel by itself, and earlier tokens.

    Args:
        arguments: stride, padding, dilation and groups, as `aten.conv1d` takes them; those left out are its
            defaults.
    """
    defaults: tuple[Any, ...] = ([1], [0], [1], 1)
    stride, padding, dilation, groups = (*arguments, *defaults[len(arguments) :])
    causal = list(stride) == list(dilation) == [1] and list(padding) == [weight.shape[-1] - 1]
    apart = groups == weight.shape[0] == lanes.index.size and lanes.axis == lanes.index.ndim - 1
    if not (causal and apart):
        raise ValueError("has no llm form but over earlier tokens, of each channel by itself")
