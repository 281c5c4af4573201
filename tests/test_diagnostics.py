"""Diagnostics of features are what their definitions say, in one pass."""

import json

import h5py
import numpy as np
import pytest
import torch
from test_probe import stored, write
from typer.testing import CliRunner

from ijepa.errors import IjepaError
from ijepa.features.diagnose import Moments, describe, diagnose
from ijepa.jepa.monitor import mean_cosine, rankme
from ijepa_cli.main import app


def measured(rows, classes=None, parts=3):
    moments = Moments(rows.shape[1], 0 if classes is None else int(classes.max()) + 1)
    for part in np.array_split(np.arange(len(rows)), parts):
        moments.add(rows[part], None if classes is None else classes[part])
    return moments.state(0)


def test_one_pass_gives_what_all_features_at_once_give():
    rows = np.random.default_rng(0).standard_normal((300, 20)) * np.arange(1, 21) + 2
    found = measured(rows)
    assert found.rankme == pytest.approx(rankme(torch.from_numpy(rows)), rel=1e-6)
    assert found.mean_cosine == pytest.approx(mean_cosine(torch.from_numpy(rows)))
    assert found.feature_std == pytest.approx(rows.std(axis=0, ddof=1).mean())
    assert found.model_dump(exclude_none=True) == pytest.approx(
        measured(rows, parts=1).model_dump(exclude_none=True)
    )


def test_the_exponent_of_a_power_law_is_found():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((400, 60)))
    basis -= basis.mean(axis=0)
    basis, _ = np.linalg.qr(basis)
    for exponent in (0.5, 1.0, 2.0):
        rows = basis * np.arange(1, 61) ** (-exponent / 2)
        assert measured(rows).alpha_req == pytest.approx(exponent, abs=0.02)


def test_class_separation_is_the_ratio_of_distances_between_all_pairs():
    rng = np.random.default_rng(0)
    classes = np.arange(60) % 3
    rows = rng.standard_normal((60, 5)) + 2 * np.eye(3, 5)[classes]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    within = np.mean([distance[np.ix_(classes == k, classes == k)].mean() for k in range(3)])
    over_all = np.mean(
        [distance[np.ix_(classes == j, classes == k)].mean() for j in range(3) for k in range(3)]
    )
    assert measured(rows, classes).class_separation == pytest.approx(1 - within / over_all)
    assert measured(rows).class_separation is None


def test_dimensions_that_do_not_vary_are_dead():
    rows = np.random.default_rng(0).standard_normal((50, 8))
    rows[:, 5:] = 3.0
    assert measured(rows).dead_dims == pytest.approx(3 / 8)


@pytest.mark.filterwarnings("error")
def test_features_that_are_all_zero_are_one_dimension_at_most_without_a_warning():
    found = measured(np.zeros((20, 8)), np.arange(20) % 2)
    assert found.rankme == pytest.approx(1.0, abs=1e-3)
    assert (found.dead_dims, found.feature_std, found.mean_cosine) == (1.0, 0.0, 0.0)


def test_a_file_is_diagnosed_layer_by_layer_by_its_evaluation_views(tmp_path):
    rows = [(image, view) for image in range(40) for view in range(4)]
    features = np.random.default_rng(0).standard_normal((160, 2, 8))
    for number, (image, view) in enumerate(rows):
        features[number, 1, image % 3] += 8
        features[number, :, 7] = 1000.0 if view == 0 else image
    path = stored(tmp_path / "f.h5", features, rows, num_views=3, augment="flip")
    state = diagnose(path)
    assert (state.images, [layer.layer for layer in state.layers]) == (40, [0, 1])
    first, last = state.layers
    assert last.class_separation > first.class_separation
    assert last.neighbour_accuracy == 1.0 > first.neighbour_accuracy
    assert first.dead_dims == pytest.approx(1 / 8)  # evaluation views alone
    assert first.lidar > 1
    assert diagnose(path, None).layers[0].neighbour_accuracy is None
    with pytest.raises(IjepaError, match=r"no label 'count'; its labels are: class"):
        diagnose(path, "count")


def run(*words):
    return CliRunner().invoke(app, ["features", *map(str, words)])


def test_a_file_says_what_it_holds_also_where_a_check_finds_it_damaged(tmp_path):
    path = write(tmp_path / "f.h5")
    found = describe(path)
    assert (found.images, found.views, found.layers, found.dim) == (120, 1, 2, 8)
    assert (found.dtype, found.classes) == ("float32", {"class": 3})
    assert found.header.encoder == "ours"
    assert "weights sha256" in run("info", path).stdout
    assert "whole and undamaged" in run("check", path).stdout
    assert "alpha req" in run("diagnose", path).stdout
    assert json.loads(run("diagnose", path, "--json").stdout)["images"] == 120
    with h5py.File(path, "r+") as store:
        store["features"][0, 0, 0] += 1
    assert describe(path) == found
    with pytest.raises(IjepaError, match="are damaged"):
        describe(path, check=True)
