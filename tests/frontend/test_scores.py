"""Masks of attention that a model computes itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mqc.frontend.lanes import Lanes
from mqc.frontend.scores import Scores


def scores() -> Scores:
    index = np.arange(8).reshape(1, 2, 1, 4)
    q, k = (Lanes(base, index, np.ones_like(index), 2) for base in (object(), object()))  # type: ignore[arg-type]
    return Scores(q, k)


@given(tokens=st.integers(1, 12), window=st.integers(1, 14))
def test_what_a_mask_shows_is_the_window(tokens: int, window: int) -> None:
    """In each of its forms: booleans, what is added, and ones and zeros to multiply by."""
    visible = torch.tensor([[[0 <= i - j < window for j in range(tokens)] for i in range(tokens)]])
    added = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    want = window if window < tokens else None
    for found in (scores().masked(visible), scores().plus(added), scores().times(visible.float())):
        assert found.window == want


@given(tokens=st.integers(2, 8), spot=st.data())
def test_any_other_mask_is_refused(tokens: int, spot: st.DataObject) -> None:
    i, j = (spot.draw(st.integers(0, tokens - 1)) for _ in range(2))
    visible = torch.ones(2, tokens, tokens, dtype=torch.bool).tril()
    visible[1, i, j] = not visible[1, i, j]
    with pytest.raises(ValueError, match="neither causal nor a window"):
        scores().masked(visible)


def test_a_bias_and_a_factor_are_refused() -> None:
    causal = torch.ones(3, 3).tril()
    with pytest.raises(ValueError, match="and a bias"):
        scores().plus((1 - causal) * -1e9 + 0.5 * causal)
    with pytest.raises(ValueError, match="and a table"):
        scores().times(causal * 0.5)
