"""Cost of a step: protocol numbers, and what PyTorch counts."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ijepa.jepa.flops import activation_bytes, step_flops, utilisation
from ijepa.jepa.masks import batch_masks
from ijepa.jepa.model import LOSSES, build_ijepa
from ijepa.recipes import load_recipe


@pytest.mark.parametrize(
    ("recipe", "context", "target", "gflops"),
    [
        ("in1k_vitb16_ep600", 49.5, 33.4, (35, 26, 22)),
        ("in1k_vitl16_ep600", 49.5, 33.4, (123, 91, 44)),
        ("in1k_vith14_ep300", 66.7, 44.6, (333, 254, 60)),
        ("in1k_vith16-448_ep300", 224, 138, (1089, 871, 215)),
    ],
)
def test_flops_are_those_counted_for_the_papers_networks(recipe, context, target, gflops):
    flops = step_flops(load_recipe(recipe), context, target)
    assert np.array(flops) / 1e9 == pytest.approx(gflops, rel=0.04)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["targets.space=pixels"],
        ["targets.masked=input"],
        ["targets.layers=[1, 2, 3, 4]"],
        ["targets.layers=[1, 2]"],
        ["masks={kind: random, min_keep: 3}"],
        ["masks={kind: rasterized, min_keep: 3}"],
    ],
)
def test_flops_are_at_least_what_pytorch_counts_and_little_more(overrides):
    config = load_recipe("cifar10", ["data.batch_size=4", "optimization.lr=1e-4", *overrides])
    model = build_ijepa(config)
    [masks] = batch_masks(config, 0)
    with FlopCounterMode(display=False) as counter:
        [(predicted, target)] = model(torch.randn(4, 3, 32, 32), [masks])
        LOSSES["smooth_l1"](predicted, target).backward()
    counted = counter.get_total_flops() / 4
    ours = sum(step_flops(config, masks.context.shape[1], masks.targets.shape[2]))
    # PyTorch does not see fused attention on a CPU, and the predictor saves work at both ends.
    assert counted < ours < 1.35 * counted


def test_activations_are_about_what_the_backward_pass_keeps():
    config = load_recipe("cifar10", ["data.batch_size=8", "optimization.lr=1e-4"])
    model = build_ijepa(config)
    [masks] = batch_masks(config, 0)
    weights = {p.data_ptr() for p in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model(torch.randn(8, 3, 32, 32), [masks])
    assert outputs
    estimate = activation_bytes(
        config, 8, masks.context.shape[1], masks.targets.shape[2], bf16=False
    )
    assert sum(kept.values()) == pytest.approx(estimate, rel=0.3)


def test_utilisation_is_known_for_known_gpus_only():
    assert utilisation(494.5, "NVIDIA H100 80GB HBM3") == pytest.approx(0.5)
    assert utilisation(417.5, "NVIDIA H100 NVL") == pytest.approx(0.5)
    assert utilisation(1.0, "cpu, 2 threads") is None
