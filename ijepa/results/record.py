"""Scores: flat records, one an encoder and setting, each with all that produced it.

A result file is a JSON list of them. A score keeps which test images were classified rightly, so
that any two encoders scored on the same images can be compared image by image later.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, JsonValue

from ijepa.arrays import Bools, Ints
from ijepa.config import Config, FinetuneConfig, ProbeConfig, StrPath, validated
from ijepa.errors import IjepaError
from ijepa.files import fingerprint_of, parse_json, write_json
from ijepa.provenance import NO_POOLING, UNKNOWN, Provenance
from ijepa.records import library_versions

SCHEMA = 8
RESULT = "result.json"  # in the folder of a run
TRAINED_ON = ", trained on "


class Score(Config):
    """What one encoder reached in one setting of a probe, or after fine-tuning.

    Attributes:
        probe: what was fitted, such as `linear`; `config` is all of its settings.
        protocol: short and stable, such as `linear` or `vissl-clevr-count`; only scores of one
            protocol may be compared. `description` and `selection` say it in words.
        setting: such as `5 a class`; empty where a probe has one setting only.
        encoder: name, for people; `weights_sha256` for machines.
        which: `target` or `context`.
        layers: block numbers, ascending, that the probe could choose from.
        pooling: how patch tokens became one vector.
        image_px: side of the evaluated square, or (height, width).
        transform: from image file to square.
        features_precision: what the features were computed in: `fp32` or `bf16`; None without
            stored features.
        train_features: fingerprint of the training features, likewise `test_features`; None without
            stored features.
        data: fingerprint of the shard set of the test images.
        source: what the shard sets were made from, see `joined_source`.
        train_images: identity of the training set, see `image_set`; likewise `test_images`.
        num_classes: of the training images.
        chance: what a constant guess reaches: the share of the most frequent class in the test set
            (not 1 / classes); of dense probes see `guess`.
        repeats: keys of test images that are training images, too, byte for byte under another
            name.
        headline: what `top1` is: `top-1`; `mIoU` or `delta1` of dense probes, also shares of 1 of
            which more is better.
        measures: further numbers of a dense probe by name, each with its 95% interval; of RMSE (in
            units of depth) and absolute relative error less is better.
        by_class: IoU of each class of a segmentation that occurs.
        top1: accuracy on the test set, its 95% interval in `top1_interval`; the mean over draws.
        mean_class: mean of the classes' accuracies, likewise; of depth, `top1` again.
        draws_std: standard deviation over draws of the training subset; None for one draw.
        best_on_test: the best head chosen on the test set, as papers report it; optimistic.
        p_value: exact McNemar test against the first encoder of the file on the same test images,
            of dense probes a paired randomisation test; None for the first encoder itself, and
            where several draws were averaged.
        choices: what was chosen on the held-out part of train, and how well it did there; for a
            fine-tuning, where nothing is chosen, how well the last state did there.
        correct: which test images the chosen head classified rightly, one string a draw; see
            `pack_correct`. Dense probes have none.
        test_classes: class of each test image, see `pack_classes`.
        metrics: further shares by name, such as mAP, each with the ends of its 95% interval.
        precision: what the probe or fine-tuning multiplied matrices in: `fp32`, `fp64` or `bf16`.
        deviations: from the protocol that it names, one line each.
        command: that made it; empty if it was no command.
        fingerprint: of the stage that made it, and its inputs.
    """

    schema_version: int = SCHEMA
    probe: str
    protocol: str
    description: str
    selection: str
    setting: str
    label: str
    seed: int
    config: dict[str, JsonValue]
    encoder: str
    weights_sha256: str
    which: str
    layers: tuple[int, ...]
    pooling: str
    image_px: int | tuple[int, int]
    transform: str
    features_precision: str | None
    train_features: str | None
    test_features: str | None
    provenance: Provenance = UNKNOWN
    data: str
    source: str
    train_split: str
    test_split: str
    train_images: str
    test_images: str
    num_classes: int
    chance: float
    train_rows: int
    test_rows: int
    repeats: tuple[str, ...]
    headline: str = "top-1"
    measures: dict[str, tuple[float, float, float]] = Field(default_factory=dict)
    by_class: dict[str, float] = Field(default_factory=dict)
    top1: float
    top1_interval: tuple[float, float]
    mean_class: float
    mean_class_interval: tuple[float, float]
    draws_std: float | None
    best_on_test: float | None
    p_value: float | None
    choices: dict[str, float | int | str]
    correct: tuple[str, ...]
    test_classes: str
    metrics: dict[str, tuple[float, float, float]] = Field(default_factory=dict)
    precision: str
    deviations: tuple[str, ...] = ()
    libraries: dict[str, str]
    command: str
    fingerprint: str

    @property
    def weights(self) -> str:
        """Equal for equal weights; pixels, which have none, are told apart by their name."""
        return self.encoder if self.pooling == NO_POOLING else self.weights_sha256

    @property
    def family(self) -> str:
        """Equal for encoders that differ in their seed only."""
        known = None if self.pooling == NO_POOLING else self.provenance.family
        return known or self.weights

    @property
    def guess(self) -> str:
        """What reaches `chance`, in words."""
        if self.headline == "delta1":
            return "always answering the median depth"
        return "always guessing the most frequent class"


Scores = tuple[Score, ...]  # of one file: setting by setting, the first encoder before baselines


def result_id(scores: Scores) -> str:
    """sha256 over all of a result; two results of one plan that differ have two."""
    return fingerprint_of([json.loads(score.model_dump_json()) for score in scores])


def joined_source(train: str, test: str) -> str:
    """What the test images were made from, as the user typed it, and the training images, if other.

    `train` is empty where it is not known.
    """
    return test if train == test else f"{test}{TRAINED_ON}{train or 'unknown data'}"


def source_kinds(source: str) -> set[str]:
    """Kinds of data set in a joined source, such as `cifar10`."""
    return {one.partition(":")[0] for one in source.split(TRAINED_ON)}


LabelledKeys = tuple[Sequence[str], Ints]  # n keys and (n,) class numbers of images


def shared_fields(
    config: ProbeConfig | FinetuneConfig, train: LabelledKeys, test: LabelledKeys
) -> dict[str, Any]:
    """Fields of a score that follow from its settings, its images and their classes."""
    (train_keys, train_labels), (test_keys, test_labels) = train, test
    return {
        "config": config.model_dump(mode="json"),
        "label": config.label,
        "seed": config.seed,
        "train_images": image_set(train_keys, train_labels),
        "test_images": image_set(test_keys, test_labels),
        "num_classes": len(np.unique(train_labels)),
        "chance": float(np.bincount(test_labels).max() / len(test_labels)),
        "train_rows": len(train_labels),
        "test_rows": len(test_labels),
        "test_classes": pack_classes(test_labels, test_keys),
        "libraries": library_versions(),
    }


def image_set(keys: Sequence[str], labels: Ints) -> str:
    """Identity of a labelled set of images: sha256 over keys and labels, in whatever order.

    `keys` are one a row, `labels` (n,) class numbers; several views of an image count once.
    """
    assert len(keys) == len(labels)
    digest, last = hashlib.sha256(), None
    for row in np.lexsort([labels, np.array([key.encode() for key in keys])]):  # as code points do
        key, label = keys[row], labels[row]
        if (key, label) != last:
            digest.update(f"{len(key)} {key} {label}\n".encode())
        last = key, label
    return digest.hexdigest()


def pack_correct(correct: Bools, keys: Sequence[str]) -> tuple[str, ...]:
    """What `Score.correct` holds: base64 of eight images a byte, in ascending order of keys.

    `correct` is (draws, n), whether each test image was classified rightly; `keys` are of the n
    images, each once.
    """
    rows = np.packbits(correct[:, _order(keys, correct.shape[1])], axis=1)
    return tuple(base64.b64encode(row.tobytes()).decode() for row in rows)


def pack_classes(labels: Ints, keys: Sequence[str]) -> str:
    """Classes of test images as text: little-endian uint16 in ascending order of keys, compressed.

    Above 65,535 classes it is uint32. `labels` are (n,) class numbers from 0.
    """
    numbers = labels[_order(keys, len(labels))]
    numbers = numbers.astype("<u2" if labels.max(initial=0) < 2**16 else "<u4")
    return base64.b64encode(zlib.compress(numbers.tobytes(), 9)).decode()


def _order(keys: Sequence[str], num_images: int) -> list[int]:
    assert len(set(keys)) == len(keys) == num_images
    return sorted(range(len(keys)), key=keys.__getitem__)


def unpack_classes(packed: str, num_images: int) -> Ints:
    """(n,) class numbers in ascending order of keys."""
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(packed, validate=True), 4 * num_images + 1)
    except (ValueError, zlib.error) as error:
        raise IjepaError(f"A result's `test_classes` cannot be read ({error}).") from error
    if len(content) not in (2 * num_images, 4 * num_images):
        raise IjepaError(f"A result's `test_classes` is not of the {num_images:,} test images.")
    number_type = "<u2" if len(content) == 2 * num_images else "<u4"
    return np.frombuffer(content, number_type).astype(np.int64)


def unpack_correct(packed: Sequence[str], num_images: int) -> Bools:
    """(draws, n) whether each test image was classified rightly, in ascending order of keys."""
    try:
        rows = [np.frombuffer(base64.b64decode(text, validate=True), np.uint8) for text in packed]
    except ValueError as error:
        raise IjepaError(f"A score's `correct` is not base64 ({error}).") from error
    if not rows or {len(row) for row in rows} != {-(-num_images // 8)}:
        raise IjepaError(f"A score's `correct` is not of the {num_images:,} test images.")
    return np.unpackbits(np.stack(rows), axis=1, count=num_images).astype(np.bool_)


def write_result(path: Path, scores: Scores) -> None:
    """Write a whole file or none."""
    write_json(path, [json.loads(score.model_dump_json()) for score in scores])


def is_result(path: Path) -> bool:
    """Is there a file of `ijepa probe` or `ijepa finetune`?"""
    return path.is_file() and _is_result(_read(path))


def read_result(path: StrPath) -> Scores:
    """Read what `ijepa probe` or `ijepa finetune` wrote, a file or the folder of a run.

    Raises:
        IjepaError: not there, not a result of this version, or damaged.
    """
    folder = path = Path(path)
    path = folder / RESULT if folder.is_dir() else path
    if not path.is_file() and (found := [f for f in sorted(folder.glob("*.json")) if is_result(f)]):
        raise IjepaError(f"{folder} is a folder of results; name {' or '.join(map(str, found))}.")
    if not path.is_file():
        raise IjepaError(
            f"There is no result {path}; `ijepa probe` and `ijepa finetune` make results, and "
            f"`ijepa pretrain` a run."
        )
    body = _read(path)
    if not _is_result(body):
        held = ", ".join(sorted(body)[:5]) if isinstance(body, dict) else type(body).__name__
        raise IjepaError(
            f"{path} is not a result of `ijepa probe` or `ijepa finetune`: it holds "
            f"{held or 'nothing'}. Name another file."
        )
    if any(one.get("schema_version") != SCHEMA for one in body):
        raise IjepaError(
            f"{path} is not a result of schema {SCHEMA}, but of another version of ijepa: run what "
            f"made it again, or read it with that version."
        )
    scores = tuple(validated(Score, one, str(path)) for one in body)
    for score in (one for one in scores if one.headline == "top-1"):
        try:
            unpack_correct(score.correct, score.test_rows)
        except IjepaError as error:
            raise IjepaError(f"{path}: {error}") from error
    return scores


def _read(path: Path) -> Any:  # noqa: ANN401  # whatever JSON it holds
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise IjepaError(f"{path} is not JSON ({error}); name another file.") from error


def _is_result(body: object) -> bool:
    if not (isinstance(body, list) and body):
        return False
    return all(isinstance(one, dict) and "probe" in one for one in body)
