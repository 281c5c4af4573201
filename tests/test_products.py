"""Products by oneDNN are those of torch, as exact, whatever the layout of the matrices."""

import copy
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ijepa.config import DataConfig, EncoderConfig, PredictorConfig, PretrainConfig
from ijepa.encoders.load import load_encoder
from ijepa.method import products
from ijepa.method.jepa import build_ijepa
from ijepa.method.masking import sample_masks
from ijepa.method.products import linear_product, quick_products
from ijepa.method.training import Trainer

CPU = torch.device("cpu")
LAYOUTS = {
    "rows": lambda matrix: matrix,
    "columns": lambda matrix: matrix.T.contiguous().T,
    "a part of wider rows": lambda matrix: torch.cat([matrix, matrix], dim=1)[:, matrix.shape[1] :],
    "every second row": lambda matrix: matrix.repeat_interleave(2, dim=0)[::2],
}


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch):
    if not products._has_onednn():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_quicker", lambda: True)


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


def test_on_other_cpus_and_for_other_numbers_torch_multiplies(monkeypatch):
    inputs, weight = torch.randn(5, 7), torch.randn(3, 7)
    for dtype in (torch.float64, torch.bfloat16):
        expected = F.linear(inputs.to(dtype), weight.to(dtype))
        assert torch.equal(linear_product(inputs.to(dtype), weight.to(dtype)), expected)
    monkeypatch.setattr(products, "onednn_is_quicker", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", _refuse)
    assert torch.equal(linear_product(inputs, weight), F.linear(inputs, weight))
    with quick_products(CPU):
        assert torch.equal(F.linear(inputs, weight), inputs @ weight.T)


def _refuse(*_):
    raise AssertionError("oneDNN was asked")


def test_onednn_keeps_few_kernels_for_masks_have_many_lengths(monkeypatch):
    mine, other = products.CACHE_SIZES
    monkeypatch.setenv(mine, "7")
    monkeypatch.setenv(other, "to be restored")
    del os.environ[other]
    quick_products(CPU)
    assert (os.environ[mine], os.environ[other]) == ("7", products.KEPT_KERNELS)


def test_a_gpu_keeps_its_own_products():
    assert not isinstance(quick_products(torch.device("cuda")), products._QuickLinear)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_networks_inside_have_the_outputs_and_gradients_of_those_outside(layout, recomputed):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 5, bias=False)).double()
    images = torch.randn(4, 9, 12)
    images[0] = LAYOUTS[layout](images[0])
    answers = []
    for dtype, inside in ((torch.float64, False), (torch.float32, True)):
        net, inputs = copy.deepcopy(network).to(dtype), images.to(dtype).requires_grad_()
        with quick_products(CPU if inside else torch.device("meta")):
            found = _checkpointed(net, inputs) if recomputed else net(inputs)
            found[:, ::2].square().sum().backward()
        answers.append([found, inputs.grad, *(parameter.grad for parameter in net.parameters())])
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def _checkpointed(net, inputs):
    both = (quick_products(CPU), quick_products(CPU))
    return checkpoint(net, inputs, use_reentrant=False, context_fn=lambda: both)


def test_one_vector_no_rows_and_named_arguments_are_taken_as_ever():
    weight, bias = torch.randn(3, 7), torch.randn(3)
    for inputs in (torch.randn(7), torch.randn(0, 7), torch.randn(2, 0, 7), torch.randn(1, 1, 7)):
        expected = F.linear(inputs, weight, bias)
        with quick_products(CPU):
            torch.testing.assert_close(F.linear(inputs, weight, bias=bias), expected)
            torch.testing.assert_close(F.linear(input=inputs, weight=weight, bias=bias), expected)


def test_what_is_not_trained_gets_no_gradient():
    layer, inputs = nn.Linear(7, 3), torch.randn(2, 7)
    layer.weight.requires_grad_(False)
    with quick_products(CPU):
        layer(inputs).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 2.0))


def test_a_bias_with_gaps_is_read_as_it_is():
    inputs, weight = torch.randn(5, 7), torch.randn(3, 7)
    for bias in (torch.randn(6)[::2], torch.randn(1).expand(3)):
        torch.testing.assert_close(
            linear_product(inputs, weight, bias), inputs @ weight.T + bias.clone()
        )


@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 4, 7)])
def test_what_comes_out_may_be_changed_in_place(shape):
    torch.manual_seed(0)
    network, inputs = (
        nn.Sequential(nn.Linear(7, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)),
        torch.randn(shape),
    )
    gradients = []
    for device in (torch.device("meta"), CPU):
        network.zero_grad()
        with quick_products(device):
            found = network(inputs)
        found += 1
        found.square().sum().backward()
        gradients.append(network[0].weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_layers_that_do_not_train_let_their_inputs_change():
    layer, inputs = nn.Linear(7, 3).requires_grad_(False), torch.randn(2, 7, requires_grad=True)
    kept = inputs.clone()
    with quick_products(CPU):
        found = layer(kept)
    kept.zero_()
    found.sum().backward()
    torch.testing.assert_close(inputs.grad, layer.weight.sum(dim=0).expand(2, 7))


@pytest.mark.parametrize("shapes", [((5, 7), (3, 6), (3,)), ((5, 7), (3, 7), (2,))])
def test_what_does_not_fit_is_refused_in_the_words_of_torch(shapes):
    operands = [torch.randn(shape) for shape in shapes]
    with pytest.raises(RuntimeError) as plain:
        F.linear(*operands)
    with quick_products(CPU), pytest.raises(RuntimeError) as found:
        F.linear(*operands)
    assert str(found.value) == str(plain.value)


@pytest.fixture
def asked(monkeypatch):
    """Shapes of what oneDNN was asked to multiply."""
    shapes, multiply = [], products.linear_product

    def noted(inputs, weight, *bias):
        shapes.append((tuple(inputs.shape), tuple(weight.shape)))
        return multiply(inputs, weight, *bias)

    monkeypatch.setattr(products, "linear_product", noted)
    return shapes


def test_linear_is_multiplied_by_onednn_forwards_and_backwards(asked):
    layer, inputs = nn.Linear(7, 3), torch.randn(2, 7, requires_grad=True)
    with quick_products(CPU):
        found = layer(inputs)
        assert asked == [((2, 7), (3, 7))]
    found.sum().backward()
    assert asked[1:] == [((2, 3), (7, 3)), ((3, 2), (7, 2))]


CONFIG = PretrainConfig(
    data=DataConfig(image_px=32, batch_size=4),
    encoder=EncoderConfig(arch="32x2x2", patch_px=4),
    predictor=PredictorConfig(dim=16, depth=1),
)


def test_steps_of_training_are_multiplied_by_onednn_forwards_and_backwards(asked):
    model, rng = build_ijepa(CONFIG), np.random.default_rng(0)
    masks = sample_masks(CONFIG.grid, 4, CONFIG.masks, rng)
    Trainer(model, CONFIG.optimization, 10).step(0, torch.randn(4, 3, 32, 32), masks)
    weights = [tuple(weight.shape) for weight in model.encoder.parameters() if weight.dim() == 2]
    assert len(weights) == 8  # four in each block
    for out, dim in weights:
        assert any(weight == (out, dim) for _, weight in asked)  # of the outputs
        assert any(inputs[0] == out and weight[0] == dim for inputs, weight in asked)  # gradients


def test_frozen_encoders_are_multiplied_by_onednn(asked):
    load_encoder("random:vit_tiny").features(torch.randn(1, 3, 224, 224), 1)
    assert len(asked) >= 4 * 12  # products of a block, blocks


def test_bf16_by_autocast_is_left_to_torch():
    layer, inputs = nn.Linear(7, 3), torch.randn(2, 7)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(inputs)
        with quick_products(CPU):
            assert torch.equal(layer(inputs), expected)
    assert expected.dtype == torch.bfloat16
