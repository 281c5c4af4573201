"""The collapse watch tells health from collapse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ijepa.method.monitor import Health, health, loss_vs_mean_target, mean_cosine, rankme, verdict


@given(rank=st.integers(1, 16))
@settings(deadline=None)
def test_rankme_of_equal_singular_values_is_their_number(rank):
    torch.manual_seed(rank)
    left, _ = torch.linalg.qr(torch.randn(64, 16).double())
    right, _ = torch.linalg.qr(torch.randn(16, 16).double())
    features = left[:, :rank] @ right[:, :rank].T
    assert rankme(features) == pytest.approx(rank, rel=1e-4)


def test_mean_cosine_is_the_mean_over_all_pairs():
    features = torch.randn(20, 8).double()
    cosines = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=-1)
    pairs = cosines[~torch.eye(20, dtype=torch.bool)]
    assert mean_cosine(features) == pytest.approx(float(pairs.mean()))


def test_predicting_the_mean_target_has_no_skill_and_the_truth_has_all():
    targets = torch.randn(8, 4, 16)
    mean = targets.mean(dim=(0, 1), keepdim=True).expand_as(targets)
    assert loss_vs_mean_target(mean, targets) == pytest.approx(1.0)
    assert loss_vs_mean_target(targets, targets) == 0.0


def test_a_collapsed_encoder_is_called_so_and_a_healthy_one_is_not():
    torch.manual_seed(0)
    healthy = health(torch.randn(128, 32))
    collapsed = health(torch.ones(128, 32) + 1e-3 * torch.randn(128, 32))
    flat = health(torch.randn(128, 2) @ torch.randn(2, 32))
    assert verdict(healthy, healthy) is None
    assert "all images look alike" in verdict(collapsed, healthy)
    assert "losing dimensions" in verdict(flat, healthy)


def test_images_that_looked_alike_from_the_start_are_no_collapse():
    first = Health(rankme=10.0, feature_std=0.2, mean_cosine=0.992)
    assert verdict(first._replace(mean_cosine=0.996), first) is None
    assert verdict(first._replace(mean_cosine=0.9999), first) is not None
