"""A result says which images were classified rightly, on which set, made how."""

import base64
import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_probe import LOGISTIC, pair

from ijepa.config import ProbeConfig, Runtime
from ijepa.errors import IjepaError
from ijepa.probe import probe
from ijepa.results.record import (
    image_set,
    pack_classes,
    pack_correct,
    read_result,
    unpack_classes,
    unpack_correct,
)


@given(draws=st.integers(1, 3), rows=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_correctness_comes_back_as_packed_in_the_order_of_the_keys(draws, rows, seed):
    rng = np.random.default_rng(seed)
    correct = rng.random((draws, rows)) < 0.5
    keys = [str(number) for number in rng.permutation(1000)[:rows]]
    back = unpack_correct(pack_correct(correct, keys), rows)
    assert (back == correct[:, np.argsort(keys)]).all()


@pytest.mark.parametrize("highest", [1, 65_535, 65_536, 10**9])
def test_classes_come_back_as_packed_however_many_there_are(highest):
    labels = np.array([highest, 0, highest // 2])
    back = unpack_classes(pack_classes(labels, ["c", "a", "b"]), 3)
    assert back.tolist() == [0, highest // 2, highest]


def test_the_identity_of_a_set_is_that_of_its_sorted_pairs_of_key_and_label():
    keys, labels = ["図", "a/1", "ä", "a/1", "\U0001f600", "a"], np.array([0, 10, 2, 10, 1, 9])
    lines = [
        f"{len(key)} {key} {label}\n"
        for key, label in sorted({*zip(keys, labels.tolist(), strict=True)})
    ]
    ours = image_set(keys, labels)
    assert ours == hashlib.sha256("".join(lines).encode()).hexdigest()
    order = np.random.default_rng(0).permutation(len(keys))
    assert image_set([keys[row] for row in order], labels[order]) == ours
    assert image_set([], np.array([], np.int64)) == hashlib.sha256().hexdigest()
    others = [(keys, labels + 1), ([*keys[:-1], "b"], labels), (keys[1:], labels[1:])]
    assert len({ours, *(image_set(*other) for other in others)}) == 4


def test_a_result_says_all_that_produced_it_and_reads_back_the_same(tmp_path):
    files = pair(tmp_path, source="cifar10:somewhere")
    out = tmp_path / "r.json"
    runtime = Runtime(command="ijepa probe logistic")
    result = probe(files, [], out, LOGISTIC, runtime)
    assert read_result(out) == result.scores
    score = result.scores[0]
    assert (score.protocol, score.label, score.seed) == ("logistic", "class", 0)
    assert (score.source, score.command) == ("cifar10:somewhere", "ijepa probe logistic")
    assert {"python", "torch", "numpy", "scikit-learn"} <= set(score.libraries)
    assert (score.encoder, score.weights_sha256) == ("ours", "0" * 64)
    assert (score.which, score.layers, score.image_px) == ("target", (2, 3), 32)
    assert (score.transform, score.data) == ("center-crop", "some data")
    assert score.train_features != score.test_features


def test_the_stored_images_give_the_stored_accuracy_of_every_draw(tmp_path):
    config = ProbeConfig(name="few-shot", shots=(1,), draws=3)
    result = probe(pair(tmp_path, signal=1.0), [], tmp_path / "r.json", config)
    [score] = result.scores
    correct = unpack_correct(score.correct, result.scores[0].test_rows)
    assert correct.shape == (3, 120)
    assert correct.mean() == pytest.approx(score.top1)
    assert correct.mean(axis=1).std(ddof=1) == pytest.approx(score.draws_std)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, r"r\.json is not a result of schema 8, but of another version"),
        ({"probe": None}, r"r\.json"),
        ({"correct": ["?!"]}, r"r\.json: .* not base64"),
        ({"correct": []}, r"r\.json: .* not of the 120 test images"),
        ({"correct": [base64.b64encode(b"abc").decode()]}, r"r\.json: .* 120 test images"),
        ({"surprise": 1}, r"r\.json: surprise is not a known setting"),
    ],
)
def test_a_result_of_another_version_or_damaged_is_refused(tmp_path, change, message):
    out = tmp_path / "r.json"
    probe(pair(tmp_path), [], out, LOGISTIC)
    body = json.loads(out.read_text())
    body[0] |= change
    out.write_text(json.dumps(body))
    with pytest.raises(IjepaError, match=message):
        read_result(out)
