"""The matrix product of learning against its definition in double precision."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mqc.learning.product import product

sizes = st.integers(1, 70)


@settings(deadline=None)
@given(tokens=sizes, inputs=sizes, outputs=sizes, seed=st.integers(0, 99))
def test_result_and_gradients(tokens: int, inputs: int, outputs: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x, weight, gradient = (
        torch.randn(shape, generator=random, dtype=torch.float64)
        for shape in ((tokens, inputs), (outputs, inputs), (tokens, outputs))
    )
    f32 = x.float().requires_grad_(), weight.float().requires_grad_()
    result = product(*f32)
    got = result, *torch.autograd.grad(result, f32, gradient.float())
    for tensor, wanted in zip(got, (x @ weight.T, gradient @ weight, gradient.T @ x), strict=True):
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-4, atol=1e-4)
