"""The probe stage: whole tables from feature files, and no way to fool oneself with them."""

import json
import re

import h5py
import numpy as np
import pytest
from arrays import write_features
from scipy.stats import binomtest
from typer.testing import CliRunner

from ijepa.config import ProbeConfig, Runtime
from ijepa.data.names import image_ids, listed
from ijepa.errors import IjepaError
from ijepa.features.store import FeatureHeader
from ijepa.probe import PROBES, FeaturePair, low_level, probe
from ijepa.report import report
from ijepa_cli.main import app

LOGISTIC = ProbeConfig(name="logistic")


def write(path, *, rows=120, signal=3.0, seed=0, classes=3, lowest=0, first=0, copies=0, **header):
    """A feature file of `classes` clusters, `signal` apart, in two layers of 8; `lowest` class."""
    rng = np.random.default_rng(seed)
    which = np.arange(rows) % classes
    last = signal * np.eye(classes, 8)[which] + rng.standard_normal((rows, 8))
    defaults = {
        "encoder": "ours",
        "weights_sha256": "0" * 64,
        "which": "target",
        "layers": (2, 3),
        "pooling": "average",
        "image_px": 32,
        "transform": "center-crop",
        "data_fingerprint": "some data",
        "split": "train",
        "class_names": {"class": None},
        "fingerprint": f"{path.name} {seed} {signal}",
    }
    features = np.stack([rng.standard_normal((rows, 8)), last], axis=1).astype(np.float32)
    keys = [f"{number:05d}" for number in range(first, first + rows)]
    images = [*range(copies), *range(first + copies, first + rows)]
    ids = image_ids([f"image {number}".encode() for number in images])
    made = FeatureHeader(**defaults | header)
    write_features(path, made, features, keys=keys, labels={"class": lowest + which}, image_ids=ids)
    return path


def pair(folder, name="ours", **options):
    train = write(folder / f"{name}.train.h5", **options)
    test = write(folder / f"{name}.test.h5", **{"seed": 7, "first": 1000, "split": "val"} | options)
    return FeaturePair(train, test)


@pytest.fixture
def files(tmp_path):
    return pair(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ProbeConfig(name="linear"), "fp32"),
        (ProbeConfig(name="linear", precision="bf16"), "bf16"),
        (ProbeConfig(name="knn", precision="bf16"), "fp32"),
        (ProbeConfig(name="logistic", protocol="dinov2", precision="bf16"), "fp64"),
    ],
)
def test_a_score_says_in_what_precision_it_was_computed(tmp_path, config, expected):
    files = pair(tmp_path, precision="bf16")
    [score] = probe(files, [], tmp_path / "r.json", config).scores
    assert (score.precision, score.features_precision) == (expected, "bf16")
    assert score.top1 > 0.9
    assert not any("computed in" in line for line in score.departures)


def test_features_of_two_precisions_are_named_as_a_departure(tmp_path):
    train = write(tmp_path / "train.h5", precision="bf16")
    test = write(tmp_path / "test.h5", seed=7, first=1000, split="val")
    [score] = probe(FeaturePair(train, test), [], tmp_path / "r.json", LOGISTIC).scores
    assert score.departures == ("features computed in bf16 to train on, in fp32 to test on",)


def test_baselines_stand_in_the_same_table_with_a_paired_test(tmp_path, files):
    noise = pair(tmp_path, "random", signal=0.0, encoder="random", weights_sha256="1" * 64)
    result = probe(files, [noise], tmp_path / "r.json", LOGISTIC)
    ours, theirs = result.scores
    assert (ours.encoder, theirs.encoder) == ("ours", "random")
    assert ours.top1 > 0.9 > 0.6 > theirs.top1
    assert ours.p_value is None
    assert theirs.p_value < 1e-6
    assert result.scores[0].chance == pytest.approx(1 / 3)
    assert (
        result.scores[0].train_rows,
        result.scores[0].test_rows,
        result.scores[0].num_classes,
    ) == (120, 120, 3)


@pytest.mark.parametrize("name", ["logistic", "linear", "knn", "few-shot"])
def test_every_probe_makes_a_table_that_reads_back(tmp_path, files, name):
    config = ProbeConfig(name=name, shots=(1, 5), draws=3)
    result = probe(files, [], tmp_path / "r.json", config)
    for score in result.scores:
        low, high = score.top1_interval
        assert 0 <= low <= score.top1 <= high <= 1
        assert (score.draws_std is not None) == (name == "few-shot")
        assert (score.best_on_test is not None) == (name == "linear")
    body = json.loads((tmp_path / "r.json").read_text())
    assert body[0]["config"]["name"] == name
    assert [row["top1"] for row in body] == [score.top1 for score in result.scores]


def test_the_interval_is_that_of_the_test_images(tmp_path, files):
    score = probe(files, [], tmp_path / "r.json", LOGISTIC).scores[0]
    right = round(score.top1 * 120)
    interval = binomtest(right, 120).proportion_ci(0.95, method="wilson")
    assert score.top1_interval == pytest.approx((interval.low, interval.high))


def test_probing_again_answers_cached_and_other_features_do_not(tmp_path, files):
    out = tmp_path / "r.json"
    assert not probe(files, [], out, LOGISTIC).cached
    assert probe(files, [], out, LOGISTIC).cached
    assert not probe(files, [], out, LOGISTIC, Runtime(force=True)).cached
    other = pair(tmp_path, "other", seed=3)
    assert not probe(other, [], out, LOGISTIC).cached


def test_an_image_in_train_and_test_is_refused(tmp_path):
    train = write(tmp_path / "train.h5")
    test = write(tmp_path / "test.h5", first=119, fingerprint="test")
    with pytest.raises(IjepaError, match=r"1 images .* too, such as 00119"):
        probe(FeaturePair(train, test), [], tmp_path / "r.json", LOGISTIC)


@pytest.mark.parametrize(
    ("config", "task", "after"),
    [
        (ProbeConfig(name="linear"), "choose among heads steps", 7),
        (ProbeConfig(name="linear"), "train heads steps", 7),
        (ProbeConfig(name="logistic"), "search strengths", 3),
        (ProbeConfig(name="logistic", protocol="dinov2"), "search strengths", 20),
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


def test_images_in_train_and_test_under_two_names_are_told(tmp_path):
    files = pair(tmp_path)
    assert probe(files, [], tmp_path / "r.json", LOGISTIC).scores[0].repeats == ()
    test = write(tmp_path / "test.h5", first=1000, seed=7, copies=6, data_fingerprint="other")
    result = probe(FeaturePair(files.train, test), [], tmp_path / "s.json", LOGISTIC)
    assert result.scores[0].repeats == tuple(f"{number:05d}" for number in range(1000, 1006))
    report([tmp_path / "s.json"], tmp_path / "r.html")
    assert "6 test images are training images, too" in (tmp_path / "r.html").read_text()


def test_many_images_in_train_and_test_under_two_names_are_refused(tmp_path):
    files = pair(tmp_path)
    test = write(tmp_path / "test.h5", first=1000, copies=7, data_fingerprint="other")
    with pytest.raises(IjepaError, match=r"^7 of 120 .* such as 01000 \(00000 in train\), 01001"):
        probe(FeaturePair(files.train, test), [], tmp_path / "r.json", LOGISTIC)


@pytest.mark.parametrize(
    "other",
    [
        {"weights_sha256": "1" * 64},
        {"which": "context"},
        {"layers": (0, 1)},
        {"pooling": "none"},
        {"image_px": 64},
        {"transform": "squash"},
    ],
)
def test_train_and_test_features_made_otherwise_are_refused(tmp_path, other):
    train = write(tmp_path / "train.h5")
    test = write(tmp_path / "test.h5", first=500, **other)
    with pytest.raises(IjepaError, match=f"not made alike: {next(iter(other))}"):
        probe(FeaturePair(train, test), [], tmp_path / "r.json", LOGISTIC)
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_baseline_on_other_images_is_refused(tmp_path, files, part):
    other = pair(tmp_path, "other")
    moved = write(tmp_path / "moved.h5", first=5000)
    with pytest.raises(IjepaError, match=r"moved.h5 holds other images"):
        probe(files, [other._replace(**{part: moved})], tmp_path / "r.json", LOGISTIC)


def test_a_baseline_on_another_data_set_with_equal_keys_is_refused(tmp_path, files):
    other = pair(tmp_path, "other", data_fingerprint="drawn with another seed")
    with pytest.raises(IjepaError, match=r"other.train.h5 holds other images"):
        probe(files, [other], tmp_path / "r.json", LOGISTIC)


def test_train_and_test_with_other_class_numbers_are_refused(tmp_path):
    train = write(tmp_path / "train.h5", class_names={"class": ["cat", "dog", "eel"]})
    test = write(tmp_path / "test.h5", first=500, class_names={"class": ["cat", "eel", "fox"]})
    with pytest.raises(IjepaError, match=r"numbered otherwise .* 1 is dog and eel"):
        probe(FeaturePair(train, test), [], tmp_path / "r.json", LOGISTIC)


def test_a_label_that_is_not_there_is_refused_with_those_that_are(tmp_path, files):
    with pytest.raises(IjepaError, match=r"no label 'count'; its labels are: class"):
        probe(files, [], tmp_path / "r.json", ProbeConfig(name="logistic", label="count"))


@pytest.mark.parametrize(("rows", "classes"), [(20, 1), (6, 6), (1, 1)])
def test_labels_that_leave_nothing_to_fit_or_to_choose_on_are_refused(tmp_path, rows, classes):
    files = pair(tmp_path, rows=rows, classes=classes)
    for name in ("logistic", "linear", "knn", "few-shot"):
        with pytest.raises(IjepaError, match="a probe needs two classes"):
            probe(files, [], tmp_path / "r.json", ProbeConfig(name=name))


def test_a_few_images_are_enough_for_every_probe(tmp_path):
    files = pair(tmp_path, rows=4, classes=2)
    for name in ("logistic", "linear", "knn", "few-shot"):
        result = probe(files, [], tmp_path / f"{name}.json", ProbeConfig(name=name))
        assert result.scores[0].test_rows == 4


def stored(path, features, rows, labels=("class",), **header):
    """A feature file of (image, view) rows; labels are the image's number modulo 3, 2, ..."""
    base = {
        "encoder": "ours", "weights_sha256": "0" * 64, "which": "target",
        "layers": tuple(range(features.shape[1])), "pooling": "average", "image_px": 32,
        "transform": "center-crop", "data_fingerprint": "d", "split": path.stem,
        "class_names": dict.fromkeys(labels), "fingerprint": path.name,
    }  # fmt: skip
    images, _ = np.array(rows).T
    numbers = {name: images % (3 - place) for place, name in enumerate(labels)}
    keys = [f"{path.stem}/{image}" for image in images]
    ids = image_ids([key.encode() for key in keys])
    made, values = FeatureHeader(**base | header), features.astype(np.float32)
    write_features(path, made, values, keys=keys, labels=numbers, image_ids=ids)
    return path


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
    return FeaturePair(*paths)


def test_augmented_views_train_the_heads_of_a_protocol_that_asks_for_them(tmp_path):
    """Here evaluation views of the training images look like the class after their own."""
    rows = [(image, view) for image in range(600) for view in range(3)]
    features = np.random.default_rng(0).standard_normal((len(rows), 1, 8))
    for number, (image, view) in enumerate(rows):
        features[number, 0, (image + (view == 0)) % 3] += 6
    train = stored(tmp_path / "train.h5", features, rows, num_views=2, augment="rrc-flip")
    clean = 6 * np.eye(3, 8)[np.arange(30) % 3][:, np.newaxis]
    test = stored(tmp_path / "test.h5", clean, [(image, 0) for image in range(30)])
    found = {}
    for protocol in ("vissl-cifar100", "ijepa"):
        config = ProbeConfig(name="linear", protocol=protocol)
        out = tmp_path / f"{protocol}.json"
        found[protocol] = probe(FeaturePair(train, test), [], out, config)
    assert [one.scores[0].protocol for one in found.values()] == ["vissl-cifar100", "linear"]
    assert found["vissl-cifar100"].scores[0].best_on_test == 1.0
    assert found["ijepa"].scores[0].best_on_test == 0.0
    assert [one.scores[0].train_rows for one in found.values()] == [600, 600]
    assert "2 stored views of each image, not a new one an epoch" in (
        found["vissl-cifar100"].scores[0].departures
    )


def test_an_image_whose_views_are_not_all_there_is_refused(tmp_path):
    rows = [(image, view) for image in range(9) for view in range(2)]
    header = {"num_views": 1, "augment": "flip"}
    train = stored(tmp_path / "train.h5", np.zeros((18, 1, 8)), rows, **header)
    with h5py.File(train, "r+") as store:
        store["view"][3] = 7
    test = stored(tmp_path / "test.h5", np.zeros((18, 1, 8)), rows, **header)
    with pytest.raises(IjepaError, match=r"train\.h5 does not hold views 0 to 1 of each image"):
        probe(FeaturePair(train, test), [], tmp_path / "r.json", LOGISTIC)


def test_what_is_not_of_a_protocol_is_said(tmp_path, files):
    config = ProbeConfig(name="linear", protocol="vissl-clevr-count")
    (score,) = probe(files, [], tmp_path / "r.json", config).scores
    assert score.departures == (
        "images cut by --crop center, not squash",
        "images of 32 pixels, not of 224",
        "label class, not count",
        "trained on the evaluation view alone, not on flip",
        "batches of all 120 images, not of 256",
    )
    assert score.best_on_test >= score.top1
    page = report([tmp_path / "r.json"], tmp_path / "page.html").out.read_text()
    assert "not of the protocol: images cut by --crop center, not squash; images of 32" in page


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
    tmp_path, name, protocol, header, expected
):
    files = pair(tmp_path, **{"image_px": 224, "crop_fraction": 0.875} | header)
    config = ProbeConfig(name=name, protocol=protocol, shots=(5,), draws=1)
    (score,) = probe(files, [], tmp_path / "r.json", config).scores
    said = [line for line in score.departures if "train" not in line and "batches" not in line]
    assert said == expected


@pytest.mark.parametrize("name", PROBES)
def test_test_images_of_classes_that_train_lacks_are_counted_with_the_score(tmp_path, name):
    names = {"class": ["apple", "pear", "Café", "other"]}
    train = write(tmp_path / "train.h5", class_names=names)
    test = write(
        tmp_path / "test.h5", rows=60, classes=4, seed=7, first=1000, split="val", class_names=names
    )
    config = ProbeConfig(name=name, shots=(5,), draws=1)
    (score,) = probe(FeaturePair(train, test), [], tmp_path / "r.json", config).scores
    said = "15 test images are of classes that train lacks: other"
    assert said in score.departures
    assert score.top1 <= 0.75


def test_test_images_of_which_train_has_no_class_at_all_are_refused(tmp_path):
    files = pair(tmp_path)
    other = write(tmp_path / "other.h5", seed=7, first=1000, split="val", lowest=3)
    with pytest.raises(IjepaError, match=r"no image of any class of 'class'"):
        probe(FeaturePair(files.train, other), [], tmp_path / "r.json", LOGISTIC)


def test_files_given_the_wrong_way_round_are_told(tmp_path, files):
    swapped = FeaturePair(files.test, files.train)
    (score,) = probe(swapped, [], tmp_path / "r.json", LOGISTIC).scores
    assert score.departures == ("scored on the split train",)


def test_an_unknown_protocol_is_refused_with_those_that_are_known(tmp_path, files):
    config = ProbeConfig(name="knn", protocol="vissl-in1k")
    with pytest.raises(IjepaError, match=r"knn has no protocol 'vissl-in1k'; it has ijepa\."):
        probe(files, [], tmp_path / "r.json", config)


def test_the_low_level_tasks_are_two_results_in_one_folder(tmp_path, tasks):
    out, words = tmp_path / "out", ["probe", "low-level", "--dry-run", "--device", "cpu", "--json"]
    words += ["--train", str(tasks.train), "--test", str(tasks.test), "--out", str(out)]

    def states():
        runs = json.loads(CliRunner().invoke(app, words).stdout)["runs"]
        assert [one["out"] for one in runs] == [str(out / "count.json"), str(out / "dist.json")]
        return [one["state"] for one in runs]

    assert states() == ["would run", "would run"]
    found = low_level(tasks, [], out, ProbeConfig()).outcomes
    assert [one.out for one in found] == [out / "count.json", out / "dist.json"]
    assert [one.scores[0].protocol for one in found] == ["vissl-clevr-count", "vissl-clevr-dist"]
    assert [one.scores[0].label for one in found] == ["count", "dist"]
    assert all(one.scores[0].top1 > one.scores[0].chance for one in found)
    assert all(one.cached for one in low_level(tasks, [], out, ProbeConfig()).outcomes)
    found[1].out.unlink()
    assert states() == ["cached", "would run"]


def test_a_name_that_several_images_share_is_told(tmp_path, caplog):
    names = tmp_path / "list.txt"
    names.write_text("x.png\ncat/y.png\n")
    keys = ["train/cat/x", "train/cat/y", "train/dog/x", "train/dog/y"]
    assert listed(names, keys).tolist() == [0, 1, 2]
    assert "1 of 2 lines name several images each, such as x.png; write keys" in caplog.text


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
    """A feature file like that of `write`, of which some images are labelled otherwise."""
    with h5py.File(path, "r") as store:
        header = FeatureHeader.model_validate_json(store.attrs["header"])
        features, keys = store["features"][:], [key.decode() for key in store["keys"][:]]
        ids, found = store["image_id"][:], store["labels/class"][:]
    for number, label in labels.items():
        found[number] = label
    path.unlink()
    write_features(path, header, features, keys=keys, labels={"class": found}, image_ids=ids)


@pytest.mark.parametrize("name", ["logistic", "linear", "knn", "few-shot"])
def test_no_probe_takes_unknown_labels_for_a_class_and_each_counts_classes_that_train_lacks(
    files, tmp_path, name
):
    relabel(files.train, {0: -1, 1: -1})
    relabel(files.test, {3: -1, 4: 3, 5: 3})
    result = probe(files, [], tmp_path / "r.json", ProbeConfig(name=name))
    assert result.scores[0].num_classes == 3
    assert (result.scores[0].train_rows, result.scores[0].test_rows) == (118, 119)
    for score in result.scores:
        assert score.departures[:3] == (
            "2 test images are of classes that train lacks: 3",
            "2 images of train without a label left out",
            "1 images of test without a label left out",
        )
