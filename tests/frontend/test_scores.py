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


@given(tokens=st.integers(1, 12), offset=st.floats(-9, 9), causal=st.booleans())
def test_a_bias_by_distance_is_one_of_keys(tokens: int, offset: float, causal: bool) -> None:
    """Whatever is added to all scores of a query, and whether the mask is in it or comes behind."""
    slopes, places = torch.tensor([0.5, -2.0])[:, None, None], torch.arange(tokens)
    distance = slopes * (places - places[:, None]) + offset
    if causal:
        distance = distance.masked_fill(places > places[:, None], -torch.inf)
    elif tokens > 1:
        distance = (slopes * places).reshape(2, 1, tokens) + offset  # the same for all queries
    found = scores().plus(distance)
    want = (slopes * places).reshape(2, tokens)
    if found.bias is None:
        assert not want.any() or tokens == 1
    else:
        assert torch.allclose(found.bias, want, atol=1e-5)
        assert torch.allclose(found.scaled(3.0).bias, 3 * want, atol=1e-4)  # type: ignore[arg-type]


def test_other_biases_and_factors_are_refused() -> None:
    causal, places = torch.ones(3, 3).tril(), torch.arange(3.0)
    product = (1 - causal) * -1e9 + causal * places * places[:, None]
    with pytest.raises(ValueError, match="a bias of queries and keys"):
        scores().plus(product)
    with pytest.raises(ValueError, match="and a bias"):
        scores().plus(product.expand(3, 3, 3))
    assert torch.equal(scores().plus(places[None]).plus(places[None]).bias, 2 * places.expand(2, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="and a table"):
        scores().times(causal * 0.5)
