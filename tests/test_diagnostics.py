"""What is said of a feature file: what it holds, and the measures of collapse of each layer."""

import json

import h5py
import numpy as np
import pytest
import torch
from test_probe import stored, write
from typer.testing import CliRunner

from ijepa.errors import IjepaError
from ijepa.extract import describe
from ijepa.features.diagnose import diagnose
from ijepa.jepa.monitor import health, lidar
from ijepa_cli.main import app


def test_a_file_is_diagnosed_layer_by_layer_by_its_evaluation_views(tmp_path, monkeypatch):
    rows = [(image, view) for image in range(40) for view in range(4)]
    features = np.random.default_rng(0).standard_normal((160, 2, 8)).astype(np.float32)
    for number, (image, view) in enumerate(rows):
        features[number, 1, image % 3] += 8
        features[number, :, 7] = 1000.0 if view == 0 else image
    path = stored(tmp_path / "f.h5", features, rows, num_views=3, augment="flip")
    state = diagnose(path)
    assert (state.images, [layer.layer for layer in state.layers]) == (40, [0, 1])
    for place, layer in enumerate(state.layers):
        expected = health(torch.from_numpy(features[::4, place]))
        assert (layer.rankme, layer.feature_std, layer.mean_cosine) == pytest.approx(expected)
        views = torch.from_numpy(features[:, place].reshape(40, 4, 8)[:, 1:])
        assert layer.lidar == pytest.approx(lidar(views))
    assert state.layers[1].neighbour_accuracy == 1.0 > state.layers[0].neighbour_accuracy
    assert diagnose(path, None).layers[0].neighbour_accuracy is None
    with pytest.raises(IjepaError, match=r"no label 'count'; its labels are: class"):
        diagnose(path, "count")
    monkeypatch.setattr("ijepa.features.diagnose.MOST_IMAGES", 30)
    some = diagnose(path)
    assert some.images == 30
    assert some.layers[1].neighbour_accuracy == 1.0
    seen = []
    monkeypatch.setattr("ijepa.features.diagnose.LIDAR_IMAGES", 10)
    monkeypatch.setattr("ijepa.features.diagnose.lidar", lambda views: seen.append(views) or 0.0)
    diagnose(path)
    assert seen[1][:, 0, 7].max() > 20  # of 40 images, not the first ten alone


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
    assert "mean cosine" in run("diagnose", path).stdout
    assert json.loads(run("diagnose", path, "--json").stdout)["images"] == 120
    with h5py.File(path, "r+") as store:
        store["features"][0, 0, 0] += 1
    assert describe(path) == found
    with pytest.raises(IjepaError, match="are damaged"):
        describe(path, check=True)
