"""Products by oneDNN are those of torch, as exact, whatever the layout of the matrices."""

import pytest
import torch
import torch.nn.functional as F

from ijepa.method import products
from ijepa.method.products import linear_product

LAYOUTS = {
    "rows": lambda matrix: matrix,
    "columns": lambda matrix: matrix.T.contiguous().T,
    "a part of wider rows": lambda matrix: torch.cat([matrix, matrix], dim=1)[:, matrix.shape[1] :],
    "every second row": lambda matrix: matrix.repeat_interleave(2, dim=0)[::2],
}


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_products_are_as_exact_as_those_of_torch(first, second):
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(shape, generator=generator) for shape in ((70, 300), (50, 300)))
    bias = torch.randn(50, generator=generator)
    exact = F.linear(inputs.double(), weight.double(), bias.double())
    found = linear_product(LAYOUTS[first](inputs), LAYOUTS[second](weight), bias)
    worst = (F.linear(inputs, weight, bias) - exact).abs().max()
    assert (found - exact).abs().max() < 3 * worst
    assert found.is_contiguous()
    exact = exact - bias.double()
    assert (linear_product(inputs, weight) - exact).abs().max() < 3 * worst


def test_without_onednn_and_for_other_numbers_torch_multiplies(monkeypatch):
    inputs, weight = torch.randn(5, 7), torch.randn(3, 7)
    for dtype in (torch.float64, torch.bfloat16):
        expected = F.linear(inputs.to(dtype), weight.to(dtype))
        assert torch.equal(linear_product(inputs.to(dtype), weight.to(dtype)), expected)
    monkeypatch.setattr(products, "_has_onednn", lambda: False)
    assert torch.equal(linear_product(inputs, weight), F.linear(inputs, weight))
