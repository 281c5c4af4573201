"""The collapse watch tells health from collapse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ijepa.jepa import monitor, verdict


@given(rank=st.integers(1, 16))
def test_rankme_of_equal_singular_values_is_their_number(rank):
    torch.manual_seed(rank)
    left, _ = torch.linalg.qr(torch.randn(64, 16).double())
    right, _ = torch.linalg.qr(torch.randn(16, 16).double())
    features = left[:, :rank] @ right[:, :rank].T
    assert monitor.rankme(features) == pytest.approx(rank, rel=1e-4)


def test_mean_cosine_is_the_mean_over_all_pairs():
    features = torch.randn(20, 8).double()
    cosines = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=-1)
    pairs = cosines[~torch.eye(20, dtype=torch.bool)]
    assert monitor.mean_cosine(features) == pytest.approx(float(pairs.mean()))


def test_predicting_the_mean_target_has_no_skill_and_the_truth_has_all():
    targets = torch.randn(8, 4, 16)
    mean = targets.mean(dim=(0, 1), keepdim=True).expand_as(targets)
    assert monitor.loss_vs_mean_target(mean, targets) == pytest.approx(1.0)
    assert monitor.loss_vs_mean_target(targets, targets) == 0.0


def test_skill_is_told_by_the_loss_that_is_trained():
    targets, predictions = torch.randn(2, 8, 4, 16)
    mean = targets.mean(dim=(0, 1), keepdim=True)
    expected = (predictions - targets).abs().mean() / (mean - targets).abs().mean()
    assert monitor.loss_vs_mean_target(predictions, targets, "l1") == pytest.approx(float(expected))


def test_a_collapsed_encoder_is_called_so_and_a_healthy_one_is_not():
    torch.manual_seed(0)
    healthy = monitor.health(torch.randn(128, 32))
    collapsed = monitor.health(torch.ones(128, 32) + 1e-3 * torch.randn(128, 32))
    flat = monitor.health(torch.randn(128, 2) @ torch.randn(2, 32))
    assert verdict.verdict(healthy, healthy) is None
    assert "all images look alike" in verdict.verdict(collapsed, healthy)
    assert "losing dimensions" in verdict.verdict(flat, healthy)
    alike = verdict.Health(rankme=10.0, feature_std=0.2, mean_cosine=0.992)  # from the start
    assert verdict.verdict(alike._replace(mean_cosine=0.996), alike) is None
    assert verdict.verdict(alike._replace(mean_cosine=0.9999), alike) is not None


@pytest.mark.parametrize("rank", [2, 5, 9])
def test_lidar_counts_the_dimensions_that_tell_images_apart(rank):
    torch.manual_seed(rank)
    means = torch.linalg.qr(torch.randn(40, rank).double())[0] @ torch.eye(rank, 16).double()
    means -= means.mean(dim=0)
    views = 100 * means.unsqueeze(1) + torch.randn(40, 200, 16).double()
    assert monitor.lidar(views) == pytest.approx(rank, rel=0.15)


def test_lidar_does_not_count_what_differs_between_views_of_one_image():
    torch.manual_seed(0)
    means = torch.randn(40, 1, 16)
    noisy = torch.zeros(16)
    noisy[4:] = 100.0  # all but four dimensions are drowned
    views = means + noisy * torch.randn(40, 50, 16)
    assert monitor.lidar(views) < 0.6 * monitor.lidar(means + 0.1 * torch.randn(40, 50, 16))


def test_neighbours_of_separate_classes_agree_and_those_of_noise_do_not():
    torch.manual_seed(0)
    labels = torch.arange(4).repeat(25)
    features = torch.nn.functional.one_hot(labels, 8) + 0.1 * torch.randn(100, 8)
    assert monitor.neighbour_accuracy(features, labels - 1) == 1.0  # such as -1 for unknown
    assert monitor.neighbour_accuracy(torch.randn(100, 8), labels) < 0.5


def test_neighbours_are_those_of_brute_force(monkeypatch):
    monkeypatch.setattr(monitor, "ROWS", 7)  # the rows do not divide evenly
    torch.manual_seed(1)
    features, labels = torch.randn(60, 5).double(), torch.randint(0, 3, (60,))
    right = 0
    for number in range(60):
        others = [n for n in range(60) if n != number]
        cosines = torch.cosine_similarity(features[number][None], features[others])
        nearest = [int(labels[others[int(n)]]) for n in cosines.argsort(descending=True)[:10]]
        right += max(range(3), key=lambda c: (nearest.count(c), -c)) == labels[number]
    assert monitor.neighbour_accuracy(features, labels) == pytest.approx(right / 60)


def checked(neighbours=None, images=30_000, cosine=0.5, skill=0.8):
    """The record of a health check."""
    record = {"rankme": 20.0, "feature_std": 0.2, "mean_cosine": cosine, "images": images}
    record |= {"loss_vs_mean_target": skill}
    return record | ({} if neighbours is None else {"neighbour_accuracy": neighbours})


@pytest.mark.parametrize(
    ("last", "word"),
    [
        (checked(0.4), "learned"),
        (checked(0.21), "undecided"),
        (checked(0.1), "got worse"),
        (checked(0.4, images=14_000), "too early to tell"),
        (checked(0.4, cosine=0.999), "collapsed"),
    ],
)
def test_a_run_is_judged_in_a_word(last, word):
    assert verdict.outcome(checked(0.2, images=0), last, 512).startswith(word)


def test_a_run_without_labels_is_judged_by_its_predictions():
    first = checked(images=0)
    assert verdict.outcome(first, checked(), 512).startswith("no collapse")
    assert verdict.outcome(first, checked(skill=1.1), 512).startswith("not learned yet")
