"""AdamW for bfloat16: the steps of AdamW, rounded so that their mean is right, whoever computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mqc.learning.optimizer import Bfloat16Adam, _noise, _rounded_at_random, optimizers


@given(start=st.integers(0, 1000), count=st.integers(1, 300), step=st.integers(0, 2**31))
@settings(max_examples=50)
def test_a_part_has_the_random_numbers_of_the_whole(start: int, count: int, step: int) -> None:
    whole = _noise((7, step, 3), 0, start + count)
    np.testing.assert_array_equal(_noise((7, step, 3), start, count), whole[start:])
    assert not np.array_equal(_noise((7, step, 4), 0, start + 64), _noise((7, step, 3), 0, start + 64))


@given(st.floats(-4, 4, width=32), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_rounding_goes_to_a_neighbour_and_is_right_in_the_mean(value: float, seed: int) -> None:
    noise = torch.from_numpy(np.random.default_rng(seed).integers(0, 1 << 16, 1 << 14, np.uint16))
    exact = torch.full((1 << 14,), value)
    rounded = _rounded_at_random(exact, noise)
    assert (rounded.bfloat16().float() == rounded).all()
    gap = 2.0**-7 * max(abs(value), 2.0**-126)  # at least the distance of two neighbours
    assert float((rounded - exact).abs().max()) < gap
    assert abs(float(rounded.double().mean()) - value) < gap / 20


def test_steps_are_those_of_adamw_in_the_mean() -> None:
    """Of parameters that steps to the nearest number would not move."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(40, 1, 1, generator=generator) + 0.5
    one = torch.full((1, 1), 0.4, requires_grad=True)
    many = torch.full((64, 512), 0.4).bfloat16().requires_grad_()
    start = float(many.detach()[0, 0])
    exact, rounded = optimizers([(5e-5, [one, many])], seed=3)
    assert isinstance(exact, torch.optim.AdamW) and isinstance(rounded, Bfloat16Adam)
    for gradient in gradients.bfloat16():
        one.grad, many.grad = gradient.float(), gradient.expand_as(many)
        exact.step()
        rounded.step()
    moved = float(one.detach()) - 0.4
    assert abs(moved) < 2.0**-10  # half the distance of two bfloat16 numbers there
    assert float(many.detach().double().mean()) - start == pytest.approx(moved, rel=0.1)
    assert {t.dtype for t in rounded.state[many].values() if t.dim()} == {torch.bfloat16}
