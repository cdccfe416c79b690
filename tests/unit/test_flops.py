"""Arithmetic is what the formulas of matrix products and attention say."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from calm_lightning.flops import CountFlops


def test_a_product_of_matrices_and_its_two_gradients() -> None:
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    with CountFlops() as work:
        product = a @ b
    assert work.flops == 2 * 3 * 5 * 7
    with CountFlops() as work:
        product.sum().backward()  # type: ignore[no-untyped-call]
    assert work.flops == 2 * 2 * 3 * 5 * 7


def test_attention_is_counted_on_a_processor_too() -> None:
    query, key = torch.randn(2, 4, 16, 8), torch.randn(2, 4, 12, 8)
    with CountFlops() as work:
        scaled_dot_product_attention(query, key, key)
    assert work.flops == 2 * 2 * 4 * 2 * 16 * 12 * 8


def test_what_happens_outside_is_not_counted() -> None:
    with CountFlops() as work:
        pass
    torch.randn(3, 3) @ torch.randn(3, 3)
    assert work.flops == 0
