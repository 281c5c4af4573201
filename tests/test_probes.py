"""Probes on arrays: they find what is there, and choose without a look at the test set."""

import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from arrays import labelled
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import binom, binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from ijepa.config import ProbeConfig
from ijepa.errors import IjepaError
from ijepa.probes.arrays import ProbeRequest, draw_subset, hold_out
from ijepa.probes.knn import average_precision, knn, retrieval, unit_length, vote
from ijepa.probes.linear import choose_and_train
from ijepa.probes.logistic import centred_unit, few_shot, fit, logistic
from ijepa.probes.protocols import FEW_SHOT_PROTOCOLS, LOGISTIC_PROTOCOLS
from ijepa.probes.scores import mean_class_accuracy, paired_p_value, top1
from ijepa.results.compare import paired_difference

PROBES = {"logistic": logistic, "linear": choose_and_train, "knn": knn, "few-shot": few_shot}
CLASSES = (3, 7, 20)  # label numbers need not count from 0


def clusters(rows, spread, seed, *, shuffled=False):
    """Three Gaussian clusters in 8 dimensions; `shuffled` labels say nothing about them."""
    rng = np.random.default_rng(seed)
    which = np.arange(rows) % 3
    centres = 3 * np.eye(3, 8)
    last = (centres[which] + spread * rng.standard_normal((rows, 8))).astype(np.float32)
    labels = np.array(CLASSES)[rng.permutation(which) if shuffled else which]
    return labelled(np.stack([last[:, ::-1], last], axis=1), labels)


def request(name, **choices):
    return ProbeRequest(ProbeConfig(name=name, **choices))


def accuracies(name, train, test, **choices):
    fits = PROBES[name](train, test, request(name, **choices))
    return [float(np.mean(fit.predictions == test.labels)) for fit in fits]


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_separates_clusters_and_is_at_chance_on_shuffled_labels(name):
    few = {"shots": (5, 0.5), "draws": 3}
    found = accuracies(name, clusters(300, 0.3, 0), clusters(90, 0.3, 1), **few)
    assert min(found) > 0.95
    train, test = clusters(300, 0.3, 0, shuffled=True), clusters(900, 0.3, 1, shuffled=True)
    found = accuracies(name, train, test, **few)
    assert 0.25 < min(found) <= max(found) < 0.42  # a third, give or take five deviations


@pytest.mark.parametrize("name", ["logistic", "few-shot"])
def test_many_classes_are_separated_as_well_as_few(name):
    """Gradients shrink with the number of classes; a solver must not stop for that."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(200), 4)
    last = (np.eye(200)[labels] + 0.02 * rng.standard_normal((800, 200))).astype(np.float32)
    data = labelled(last[:, np.newaxis], labels)
    assert min(accuracies(name, data, data, shots=(2,), draws=1)) > 0.99


@pytest.mark.parametrize("name", PROBES)
def test_predictions_repeat_whatever_else_is_in_the_test_set_and_are_of_evaluation_views(name):
    train, test = clusters(200, 2.0, 0), clusters(60, 2.0, 1)
    garbage = np.random.default_rng(0).standard_normal(train.features.shape)
    values = np.concatenate([garbage, train.features])
    views = np.stack([np.arange(200, 400), np.arange(200)], axis=1)  # evaluation views come last
    others = {
        "the same again": (train, test),
        "some of the test images": (train, test.take(np.arange(7))),
        "other test labels": (train, test._replace(labels=test.labels[::-1].copy())),
        "augmented views beside": (labelled(values, train.labels, views), test),
    }
    config = request(name, seed=3, shots=(5, 0.5), draws=2)
    whole = PROBES[name](train, test, config)
    for what, (fitted, scored) in others.items():
        for one, two in zip(whole, PROBES[name](fitted, scored, config), strict=True):
            found = one.predictions[:, : len(scored.labels)]
            np.testing.assert_array_equal(found, two.predictions, err_msg=what)
            assert one.choices == two.choices, what


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 5),
)
def test_the_held_out_part_takes_its_share_of_each_class_and_never_all_of_it(
    labels, fraction, seed
):
    labels = np.array(labels)
    fitted, held = hold_out(labels, fraction, seed)
    assert sorted([*fitted, *held]) == list(range(len(labels)))
    for label in np.unique(labels):
        count = int((labels == label).sum())
        share = max(1, round(count * fraction))
        assert int((labels[held] == label).sum()) == min(share, count - 1)


@given(
    shots=st.sampled_from([0.01, 0.2, 0.5, 1, 3, 5]), seed=st.integers(0, 3), draw=st.integers(0, 3)
)
def test_a_drawn_subset_holds_so_many_of_each_class(shots, seed, draw):
    labels = np.repeat([2, 5, 9], [10, 40, 3])
    rows = draw_subset(labels, shots, seed, draw)
    assert len(set(rows)) == len(rows)
    for label, count in [(2, 10), (5, 40), (9, 3)]:
        wanted = min(int(shots), count) if shots >= 1 else max(1, round(shots * count))
        assert int((labels[rows] == label).sum()) == wanted


def test_draws_differ_and_each_is_a_row_of_predictions():
    train, test = clusters(200, 2.0, 0), clusters(60, 2.0, 1)
    one, five, many, part = few_shot(
        train, test, request("few-shot", shots=(1, 5, 10_000, 0.0001), draws=4)
    )
    classes = len(np.unique(train.labels))
    assert one.deviations == five.deviations == ()
    assert many.deviations == (f"{classes} classes have fewer images than 10000",)
    assert part.deviations == (f"{classes} classes give one image, more than their part",)
    assert (one.setting, five.setting) == ("1 a class", "5 a class")
    assert one.predictions.shape == (4, 60)
    assert len(np.unique(one.predictions, axis=0)) > 1


@settings(deadline=None)
@given(seed=st.integers(0, 50), k=st.sampled_from([1, 3, 10, 40]))
def test_nearest_neighbours_vote_as_a_plain_loop_counts(seed, k):
    train, test = clusters(40, 2.0, seed), clusters(5, 2.0, seed + 100)
    last = [data.last() for data in (train, test)]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in last]
    expected = []
    for cosine in unit[1] @ unit[0].T:
        votes = dict.fromkeys(CLASSES, 0.0)
        for row in np.argsort(-cosine)[:k]:
            votes[int(train.labels[row])] += float(np.exp(cosine[row] / 0.07))
        expected.append(max(votes, key=votes.get))
    found = vote(unit[0], train.labels, unit[1], (k,))
    np.testing.assert_array_equal(found[k], expected)


def test_the_images_that_choose_k_are_bounded_and_all_others_vote(monkeypatch):
    asked_of, counted = [], vote

    def counting(features, labels, queries, sizes):
        asked_of.append((len(features), len(queries)))
        return counted(features, labels, queries, sizes)

    monkeypatch.setattr("ijepa.probes.knn.vote", counting)
    monkeypatch.setattr("ijepa.probes.knn.HELD_OUT_AT_MOST", 30)
    knn(clusters(900, 2.0, 0), clusters(50, 2.0, 1), request("knn"))
    assert asked_of == [(870, 30), (900, 50)]


@pytest.mark.parametrize("name", ["knn", "logistic"])
def test_a_probe_holds_one_copy_of_the_training_features(name):
    """Of float32, whatever is stored; neighbours and gradients are small beside it."""
    rng = np.random.default_rng(0)
    labels = np.arange(20_000) % 2
    values = rng.standard_normal((20_000, 1, 512), dtype=np.float32).astype(np.float16)
    values[:, 0, 0] += 8 * labels.astype(np.float16)
    train, test = labelled(values, labels), labelled(values[:10], labels[:10])
    tracemalloc.start()
    PROBES[name](train, test, request(name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * 4 * values.size


def test_votes_do_not_depend_on_how_many_are_counted_at_once(monkeypatch):
    train, test = clusters(60, 2.0, 0), clusters(50, 2.0, 1)
    features, queries = (unit_length(data.last()) for data in (train, test))
    whole = vote(features, train.labels, queries, (1, 10))
    monkeypatch.setattr("ijepa.probes.knn.VOTES_AT_ONCE", 7)
    parts = vote(features, train.labels, queries, (1, 10))
    for k in (1, 10):
        np.testing.assert_array_equal(whole[k], parts[k])


@pytest.mark.parametrize("name", PROBES)
def test_one_hot_features_are_read_without_a_fault(name):
    labels = np.arange(300) % 10
    data = labelled(np.eye(10, dtype=np.float16)[labels][:, np.newaxis], labels)
    assert min(accuracies(name, data, data, shots=(5,), draws=1)) == 1.0


def test_lists_of_training_images_take_the_place_of_draws():
    train, test = clusters(200, 0.3, 0), clusters(60, 0.3, 1)
    lists = (np.array([0, 1, 2]), np.array([3, 4, 5, 6, 7, 8]))
    (found,) = few_shot(train, test, request("few-shot")._replace(subsets=lists))
    one_class = [np.flatnonzero(train.labels == train.labels[0])]
    with pytest.raises(IjepaError, match=r"images of one class only; a probe needs two"):
        few_shot(train, test, request("few-shot")._replace(subsets=one_class))
    assert found.setting == "lists of 3 or 6 images"
    assert found.predictions.shape == (2, 60)
    (alone,) = few_shot(train.take(lists[0]), test, request("few-shot", shots=(1,), draws=1))
    np.testing.assert_array_equal(alone.predictions[0], found.predictions[0])


def test_the_penalty_of_msn_is_that_of_its_own_code():
    """It adds lambda / n times half the squared weights to the mean loss."""
    train, test = clusters(200, 2.0, 0), clusters(60, 2.0, 1)
    (found,) = logistic(train, test, request("logistic", protocol="msn-5-shot"))
    rows = [torch.from_numpy(centred_unit(data.last())).double() for data in (train, test)]
    truth = torch.from_numpy(np.searchsorted(CLASSES, train.labels))

    def loss(flat):
        weights = torch.from_numpy(flat).view(3, 8).requires_grad_()
        penalty = 2.5e-3 / len(truth) / 2 * weights.square().sum()
        total = F.cross_entropy(rows[0] @ weights.T, truth) + penalty
        total.backward()
        return float(total.detach()), weights.grad.view(-1).numpy()

    best = minimize(loss, np.zeros(24), jac=True, method="L-BFGS-B", options={"ftol": 1e-15})
    expected = (rows[1].numpy() @ best.x.reshape(3, 8).T).argmax(axis=1)
    np.testing.assert_array_equal(found.predictions[0], np.array(CLASSES)[expected])
    assert found.choices == {"C": 400.0}


def uneven(rows, seed, *, classes=10, dim=64):
    """Clusters with directions of 1 to a thousandth of the length, on which L-BFGS is slow."""
    rng = np.random.default_rng(seed)
    which = np.arange(rows) % classes
    centres = 0.3 * np.random.default_rng(5).standard_normal((classes, dim))
    features = (rng.standard_normal((rows, dim)) + centres[which]) * np.logspace(0, -3, dim)
    return labelled(features[:, np.newaxis].astype(np.float32), which)


@pytest.mark.slow
def test_the_fit_of_msn_ends_at_its_optimum_however_long_that_takes():
    train, test = uneven(2000, 0), uneven(1000, 1)
    (found,) = logistic(train, test, request("logistic", protocol="msn"))
    exact = LogisticRegression(C=4000.0, fit_intercept=False, tol=1e-9, max_iter=50_000)
    rows = [centred_unit(data.last()).astype(np.float64) for data in (train, test)]
    expected = exact.fit(rows[0], train.labels).predict(rows[1])
    assert exact.n_iter_ > 300
    assert np.mean(found.predictions[0] == expected) > 0.99
    assert found.deviations == ()


@pytest.mark.parametrize("name", ["logistic", "few-shot"])
def test_a_fit_that_stops_before_it_converged_says_so(name, monkeypatch):
    short = replace(LOGISTIC_PROTOCOLS["msn"], iterations=20)
    monkeypatch.setitem(LOGISTIC_PROTOCOLS, "msn", short)
    monkeypatch.setitem(FEW_SHOT_PROTOCOLS, "msn", short)
    choices = {"protocol": "msn", "shots": (10,), "draws": 2}
    (found,) = PROBES[name](uneven(500, 0), uneven(100, 1), request(name, **choices))
    [said] = [line for line in found.deviations if "converged" in line]
    which = {"logistic": "the fit", "few-shot": "2 of 2 fits"}[name]
    assert said == f"{which} stopped within 20 iterations before it converged"


def test_what_else_a_fit_warns_of_is_passed_on():
    class Noisy(LogisticRegression):
        def fit(self, *_):
            warnings.warn("other", RuntimeWarning, stacklevel=1)

    with pytest.warns(RuntimeWarning, match="other"):
        assert fit(Noisy(), np.zeros((2, 1)), np.arange(2))


def test_features_are_scaled_as_asked_for_and_the_score_says_so():
    train, test = clusters(200, 2.0, 0), clusters(60, 2.0, 1)
    (usual,) = logistic(train, test, request("logistic"))
    (same,) = logistic(train, test, request("logistic", scale="columns"))
    (rows,) = logistic(train, test, request("logistic", scale="rows"))
    np.testing.assert_array_equal(usual.predictions, same.predictions)
    assert (usual.deviations, rows.deviations) == ((), ("scaled by rows, not columns",))
    wide = labelled(train.features * 1000, train.labels)
    (again,) = logistic(wide, labelled(test.features * 1000, test.labels), request("logistic"))
    np.testing.assert_array_equal(usual.predictions, again.predictions)


def test_accuracy_has_the_interval_of_wilson():
    value, low, high = top1(np.arange(100) < 81)
    assert value == 0.81
    # Wilson 1927 by hand: (p + z2/2n +- z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n), z = 1.95996
    assert low == pytest.approx(0.722212, abs=1e-6)
    assert high == pytest.approx(0.874852, abs=1e-6)


def test_mean_class_accuracy_weighs_rare_classes_as_common_ones():
    labels = np.repeat([0, 1], [90, 10])
    correct = np.concatenate([np.ones(90, dtype=bool), np.zeros(10, dtype=bool)])
    value, low, high = mean_class_accuracy(correct, labels)
    assert value == 0.5
    assert 0.35 < low < 0.45  # of classes that are all right or all wrong, too
    assert high == pytest.approx(1 - low)
    assert top1(correct)[0] == 0.9


@pytest.mark.parametrize("right", [0, 3, 7])
def test_mean_class_accuracy_of_one_image_a_class_has_the_interval_of_wilson(right):
    correct = np.arange(7) < right
    assert mean_class_accuracy(correct, np.arange(7)) == pytest.approx(top1(correct))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "images"),
    [(8142, 3), (1000, 2), (100, 1), (100, 10), (10, 1), (10, 2), (10, 3), (10, 50)],
)
def test_95_of_100_intervals_of_mean_class_accuracy_hold_the_truth(classes, images):
    """A normal interval with a variance over n holds it 91 times with 3 images a class."""
    rng = np.random.default_rng(0)
    chances = rng.beta(7, 3, classes)
    labels, each = np.repeat(np.arange(classes), images), np.repeat(chances, images)
    found = [mean_class_accuracy(rng.random(len(each)) < each, labels) for _ in range(1000)]
    held = np.mean([low <= chances.mean() <= high for _, low, high in found])
    assert 0.92 <= held <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("images", "least"), [(2, 0.866), (3, 0.858), (5, 0.860), (10, 0.841)])
def test_intervals_of_two_classes_of_a_few_images_may_hold_the_truth_less_often(images, least):
    """Least over the accuracies of both classes; exact, for there are few outcomes."""
    labels, rights = np.repeat([0, 1], images), np.arange(images + 1)
    outcomes = [np.arange(images) < right for right in rights]
    found = [[mean_class_accuracy(np.r_[a, b], labels) for b in outcomes] for a in outcomes]
    _, low, high = np.moveaxis(np.array(found), -1, 0)
    chances = np.linspace(0.01, 0.99, 99)
    likely = binom.pmf(rights, images, chances[:, None])
    held = [
        (one[:, None] * other)[(low <= (p + q) / 2) & ((p + q) / 2 <= high)].sum()
        for p, one in zip(chances, likely, strict=True)
        for q, other in zip(chances, likely, strict=True)
    ]
    assert min(held) == pytest.approx(least, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 2, 3])
def test_95_of_100_intervals_of_a_difference_by_class_hold_the_truth(images):
    rng = np.random.default_rng(0)
    one, other = rng.beta(2, 1, (2, 50))
    labels, held = np.repeat(np.arange(50), images), 0
    for _ in range(400):
        right = [rng.random(len(labels)) < np.repeat(chances, images) for chances in (one, other)]
        _, low, high = paired_difference(*right, labels)
        held += low <= np.mean(one - other) <= high
    assert 0.925 <= held / 400 <= 0.985


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_the_paired_test_is_the_sign_test_of_the_images_where_both_differ(pairs):
    one, other = np.array(pairs).T
    wins, losses = int((one & ~other).sum()), int((~one & other).sum())
    found = paired_p_value(one, other)
    assert found == paired_p_value(other, one)
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert found == pytest.approx(expected)


def test_a_class_that_train_lacks_counts_as_wrong():
    train = clusters(200, 0.3, 0)
    train = train.take(np.flatnonzero(train.labels != CLASSES[2]))
    for name in PROBES:
        test = clusters(60, 0.3, 1)
        assert max(accuracies(name, train, test, shots=(5,))) == pytest.approx(2 / 3, abs=0.04)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_scikit_learns_also_with_equal_scores(ties):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((20, 50))
    scores = np.sort(scores.round(1) if ties else scores, axis=1)[:, ::-1].copy()
    right = rng.random((20, 50)) < 0.2
    right[3] = False
    found = average_precision(torch.from_numpy(scores), torch.from_numpy(right)).numpy()
    for one, of, expected in zip(found, right, scores, strict=True):
        known = average_precision_score(of, expected) if of.any() else 0.0
        assert one == pytest.approx(known, abs=1e-12)


def test_retrieval_computes_on_the_cpu_where_a_gpu_has_no_float64(monkeypatch):
    train, test = clusters(30, 2.0, 0), clusters(9, 2.0, 1)
    [expected] = retrieval(train, test, request("retrieval"))
    monkeypatch.setattr("ijepa.probes.knn.pick_device", lambda _: torch.device("mps"))
    [found] = retrieval(train, test, request("retrieval"))
    assert found.metrics == expected.metrics


def test_retrieval_ranks_train_by_cosine_and_one_file_leaves_each_image_out(monkeypatch):
    train, test = clusters(90, 2.0, 0), clusters(30, 2.0, 1)
    whole = retrieval(train, test, request("retrieval"))[0]
    monkeypatch.setattr("ijepa.probes.knn.VOTES_AT_ONCE", 90 * 7)  # blocks of seven queries
    [fit] = retrieval(train, test, request("retrieval"))
    for name, found in fit.metrics.items():
        assert found == pytest.approx(whole.metrics[name])
    gallery, queries = (data.last() for data in (train, test))
    cosine = cosine_similarity(queries, gallery)
    same = test.labels[:, None] == train.labels
    expected = np.mean([average_precision_score(a, b) for a, b in zip(same, cosine, strict=True)])
    assert fit.metrics["mAP"][0] == pytest.approx(expected, abs=1e-5)
    assert fit.metrics["mAP"][1] < expected < fit.metrics["mAP"][2]
    first = np.argsort(-cosine, axis=1)
    np.testing.assert_array_equal(fit.predictions[0], train.labels[first[:, 0]])
    at_5 = np.take_along_axis(same, first[:, :5], axis=1).mean()
    assert fit.metrics["precision at 5"][0] == pytest.approx(at_5)
    [alone] = retrieval(train, train, request("retrieval"))
    cosine = cosine_similarity(gallery, gallery)
    np.fill_diagonal(cosine, -2)
    nearest = train.labels[cosine.argmax(axis=1)]
    np.testing.assert_array_equal(alone.predictions[0], nearest)
    others = ~np.eye(90, dtype=bool)
    same = train.labels[:, None] == train.labels
    each = [average_precision_score(same[n][others[n]], cosine[n][others[n]]) for n in range(90)]
    assert alone.metrics["mAP"][0] == pytest.approx(np.mean(each), abs=1e-5)
    shuffled = train._replace(labels=np.random.default_rng(0).permutation(train.labels))
    assert retrieval(shuffled, test, request("retrieval"))[0].metrics["mAP"][2] < 0.5
