"""The matrix products of learning against their definition in double precision."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mqc.learning.product import product, product_of_integers

sizes = st.integers(1, 70)


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


@given(tokens=sizes, inputs=sizes, outputs=sizes, seed=st.integers(0, 99))
def test_gradients_of_a_product_of_integers(tokens: int, inputs: int, outputs: int, seed: int) -> None:
    """The result is `product`'s. Gradients may be products of bfloat16: what is multiplied is rounded by 2^-8
    of it at most, and so is what comes of it."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn((tokens, inputs), generator=random, requires_grad=True)
    weight = torch.randint(-128, 128, (outputs, inputs), generator=random).float().requires_grad_()
    gradient = torch.randn((tokens, outputs), generator=random)
    result = product_of_integers(x, weight)
    assert torch.equal(result, product(x, weight))
    of_x, of_weight = torch.autograd.grad(result, (x, weight), gradient)
    for got, left, right in ((of_x, gradient, weight), (of_weight, gradient.T, x)):
        left, right = left.double(), right.double()
        assert got.dtype == torch.float32
        assert ((got - left @ right).abs() <= 3.1 * 2**-8 * (left.abs() @ right.abs())).all()
