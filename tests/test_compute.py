"""Linear layers by oneDNN are those of torch, as exact, whatever the layout of the matrices."""

import contextlib
import copy
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ijepa import compute
from ijepa.compute import computing, pick_linear, recompute
from ijepa.errors import IjepaError
from ijepa.jepa.masks import batch_masks
from ijepa.jepa.model import build_ijepa
from ijepa.jepa.step import Trainer
from ijepa.recipes import load_recipe

CPU = torch.device("cpu")
LAYOUTS = {
    "rows": lambda matrix: matrix,
    "columns": lambda matrix: matrix.T.contiguous().T,
    "a part of wider rows": lambda matrix: torch.cat([matrix, matrix], dim=1)[:, matrix.shape[1] :],
    "every second row": lambda matrix: matrix.repeat_interleave(2, dim=0)[::2],
}


pytestmark = pytest.mark.skipif(not torch._C._has_mkldnn, reason="this torch has no oneDNN")


@pytest.fixture
def timed_anew(monkeypatch, tmp_path):
    """The library is found by timing, in a machine that knows nothing yet."""
    monkeypatch.setenv(compute.SWITCH, "auto")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compute._known_or_timed.cache_clear()
    yield
    compute._known_or_timed.cache_clear()


def by_onednn():
    return computing(CPU, linear="onednn")


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_products_are_as_exact_as_those_of_torch(first, second):
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(shape, generator=generator) for shape in ((70, 300), (50, 300)))
    bias = torch.randn(50, generator=generator)
    exact = F.linear(inputs.double(), weight.double(), bias.double())
    with by_onednn():
        found = F.linear(LAYOUTS[first](inputs), LAYOUTS[second](weight), bias)
        without_bias = F.linear(inputs, weight)
    worst = (F.linear(inputs, weight, bias) - exact).abs().max()
    assert (found - exact).abs().max() < 3 * worst
    assert found.is_contiguous()
    assert (without_bias - (exact - bias.double())).abs().max() < 3 * worst


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, "autocast"])
def test_other_numbers_are_left_to_torch(dtype, asked):
    inputs, weight = torch.randn(5, 7), torch.randn(3, 7)
    if dtype == "autocast":
        with torch.autocast("cpu", torch.bfloat16), by_onednn():
            assert F.linear(inputs, weight).dtype == torch.bfloat16
    else:
        with by_onednn():
            F.linear(inputs.to(dtype), weight.to(dtype))
    assert asked == []


def test_torch_multiplies_unless_onednn_is_chosen(asked):
    with computing(CPU):
        F.linear(torch.randn(5, 7), torch.randn(3, 7))
    with by_onednn():
        pass
    F.linear(torch.randn(5, 7), torch.randn(3, 7))
    assert asked == []


@pytest.mark.parametrize(
    ("onednn_seconds", "chosen"), [(0.5, "onednn"), (0.9, "torch"), (2, "torch")]
)
@pytest.mark.usefixtures("timed_anew")
def test_onednn_is_chosen_where_it_is_clearly_faster(monkeypatch, onednn_seconds, chosen):
    """By a clock that each call of torch moves by a second, of oneDNN by `onednn_seconds`."""
    now = [0.0]

    class Clocked(compute._OneDnnLinear):
        def __enter__(self):
            now[0] += onednn_seconds - 1.0
            return super().__enter__()

    def clock():  # asked before and after each call
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(compute, "_OneDnnLinear", Clocked)
    monkeypatch.setattr(compute.time, "perf_counter", clock)
    assert pick_linear(CPU, 64, 16) == chosen


@pytest.mark.usefixtures("timed_anew")
def test_a_choice_is_made_once_for_a_machine(monkeypatch):
    for first, then in (("onednn", "torch"), ("torch", "onednn")):
        compute.known_file().unlink(missing_ok=True)
        for answer in (first, then):  # the second start finds another one faster
            monkeypatch.setattr(compute, "_timed", lambda rows, dim, answer=answer: answer)
            compute._known_or_timed.cache_clear()
            assert pick_linear(CPU, 64, 16) == first
    for damaged in ("[]]", "null"):
        compute.known_file().write_text(damaged)
        compute._known_or_timed.cache_clear()
        assert pick_linear(CPU, 64, 16) == "onednn"


def test_an_environment_variable_chooses_the_library(monkeypatch):
    for name in ("torch", "onednn"):
        monkeypatch.setenv(compute.SWITCH, name)
        assert pick_linear(CPU, 4096, 64) == name
    assert pick_linear(torch.device("cuda"), 4096, 64) == "torch"
    monkeypatch.setenv(compute.SWITCH, "mkl")
    with pytest.raises(IjepaError, match="IJEPA_CPU_LINEAR is 'mkl'; set it to auto"):
        pick_linear(CPU, 4096, 64)


@pytest.mark.usefixtures("timed_anew")
def test_timing_leaves_the_random_numbers_as_they_are():
    before = torch.get_rng_state()
    pick_linear(CPU, 32, 16)
    assert torch.equal(torch.get_rng_state(), before)


def test_onednn_keeps_few_kernels_for_masks_have_many_lengths(monkeypatch):
    mine, other = compute.CACHE_SIZES
    monkeypatch.setenv(mine, "7")
    monkeypatch.setenv(other, "to be restored")
    del os.environ[other]
    with by_onednn():
        assert (os.environ[mine], os.environ[other]) == ("7", compute.KEPT_KERNELS)


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
        with by_onednn() if inside else contextlib.nullcontext():
            found = recompute(net, inputs) if recomputed else net(inputs)
            torch.autograd.backward(found[:, ::2].square().sum())
        answers.append([found, inputs.grad, *(parameter.grad for parameter in net.parameters())])
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7,), (0, 7), (2, 0, 7), (1, 1, 7)])
def test_one_vector_no_rows_and_named_arguments_are_taken_as_ever(shape):
    inputs, weight = torch.randn(shape), torch.randn(3, 7)
    for bias in (torch.randn(3), torch.randn(6)[::2], torch.randn(1).expand(3)):
        expected = F.linear(inputs, weight, bias)
        with by_onednn():
            torch.testing.assert_close(F.linear(input=inputs, weight=weight, bias=bias), expected)


def test_what_is_not_trained_gets_no_gradient_and_may_change():
    layer, inputs = nn.Linear(7, 3), torch.randn(2, 7, requires_grad=True)
    layer.weight.requires_grad_(False)
    kept = inputs.clone()
    with by_onednn():
        found = layer(kept)
    kept.zero_()
    found.sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 2.0))
    torch.testing.assert_close(inputs.grad, layer.weight.sum(dim=0).expand(2, 7))


@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 4, 7)])
def test_what_comes_out_may_be_changed_in_place(shape):
    torch.manual_seed(0)
    network, inputs = (
        nn.Sequential(nn.Linear(7, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)),
        torch.randn(shape),
    )
    gradients = []
    for context in (contextlib.nullcontext(), by_onednn()):
        network.zero_grad()
        with context:
            found = network(inputs)
        found += 1
        found.square().sum().backward()
        gradients.append(network[0].weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shapes", [((5, 7), (3, 6), (3,)), ((5, 7), (3, 7), (2,))])
def test_what_does_not_fit_is_refused_in_the_words_of_torch(shapes):
    operands = [torch.randn(shape) for shape in shapes]
    with pytest.raises(RuntimeError) as plain:
        F.linear(*operands)
    with by_onednn(), pytest.raises(RuntimeError) as found:
        F.linear(*operands)
    assert str(found.value) == str(plain.value)


@pytest.fixture
def asked(monkeypatch):
    """Shapes of what oneDNN was asked to multiply."""
    shapes, multiply = [], compute._onednn_product

    def noted(inputs, weight, *bias):
        shapes.append((tuple(inputs.shape), tuple(weight.shape)))
        return multiply(inputs, weight, *bias)

    monkeypatch.setattr(compute, "_onednn_product", noted)
    return shapes


def test_steps_of_training_are_multiplied_by_onednn_forwards_and_backwards(asked):
    small = ["encoder.arch=32x2x2", "predictor.dim=16", "predictor.depth=1", "data.batch_size=4"]
    config = load_recipe("cifar10", small)
    model, masks = build_ijepa(config), batch_masks(config, 0)
    with by_onednn():
        Trainer(model, config.optimization, 10).step(0, torch.randn(4, 3, 32, 32), masks)
    weights = [tuple(weight.shape) for weight in model.encoder.parameters() if weight.dim() == 2]
    assert len(weights) == 8  # four in each block
    for out, dim in weights:
        assert any(weight == (out, dim) for _, weight in asked)  # of the outputs
        assert any(inputs[0] == out and weight[0] == dim for inputs, weight in asked)  # gradients
