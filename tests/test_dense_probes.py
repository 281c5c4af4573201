"""Dense probes: heads on patch tokens learn maps, and are scored as others would score them."""

import numpy as np
import pytest
import torch
from runs import CPU
from sklearn.metrics import jaccard_score

from ijepa.config import ProbeConfig, Runtime
from ijepa.errors import IjepaError
from ijepa.extract import ExtractConfig, extract
from ijepa.features.store import open_features
from ijepa.probe import probe
from ijepa.probe.fitting import KeptStates
from ijepa.probes.arrays import ProbeRequest
from ijepa.probes.dense import Dense, Head, dense, dense_summary, image_sums, measure
from ijepa.probes.protocols import DENSE_PROTOCOLS, DenseHead, DenseProtocol
from ijepa.report import report
from ijepa.shard import shard
from ijepa.stage import DryRun

QUICK = DenseProtocol(
    heads=(DenseHead("batch", 1e-2), DenseHead("none", 1e-2)),
    steps=60,
    bins=32,
    schedule=lambda done: 1 - done,
    weight_decay=0.0,
    source="a test",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in DENSE_PROTOCOLS:
        monkeypatch.setitem(DENSE_PROTOCOLS[name], "ijepa", QUICK)


def tokens_that_tell(num, seed, *, depth=False):
    """Tokens on a grid of 4 x 4 whose first numbers tell the class or depth of 8 x 8 pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (num, 4, 4))
    values = (coarse + 1.0) if depth else coarse
    tokens = rng.standard_normal((num, 16, 6)).astype(np.float32)
    tokens[:, :, :3] += 4 * np.eye(3)[coarse.reshape(num, 16)]
    maps = values.repeat(2, axis=1).repeat(2, axis=2)
    maps = maps.astype(np.float32 if depth else np.uint8)
    maps[:, 0, :2] = 0 if depth else 255  # not known
    return Dense(tokens, maps, np.arange(num), (4, 4), 0 if depth else 3)


@pytest.mark.parametrize(("name", "least"), [("segmentation", 0.6), ("depth", 0.42)])
def test_a_head_learns_what_tokens_tell_and_nothing_from_others(name, least):
    is_depth = name == "depth"
    train, test = (tokens_that_tell(n, s, depth=is_depth) for n, s in ((48, 0), (24, 1)))
    request = ProbeRequest(ProbeConfig(name=name, label="seg"))
    [fit] = dense(train, test, request)
    found = measure(fit.predictions.sum(axis=0))
    headline = next(iter(found.values()))
    assert headline > least
    assert fit.best_on_test >= headline
    assert set(fit.choices) == {"head", "held_out"}
    [again] = dense(train, test, request)
    assert np.array_equal(again.predictions, fit.predictions)
    noise = train._replace(tokens=np.random.default_rng(2).standard_normal((48, 16, 6), np.float32))
    [blind] = dense(noise, test, request)
    assert next(iter(measure(blind.predictions.sum(axis=0)).values())) < headline - 0.08


@pytest.mark.parametrize(
    ("name", "protocol", "rates"),
    [  # factors after 1/4 of the warmup, at its end, after half of the training
        ("segmentation", "dinov2", (0.25 * (1 - 375 / 40_000), 1 - 1500 / 40_000, 0.5)),
        ("segmentation", "dinov3", (0.25 * (1 - 375 / 40_000), 0.99653, 0.5)),
        ("depth", "dinov2", (0.25 * 0.98296, 0.75, 0.5)),  # the warmup is a third of the cosine
    ],
)
def test_schedules_of_dinov2_and_dinov3_are_the_published_ones(name, protocol, rates):
    found = DENSE_PROTOCOLS[name][protocol]
    warmup = 12_800 / 38_400 if name == "depth" else 1500 / 40_000
    assert [found.schedule(done) for done in (warmup / 4, warmup, 0.5)] == pytest.approx(
        rates, rel=1e-4
    )


@pytest.mark.parametrize("stop", [20, 75])  # while choosing among heads, and while training them
def test_a_stopped_training_goes_on_to_the_same_scores(stop, monkeypatch, tmp_path):
    monkeypatch.setattr("ijepa.probes.dense.SAVE_SECONDS", 0.0)
    train, test = tokens_that_tell(20, 0), tokens_that_tell(9, 1)
    steps = []

    def progress(*step):
        steps.append(step)
        if len(steps) == stop:
            raise KeyboardInterrupt

    request = ProbeRequest(ProbeConfig(name="segmentation", label="seg"), progress=progress)
    with pytest.raises(KeyboardInterrupt):
        dense(train, test, request._replace(states=KeptStates(tmp_path / "kept.pt")))
    [again] = dense(train, test, request._replace(states=KeptStates(tmp_path / "kept.pt")))
    assert len(steps) == 2 * QUICK.steps + 1  # the stopped one twice
    [whole] = dense(train, test, request)
    assert np.array_equal(again.predictions, whole.predictions)
    assert again.choices == whole.choices


def test_what_cannot_be_trained_or_scored_is_said_in_a_line():
    train, test = tokens_that_tell(20, 0), tokens_that_tell(9, 1)
    request = ProbeRequest(ProbeConfig(name="segmentation", label="seg"))
    with pytest.raises(IjepaError, match="No pixel of the test images has a known class"):
        dense(train, test._replace(maps=np.full_like(test.maps, 255)), request)


def test_iou_and_accuracy_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, (9, 7, 6)).astype(np.uint8)
    true[true == 4] = 255  # ignored; of classes 0 to 4, the last never occurs in the truth
    logits = rng.standard_normal((9, 5, 7, 6)) + 2 * (np.arange(5)[:, None, None] == true[:, None])
    each = zip(logits.argmax(axis=1), true, strict=True)
    found = measure(np.stack([image_sums(*one, 5) for one in each]).sum(axis=0))
    known = true != 255
    labels, answers = true[known], logits.argmax(axis=1)[known]
    each = jaccard_score(labels, answers, labels=range(5), average=None, zero_division=0)
    assert found["IoU"] == pytest.approx(each)
    assert found["mIoU"] == pytest.approx(each.mean())
    assert found["pixel accuracy"] == pytest.approx((labels == answers).mean())
    recalls = [(answers[labels == c] == c).mean() for c in range(4)]
    assert found["mean accuracy"] == pytest.approx(np.mean(recalls))


def test_depth_is_scored_image_by_image():
    rng = np.random.default_rng(0)
    true, answer = rng.uniform(1, 5, (2, 3, 8, 8)).astype(np.float32)
    true[:, :2], true[2] = 0, 0  # not known; all of the last image
    sums = np.stack([image_sums(a, t, 0) for a, t in zip(answer, true, strict=True)])
    found, expected = measure(sums.sum(axis=0)), []
    for a, t in zip(answer[:2, 2:], true[:2, 2:], strict=True):
        ratio = np.maximum(a / t, t / a)
        expected.append((
            (ratio < 1.25).mean(), np.sqrt(((a - t) ** 2).mean()), (np.abs(a - t) / t).mean()
        ))  # fmt: skip
    assert list(found.values()) == pytest.approx(np.mean(expected, axis=0), rel=1e-5)


def test_depth_of_a_head_is_that_of_upsampled_tokens():
    """Upsampling by 4 before the layer, as published, and after it are the same."""
    data = tokens_that_tell(5, 0, depth=True)
    head = Head(DenseHead("none", 1e-3), data, QUICK, (0.0, 1.0), seed=3).eval()
    torch.nn.init.normal_(head.linear.weight)
    tokens = torch.from_numpy(data.tokens)
    grid = tokens.view(5, 4, 4, 6).permute(0, 3, 1, 2)
    large = torch.nn.functional.interpolate(grid, scale_factor=4, mode="bilinear")
    weights = torch.einsum("ndhw,kd->nkhw", large, head.linear.weight).relu() + 0.1
    depth = (weights * head.bins[:, None, None]).sum(dim=1) / weights.sum(dim=1)
    small = torch.nn.functional.interpolate(depth[:, None], (8, 8), mode="bilinear")[:, 0]
    torch.testing.assert_close(head(tokens, (8, 8)), small, rtol=1e-4, atol=1e-4)


def test_intervals_cover_and_the_paired_test_finds_a_better_encoder():
    rng = np.random.default_rng(0)

    def sums(share):
        right = rng.binomial(100, share, (40, 2)).astype(float)
        wrong = 100 - right
        return np.concatenate([right, right + wrong[:, ::-1], np.full((40, 2), 100.0)], axis=1)

    good, bad = sums(0.8), sums(0.6)
    told = dense_summary(bad, good, ("one", "two"))
    low, high = told["top1_interval"]
    assert low < told["top1"] < high < low + 0.1
    assert (told["headline"], set(told["by_class"])) == ("mIoU", {"one", "two"})
    assert told["p_value"] < 0.01
    assert dense_summary(good, good, ("one", "two"))["p_value"] == 1.0


@pytest.mark.parametrize("images", [1, 2, 4])
def test_few_images_show_no_difference_however_large_it_is(images):
    good, bad = (np.tile([hits, 0, 100, 0, 100, 0.0], (images, 1)) for hits in (99.0, 1.0))
    told = dense_summary(good, bad, ("one", "two"))
    assert told["p_value"] == pytest.approx(2 ** (1 - images), abs=0.05)  # all, or none exchanged


def test_encoders_that_are_alike_seldom_differ():
    rng = np.random.default_rng(0)
    depth = np.concatenate([rng.random((200, 2, 12, 3)), np.ones((200, 2, 12, 1))], axis=3)
    found = [dense_summary(one, other, ())["p_value"] for one, other in depth]
    assert np.mean(np.array(found) < 0.05) < 0.09
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    shard("scenes:train=24,val=12,px=16,dense=yes", folder / "set", runtime=Runtime(workers=1))
    for split in ("train", "val"):
        config = ExtractConfig(encoder="pixels/4", split=split, tokens=True, image_px=16)
        extract(folder / "set", folder / f"{split}.h5", config, CPU)
    return folder


def test_maps_stand_in_the_feature_file_in_the_view_of_the_images(scenes):
    from ijepa.data.shards import open_shards

    store = open_features(scenes / "val.h5", check_tokens=True)
    assert store.header.dense["color"].names[1] == "gray"
    assert store.header.dense["depth"].unit == "CLEVR units"
    reader = open_shards(scenes / "set").split("val")
    for name in ("shape", "depth"):
        assert np.array_equal(store.maps(name)[5], reader.read_map(5, name)), name
    with pytest.raises(IjepaError, match=r"no dense label 'shap' .did you mean 'shape'"):
        store.maps("shap")


@pytest.mark.parametrize(("name", "label"), [("segmentation", "shape"), ("depth", "depth")])
def test_from_files_to_scores_and_the_page(scenes, tmp_path, name, label):
    pair = (scenes / "train.h5", scenes / "val.h5")
    config = ProbeConfig(name=name, label=label)
    first, second = probe(pair, [pair], tmp_path / "r.json", config, CPU).scores
    assert first.top1 == second.top1
    assert second.p_value == 1.0
    assert first.headline == {"segmentation": "mIoU", "depth": "delta1"}[name]
    assert 0 < first.chance < 1
    assert probe(pair, [pair], tmp_path / "r.json", config, CPU).cached
    dry = CPU.model_copy(update={"dry_run": True})
    with pytest.raises(DryRun, match=r"r\.json: cached$"):
        probe(pair, [pair], tmp_path / "r.json", config, dry)
    cost = "4 trainings of 2 heads, each 60 steps, 40 epochs of 24 images"
    with pytest.raises(DryRun, match=rf"would run \(nothing is there yet; {cost}\)"):
        probe(pair, [pair], tmp_path / "new.json", config, dry)
    report([tmp_path / "r.json"], tmp_path / "page.html")
    assert first.headline in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("segmentation", "depth", "segmentation needs a label of classes; 'depth' is none"),
        ("depth", "shape", "depth needs a label of depth; 'shape' is none"),
        ("depth", "nothing", "no dense label 'nothing'"),
        ("logistic", "shape", "no label 'shape'"),
    ],
)
def test_a_label_of_another_kind_is_one_line(scenes, tmp_path, name, label, message):
    pair = (scenes / "train.h5", scenes / "val.h5")
    with pytest.raises(IjepaError, match=message):
        probe(pair, [], tmp_path / "r.json", ProbeConfig(name=name, label=label), CPU)
    assert not (tmp_path / "r.json").exists()
