"""Two results are compared image by image, or not at all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multinomial
from test_probe import LOGISTIC, pair

from ijepa.config import ProbeConfig
from ijepa.errors import IjepaError
from ijepa.probe import probe
from ijepa.results.compare import compare, paired_difference
from ijepa.results.record import Score, read_result, write_result


@pytest.fixture
def results(tmp_path):
    """A good encoder and a poor one, on the same images."""
    paths = []
    for name, signal in (("good", 3.0), ("poor", 1.0)):
        out = tmp_path / f"{name}.json"
        probe(pair(tmp_path, name, signal=signal, encoder=name), [], out, LOGISTIC)
        paths.append(out)
    return paths


def test_a_comparison_is_what_the_paired_test_of_a_baseline_says(tmp_path, results):
    (row,) = compare(*results).rows
    assert row.encoders == ("good", "poor")
    assert row.top1[0] > row.top1[1]
    assert row.difference == pytest.approx(row.top1[0] - row.top1[1])
    assert row.only_first - row.only_second == pytest.approx(120 * row.difference)
    assert row.interval[0] <= row.difference <= row.interval[1]
    assert row.mean_class_interval[0] <= row.mean_class_difference <= row.mean_class_interval[1]
    good, poor = (pair(tmp_path, name, signal=s) for name, s in (("good", 3.0), ("poor", 1.0)))
    beside = probe(good, [poor], tmp_path / "beside.json", LOGISTIC)
    assert row.p_value == beside.scores[1].p_value
    (back,) = compare(*results[::-1]).rows
    assert (back.difference, back.p_value) == (-row.difference, row.p_value)


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({"protocol": "knn"}, "protocol is logistic and knn"),
        ({"label": "other"}, "label is class and other"),
        ({"test_images": "others"}, "test images is [0-9a-f]+ and others"),
        ({"train_images": "fewer"}, "train images is [0-9a-f]+ and fewer"),
        ({"setting": "5 a class"}, "setting is none and 5 a class"),
        ({"deviations": ["epochs 1, not 50"]}, "deviations is none and .*epochs 1, not 50"),
    ],
)
def test_what_was_probed_otherwise_is_not_compared(tmp_path, results, changed, refused):
    body = read_result(results[1])[0].model_dump()
    other = tmp_path / "other.json"
    write_result(other, (Score(**body | changed),))
    with pytest.raises(IjepaError, match=f"cannot be compared: {refused}"):
        compare(results[0], other)


def test_scores_of_other_held_out_or_few_shot_images_are_not_compared(tmp_path, results):
    files, one, two = pair(tmp_path), tmp_path / "1.json", tmp_path / "2.json"
    probe(files, [], one, LOGISTIC.model_copy(update={"holdout": 0.5}))
    with pytest.raises(IjepaError, match=r"holdout is 0\.1 and 0\.5"):
        compare(results[0], one)
    shot = ProbeConfig(name="few-shot", shots=(1,), draws=1)
    for out, seed in ((one, 0), (two, 1)):
        probe(files, [], out, shot.model_copy(update={"seed": seed}))
    assert compare(one, one).rows
    with pytest.raises(IjepaError, match="seed is 0 and 1"):
        compare(one, two)


def test_a_folder_of_several_results_is_answered_with_their_names(tmp_path, results):
    with pytest.raises(IjepaError, match=r"folder of results; name \S+good.json or \S+poor.json\."):
        compare(results[0], tmp_path)


def test_averages_of_draws_are_refused_on_either_side(tmp_path):
    files, outs = pair(tmp_path), (tmp_path / "one.json", tmp_path / "two.json")
    for draws, out in enumerate(outs, 1):
        probe(files, [], out, ProbeConfig(name="few-shot", shots=(1,), draws=draws))
    for both in (outs, outs[::-1]):
        with pytest.raises(IjepaError, match="averages draws"):
            compare(*both)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_the_interval_holds_the_difference_and_narrows_with_more_images(pairs):
    one, other = np.array(pairs).T
    value, low, high = paired_difference(one, other)
    assert value == pytest.approx(one.mean() - other.mean())
    assert low - 1e-9 <= value <= high + 1e-9
    _, lowest, highest = paired_difference(np.tile(one, 30), np.tile(other, 30))
    assert highest - lowest <= high - low + 1e-9


def test_intervals_hold_the_truth_where_few_images_differ():
    """Exact, over all outcomes: 20 images of which 10% are gains and 2% losses."""
    held, places = 0.0, np.arange(20)
    for gains in range(21):
        for losses in range(21 - gains):
            one, other = places < gains, (places >= gains) & (places < gains + losses)
            _, low, high = paired_difference(one, other)
            likely = multinomial.pmf([gains, losses, 20 - gains - losses], 20, [0.1, 0.02, 0.88])
            held += likely * (low <= 0.08 <= high)
    assert held >= 0.95


@pytest.mark.parametrize("labels", [None, np.arange(20) % 7, np.arange(20)])
def test_outcomes_that_are_all_alike_do_not_make_an_interval_without_width(labels):
    right = np.ones(20, bool)
    for other in (right, ~right):
        _, low, high = paired_difference(right, other, labels)
        assert high - low > 0.05


@pytest.mark.parametrize("sizes", [[400], [300, 60, 40]])
def test_the_interval_is_that_of_drawing_images_again_within_each_class(sizes):
    rng = np.random.default_rng(0)
    labels = np.repeat(range(len(sizes)), sizes)
    one, other = rng.random(400) < 0.7, rng.random(400) < 0.6
    difference, drawn = 0.0, np.zeros(4000)
    for label, size in enumerate(sizes):
        rows = np.flatnonzero(labels == label)
        picked = rng.choice(rows, size=(4000, size))
        drawn += (one[picked].mean(axis=1) - other[picked].mean(axis=1)) / len(sizes)
        difference += (one[rows].mean() - other[rows].mean()) / len(sizes)
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = paired_difference(one, other, labels)
    assert found[0] == pytest.approx(difference)
    assert found[1:] == pytest.approx((low, high), abs=0.004 if len(sizes) == 1 else 0.01)
    if len(sizes) == 1:
        assert found == paired_difference(one, other)
