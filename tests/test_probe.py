"""The probe stage: whole tables from feature files, and no way to fool oneself with them."""

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
from arrays import header_of, image_ids, write_features
from scipy.stats import binomtest
from typer.testing import CliRunner

from ijepa.config import ProbeConfig, Runtime
from ijepa.data.sources.names import listed
from ijepa.errors import IjepaError
from ijepa.probe import low_level, probe
from ijepa.probes.protocols import LOGISTIC_PROTOCOLS, PROBES
from ijepa.report import report
from ijepa_cli.main import app

LOGISTIC = ProbeConfig(name="logistic")
ON_FEATURES = sorted(PROBES.keys() - {"attentive", "segmentation", "depth"})  # those on tokens


class Files(NamedTuple):
    """Features that a probe is fitted on, and those that it is scored on."""

    train: Path
    test: Path


def write(path, *, rows=120, signal=3.0, seed=0, classes=3, lowest=0, first=0, copies=0, **header):
    """A feature file of `classes` clusters, `signal` apart, in two layers of 8; `lowest` class."""
    rng = np.random.default_rng(seed)
    which = np.arange(rows) % classes
    last = signal * np.eye(classes, 8)[which] + rng.standard_normal((rows, 8))
    own = {"layers": (2, 3), "split": "train", "fingerprint": f"{path.name} {seed} {signal}"}
    features = np.stack([rng.standard_normal((rows, 8)), last], axis=1).astype(np.float32)
    keys = [f"{number:05d}" for number in range(first, first + rows)]
    images = [*range(copies), *range(first + copies, first + rows)]
    ids = image_ids([f"image {number}" for number in images])
    made, labels = header_of(path, **own | header), {"class": lowest + which}
    return write_features(path, made, features, keys=keys, labels=labels, image_ids=ids)


def pair(folder, name="ours", **options):
    train = write(folder / f"{name}.train.h5", **options)
    test = write(folder / f"{name}.test.h5", **{"seed": 7, "first": 1000, "split": "val"} | options)
    return Files(train, test)


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_says_what_it_does_what_it_chooses_and_where_it_is(name):
    assert PROBES[name].keys() == {"home", "description", "selection"}
    module, _, function = PROBES[name]["home"].partition(":")
    assert callable(getattr(importlib.import_module(f"ijepa.probes.{module}"), function))


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    """DINOv2's search of 45 strengths, shortened to every ninth: a test waits for each fit."""
    whole = LOGISTIC_PROTOCOLS["dinov2"]
    monkeypatch.setitem(
        LOGISTIC_PROTOCOLS, "dinov2", replace(whole, strengths=whole.strengths[::9])
    )


@pytest.fixture
def files(tmp_path):
    return pair(tmp_path)


@pytest.fixture
def scored(tmp_path):
    """A function: the score of a pair of files, without baselines."""

    def score(train, test, config=LOGISTIC):
        return probe(Files(train, test), [], tmp_path / "r.json", config).scores[0]

    return score


@pytest.fixture
def refused(scored):
    """A function: such a pair is refused, and nothing is made."""

    def check(train, test, message, config=LOGISTIC):
        with pytest.raises(IjepaError, match=message):
            scored(train, test, config)
        assert not train.with_name("r.json").exists()

    return check


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ProbeConfig(name="linear"), "fp32"),
        (ProbeConfig(name="linear", precision="bf16"), "bf16"),
        (ProbeConfig(name="knn", precision="bf16"), "fp32"),
        (ProbeConfig(name="logistic", protocol="dinov2", precision="bf16"), "fp64"),
    ],
)
def test_a_score_says_in_what_precision_it_was_computed(tmp_path, scored, config, expected):
    score = scored(*pair(tmp_path, precision="bf16"), config)
    assert (score.precision, score.features_precision) == (expected, "bf16")
    assert score.top1 > 0.9
    assert not any("computed in" in line for line in score.deviations)


def test_features_of_two_precisions_are_named_as_a_deviation(tmp_path, files, scored):
    found = scored(write(tmp_path / "train.h5", precision="bf16"), files.test).deviations
    assert found == ("features computed in bf16 to train on, in fp32 to test on",)


def test_baselines_stand_in_the_same_table_with_a_paired_test(tmp_path, files):
    noise = pair(tmp_path, "random", signal=0.0, encoder="random", weights_sha256="1" * 64)
    ours, theirs = probe(files, [noise], tmp_path / "r.json", LOGISTIC).scores
    assert (ours.encoder, theirs.encoder) == ("ours", "random")
    assert ours.top1 > 0.9 > 0.6 > theirs.top1
    assert ours.p_value is None
    assert theirs.p_value < 1e-6
    assert ours.chance == pytest.approx(1 / 3)
    assert (ours.train_rows, ours.test_rows, ours.num_classes) == (120, 120, 3)
    interval = binomtest(round(ours.top1 * 120), 120).proportion_ci(0.95, method="wilson")
    assert ours.top1_interval == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("name", ON_FEATURES)
def test_every_probe_makes_a_table_that_reads_back(tmp_path, files, name):
    config = ProbeConfig(name=name, shots=(1, 5), draws=3)
    scores = probe(files, [], tmp_path / "r.json", config).scores
    for score in scores:
        low, high = score.top1_interval
        assert 0 <= low <= score.top1 <= high <= 1
        assert (score.draws_std is not None) == (name == "few-shot")
        assert (score.best_on_test is not None) == (name == "linear")
    body = json.loads((tmp_path / "r.json").read_text())
    assert body[0]["config"]["name"] == name
    assert [row["top1"] for row in body] == [score.top1 for score in scores]


def test_probing_again_answers_cached_and_other_features_do_not(tmp_path, files):
    out, other = tmp_path / "r.json", pair(tmp_path, "other", seed=3)
    runs = [(files, {}), (files, {}), (files, {"force": True}), (other, {})]
    cached = [probe(one, [], out, LOGISTIC, Runtime(**how)).cached for one, how in runs]
    assert cached == [False, True, False, False]


def test_an_image_in_train_and_test_is_refused(tmp_path, files, refused):
    refused(
        files.train, write(tmp_path / "test.h5", first=119), "in common, 1 in all, such as 00119"
    )


@pytest.mark.parametrize(
    ("config", "task", "after"),
    [
        (ProbeConfig(name="linear"), "choose among heads steps", 7),
        (ProbeConfig(name="linear"), "train heads steps", 7),
        (ProbeConfig(name="logistic"), "search strengths", 3),
        (ProbeConfig(name="logistic", protocol="dinov2"), "search strengths", 2),
    ],
)
def test_a_stopped_probe_goes_on_to_the_same_result(tmp_path, config, task, after, monkeypatch):
    monkeypatch.setattr("ijepa.probes.linear.SAVE_SECONDS", 0.0)
    pairs = pair(tmp_path, signal=1.0), [pair(tmp_path, "other", signal=0.5)]
    whole = probe(*pairs, tmp_path / "whole.json", config)

    def stop(name, done, total, values=None):
        if name == task and done == after:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        probe(*pairs, tmp_path / "r.json", config, progress=stop)
    again = probe(*pairs, tmp_path / "r.json", config, progress=lambda *step: seen.append(step))
    assert again.scores == whole.scores
    assert min(done for name, done, *_ in seen if name == task) == 0  # of the other encoder
    [first, *_] = [done for name, done, *_ in seen if name == task]
    assert first == after - 1  # the last one was stopped before it was saved
    assert not list(tmp_path.glob("r.json.partial"))


def test_a_killed_force_is_gone_on_with_by_a_probe_without_it(tmp_path, files):
    def stop(name, done, *_):
        if name == "search strengths" and done == 3:
            raise KeyboardInterrupt

    whole = probe(files, [], tmp_path / "r.json", LOGISTIC)
    with pytest.raises(KeyboardInterrupt):
        probe(files, [], tmp_path / "r.json", LOGISTIC, Runtime(force=True), stop)
    assert probe(files, [], tmp_path / "r.json", LOGISTIC).scores == whole.scores


def test_a_few_images_in_train_and_test_under_two_names_are_told_and_many_refused(
    tmp_path, files, scored, refused
):
    many = write(tmp_path / "many.h5", first=1000, copies=7, data_fingerprint="other")
    refused(files.train, many, r"^7 of 120 .* such as 01000 \(00000 in train\), 01001")
    assert scored(*files).repeats == ()
    few = write(tmp_path / "few.h5", first=1000, seed=7, copies=6, data_fingerprint="other")
    assert scored(files.train, few).repeats == tuple(f"{n:05d}" for n in range(1000, 1006))
    report([tmp_path / "r.json"], tmp_path / "r.html")
    assert "6 test images are training images, too" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("weights_sha256", "1" * 64),
        ("which", "context"),
        ("layers", (0, 1)),
        ("pooling", "none"),
        ("image_px", 64),
        ("transform", "squash"),
    ],
)
def test_train_and_test_features_made_otherwise_are_refused(tmp_path, files, refused, name, other):
    test = write(tmp_path / "test.h5", first=500, **{name: other})
    named = "encoder: ours and ours .other weights" if name == "weights_sha256" else name
    refused(files.train, test, f"differ in {named}")


@pytest.mark.parametrize(("part", "first"), [("train", 0), ("test", 1000)])
def test_a_baseline_on_other_images_is_refused(tmp_path, files, part, first):
    for other in (
        files._replace(**{part: write(tmp_path / "moved.h5", first=5000)}),
        files._replace(**{part: write(tmp_path / "moved.h5", first=first, data_fingerprint="x")}),
    ):
        with pytest.raises(IjepaError, match=r"moved.h5 holds other images"):
            probe(files, [other], tmp_path / "r.json", LOGISTIC)


def test_train_and_test_with_other_class_numbers_are_refused(tmp_path, refused):
    train = write(tmp_path / "train.h5", class_names={"class": ["cat", "dog", "eel"]})
    test = write(tmp_path / "test.h5", first=500, class_names={"class": ["cat", "eel", "fox"]})
    refused(train, test, r"numbered otherwise in .*; shard both splits together")


def test_a_label_that_is_not_there_is_refused_with_those_that_are(files, refused):
    asked = ProbeConfig(name="logistic", label="count")
    refused(*files, r"no label 'count'; its labels are: class", asked)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_a_few_images_are_enough_for_every_probe_but_not_any(tmp_path, scored, refused, name):
    for number, (rows, classes) in enumerate([(20, 1), (6, 6), (1, 1)]):
        few = pair(tmp_path, str(number), rows=rows, classes=classes)
        refused(*few, "a probe needs two classes", ProbeConfig(name=name))
    assert scored(*pair(tmp_path, rows=4, classes=2), ProbeConfig(name=name)).test_rows == 4


def stored(path, features, rows, labels=("class",), **header):
    """A feature file of (image, view) rows; labels are the image's number modulo 3, 2, ..."""
    own = {"layers": tuple(range(features.shape[1])), "class_names": dict.fromkeys(labels)}
    images, _ = np.array(rows).T
    numbers = {name: images % (3 - place) for place, name in enumerate(labels)}
    keys = [f"{path.stem}/{image}" for image in images]
    ids = image_ids(keys)
    made, values = header_of(path, **own | header), features.astype(np.float32)
    return write_features(path, made, values, keys=keys, labels=numbers, image_ids=ids)


@pytest.fixture
def tasks(tmp_path):
    """Features that tell two labels apart, `count` and `dist`."""
    paths = []
    for seed, (part, images) in enumerate((("train", 120), ("test", 60))):
        number = np.arange(images)
        features = np.random.default_rng(seed).standard_normal((images, 4, 8))
        features[number, :, number % 3] += 5
        features[number, :, 4 + number % 2] += 5
        rows = [(image, 0) for image in number]
        path = tmp_path / f"{part}.h5"
        paths.append(stored(path, features, rows, ("count", "dist"), transform="squash"))
    return Files(*paths)


def test_augmented_views_train_the_heads_of_a_protocol_that_asks_for_them(tmp_path, scored):
    """Here evaluation views of the training images look like the class after their own."""
    rows = [(image, view) for image in range(600) for view in range(3)]
    features = np.random.default_rng(0).standard_normal((len(rows), 1, 8))
    for number, (image, view) in enumerate(rows):
        features[number, 0, (image + (view == 0)) % 3] += 6
    train = stored(tmp_path / "train.h5", features, rows, num_views=2, augment="rrc-flip")
    clean = 6 * np.eye(3, 8)[np.arange(30) % 3][:, np.newaxis]
    test = stored(tmp_path / "test.h5", clean, [(image, 0) for image in range(30)])
    theirs, ours = (
        scored(train, test, ProbeConfig(name="linear", protocol=protocol))
        for protocol in ("vissl-cifar100", "ijepa")
    )
    assert (theirs.protocol, ours.protocol) == ("vissl-cifar100", "linear")
    assert (theirs.best_on_test, ours.best_on_test) == (1.0, 0.0)
    assert theirs.train_rows == ours.train_rows == 600
    assert "2 stored views of each image, not a new one an epoch" in theirs.deviations


def test_what_is_not_of_a_protocol_is_said(tmp_path, files, scored):
    score = scored(*files, ProbeConfig(name="linear", protocol="vissl-clevr-count"))
    assert score.deviations == (
        "images cut by --crop center, not squash",
        "images of 32 pixels, not of 224",
        "label class, not count",
        "trained on the evaluation view alone, not on flip",
        "batches of all 120 images, not of 256",
    )
    assert score.best_on_test >= score.top1
    page = report([tmp_path / "r.json"], tmp_path / "page.html").out.read_text()
    assert "the protocol: images cut by --crop center, not squash; images of 32" in page.replace(
        "<wbr>", ""
    )


@pytest.mark.parametrize(
    ("name", "protocol", "header", "expected"),
    [
        ("linear", "vissl-cifar100", {}, ["images resized by bilinear, not bicubic interpolation"]),
        ("linear", "vissl-inat18", {}, []),
        ("linear", "mae-lars", {"interpolation": "bicubic"}, []),
        ("logistic", "dinov2", {"image_px": 448}, ["images of 448 pixels, not of 224",
         "images resized by bilinear, not bicubic interpolation",
         "a centre crop of 0.875 of the resized short side, not of 1.0"]),
        ("logistic", "msn", {}, ["features are not the class token before the final norm"]),
        ("few-shot", "msn", {"interpolation": "bicubic"},
         ["images resized by bicubic, not bilinear interpolation",
          "features are not the class token before the final norm"]),
    ],
)  # fmt: skip
def test_a_score_tells_how_its_images_and_features_differ_from_the_protocols(
    tmp_path, scored, name, protocol, header, expected
):
    files = pair(tmp_path, **{"image_px": 224, "crop_fraction": 0.875} | header)
    config = ProbeConfig(name=name, protocol=protocol, shots=(5,), draws=1)
    said = scored(*files, config).deviations
    assert [line for line in said if "train" not in line and "batches" not in line] == expected


def test_test_images_of_which_train_has_no_class_at_all_are_refused(tmp_path, files, refused):
    other = write(tmp_path / "other.h5", seed=7, first=1000, split="val", lowest=3)
    refused(files.train, other, r"no image of any class of 'class'")


def test_an_unknown_protocol_is_refused_with_those_that_are_known(files, refused):
    asked = ProbeConfig(name="knn", protocol="vissl-in1k")
    refused(*files, r"knn has no protocol 'vissl-in1k'; it has ijepa\.", asked)


def test_the_low_level_tasks_are_two_results_in_one_folder(tmp_path, tasks):
    out, words = tmp_path / "out", ["probe", "low-level", "--dry-run", "--device", "cpu", "--json"]
    words += ["--train", str(tasks.train), "--test", str(tasks.test), "--out", str(out)]

    def states():
        runs = json.loads(CliRunner().invoke(app, words).stdout)["runs"]
        assert [one["out"] for one in runs] == [str(out / "count.json"), str(out / "dist.json")]
        return [one["state"] for one in runs]

    assert states() == ["would run", "would run"]
    found = low_level(tasks, [], out, ProbeConfig()).results
    assert [one.out for one in found] == [out / "count.json", out / "dist.json"]
    assert [one.scores[0].protocol for one in found] == ["vissl-clevr-count", "vissl-clevr-dist"]
    assert [one.scores[0].label for one in found] == ["count", "dist"]
    assert all(one.scores[0].top1 > one.scores[0].chance for one in found)
    assert all(one.cached for one in low_level(tasks, [], out, ProbeConfig()).results)
    found[1].out.unlink()
    assert states() == ["cached", "would run"]


def test_a_name_that_several_images_share_is_told(tmp_path, caplog):
    names = tmp_path / "list.txt"
    names.write_text("x.png\ncat/y.png\n")
    keys = ["train/cat/x", "train/cat/y", "train/dog/x", "train/dog/y"]
    assert listed(names, keys).tolist() == [0, 1, 2]
    assert "1 of 2 lines name several images each, such as x.png; write keys" in caplog.text


def test_a_list_names_images_whose_keys_are_escaped(tmp_path):
    names = tmp_path / "list.txt"
    names.write_text("img.0001.jpg\ncat/img.0002\ntrain/cat/img%2E0003\n")
    keys = [f"train/cat/img%2E000{number}" for number in range(5)]
    assert listed(names, keys).tolist() == [1, 2, 3]


def test_a_list_of_training_images_is_matched_by_name(tmp_path, tasks, caplog):
    names, out = tmp_path / "list.txt", tmp_path / "r.json"
    names.write_text("\n".join(["0.JPEG", "train/1", "2", "", "3.png", "4", "5"]))
    config = ProbeConfig(name="few-shot", label="count")
    found = probe(tasks, [], out, config, subsets=[names])
    (setting,) = {score.setting for score in found.scores}
    assert re.fullmatch(r"lists of 6 images \(sha256 [0-9a-f]{8}\)", setting)
    assert "several images" not in caplog.text
    names.write_text("0\nn01440764_10026.JPEG")
    with pytest.raises(IjepaError, match=r"1 of 2 lines name no training image, such as n0144"):
        probe(tasks, [], out, config, subsets=[names])
    with pytest.raises(IjepaError, match=r"Lists .* are for few-shot, not for knn"):
        probe(tasks, [], out, ProbeConfig(name="knn", label="count"), subsets=[names])


def relabel(path, labels):
    """Have some images of a feature file labelled otherwise."""
    with h5py.File(path, "r+") as store:
        for number, label in labels.items():
            store["labels/class"][number] = label


@pytest.mark.parametrize("name", ON_FEATURES)
def test_no_probe_takes_unknown_labels_for_a_class_and_each_counts_classes_that_train_lacks(
    tmp_path, scored, name
):
    files = pair(tmp_path, class_names={"class": ["apple", "pear", "Café", "other"]})
    relabel(files.train, {0: -1, 1: -1})
    relabel(files.test, {3: -1, 4: 3, 5: 3})
    score = scored(*files, ProbeConfig(name=name))
    assert (score.num_classes, score.train_rows, score.test_rows) == (3, 118, 119)
    assert score.deviations[:3] == (
        "2 test images are of classes that train lacks: other",
        "2 images of train without a label left out",
        "1 images of test without a label left out",
    )


def test_retrieval_from_one_file_leaves_each_image_out_and_other_probes_refuse_it(
    tmp_path, files, refused
):
    config, out = ProbeConfig(name="retrieval"), tmp_path / "found.json"
    noise = pair(tmp_path, "random", signal=0.0, encoder="random", weights_sha256="1" * 64)
    one, two = (Files(found.train, found.train) for found in (files, noise))
    ours, theirs = probe(one, [two], out, config).scores
    low, high = ours.metrics["mAP"][1:]
    assert 0.5 < low < ours.metrics["mAP"][0] < high <= 1
    assert theirs.metrics["mAP"][2] < low
    assert theirs.p_value < 1e-3
    assert list(ours.metrics) == ["mAP", "precision at 5", "precision at 10"]
    assert "scored on the split train" in ours.deviations
    report([out], tmp_path / "r.html")
    assert "mAP %" in (tmp_path / "r.html").read_text()
    refused(*one, "have images in common")
