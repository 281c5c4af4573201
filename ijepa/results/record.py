"""Results of probes: one JSON file with scores and all that produced them.

A result keeps which test images were classified rightly, so that any two encoders scored on the
same images can be compared image by image later. It ends with a seal, so that a number changed
afterwards is seen.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from ijepa.config import Config, StrPath, validated
from ijepa.errors import IjepaError
from ijepa.lineage import UNKNOWN, Lineage
from ijepa.stage import fingerprint_of, read_json, write_json

SCHEMA = 5
RESULT = "result.json"  # in the folder of a run
TRAINED_ON = ", trained on "

Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Ints = np.ndarray[tuple[int, ...], np.dtype[Any]]


class Origin(Config):
    """The encoder behind a score, and its features.

    Attributes:
        encoder: name, for people; `weights_sha256` for machines.
        which: `target` or `context`.
        layers: block numbers, ascending, that the probe could choose from.
        pooling: how patch tokens became one vector.
        image_px: side of the evaluated square, or (height, width).
        transform: from image file to square.
        precision: what the features were computed in: `fp32` or `bf16`; None without stored
            features.
        train: fingerprint of the training features, likewise `test`; None without stored features.
        data: fingerprint of the shard set of the test images.
        lineage: where the encoder comes from.
    """

    encoder: str
    weights_sha256: str
    which: str
    layers: tuple[int, ...]
    pooling: str
    image_px: int | tuple[int, int]
    transform: str
    precision: str | None
    train: str | None
    test: str | None
    data: str
    lineage: Lineage = UNKNOWN


class Score(Config):
    """One row of the table: an encoder in one setting of the probe.

    Attributes:
        setting: such as `5 a class`; empty where a probe has one setting only.
        top1: accuracy on the test set, its 95% interval in `top1_interval`; the mean over draws.
        mean_class: mean of the classes' accuracies, likewise.
        draws_std: standard deviation over draws of the training subset; None for one draw.
        best_on_test: the best head chosen on the test set, as papers report it; optimistic.
        p_value: exact McNemar test against the first encoder on the same test images; None for
            the first encoder itself, and where several draws were averaged.
        choices: what was chosen on the held-out part of train, and how well it did there; for a
            fine-tuning, where nothing is chosen, how well the last state did there.
        correct: which test images the chosen head classified rightly, one string a draw; see
            `pack_correct`.
        precision: what the probe, or the fine-tuning, multiplied matrices in: `fp32`, `fp64` or
            `bf16`.
        departures: in what the score is not of the protocol that it is named by.
    """

    setting: str
    origin: Origin
    top1: float
    top1_interval: tuple[float, float]
    mean_class: float
    mean_class_interval: tuple[float, float]
    draws_std: float | None
    best_on_test: float | None
    p_value: float | None
    choices: dict[str, float | int | str]
    correct: tuple[str, ...]
    precision: str
    departures: tuple[str, ...] = ()


class Splits(Config):
    """Names of the splits that a probe was fitted and scored on."""

    train: str
    test: str


class ProbeResult(Config):
    """All scores of one probe on one label; baselines stand beside the first encoder.

    Attributes:
        probe: what was fitted, such as `linear`.
        protocol: short and stable, such as `linear` or `vissl-clevr-count`; only numbers of one
            protocol may be compared.
        description: the protocol in words.
        selection: how choices were made, in words.
        config: of the probe, all of it.
        label: which one was probed.
        seed: of the probe.
        source: what the shard sets were made from, see `joined_source`.
        splits: of the shard sets.
        train_images: identity of the training set, see `image_set`; likewise `test_images`.
        chance: share of the most frequent class of the test set.
        train_rows: of the first encoder; likewise `test_rows`.
        repeats: keys of test images that are training images, too, byte for byte under another
            name.
        test_classes: class of each test image, see `pack_classes`.
        libraries: versions by name.
        command: that made it; empty if it was no command.
    """

    schema_version: int = SCHEMA
    probe: str
    protocol: str
    description: str
    selection: str
    config: dict[str, JsonValue]
    label: str
    seed: int
    source: str
    splits: Splits
    train_images: str
    test_images: str
    num_classes: int
    chance: float
    train_rows: int
    test_rows: int
    scores: tuple[Score, ...]
    repeats: tuple[str, ...]
    test_classes: str
    libraries: dict[str, str]
    command: str
    fingerprint: str

    @property
    def seal(self) -> str:
        """sha256 over all of it; two results of one plan that differ have two."""
        return fingerprint_of(json.loads(self.model_dump_json()))

    @property
    def departures(self) -> tuple[str, ...]:
        """In what any of the scores is not of the protocol, each once."""
        return tuple(dict.fromkeys(line for score in self.scores for line in score.departures))


def joined_source(train: str, test: str) -> str:
    """What the test images were made from, as the user typed it, and the training images, if other.

    Args:
        train: source of the training images' shard set, empty where it is not known.
        test: likewise of the test images.
    """
    return test if train == test else f"{test}{TRAINED_ON}{train or 'unknown data'}"


def source_kinds(source: str) -> set[str]:
    """Kinds of data set in a joined source, such as `cifar10`."""
    return {one.partition(":")[0] for one in source.split(TRAINED_ON)}


def image_set(keys: Sequence[str], labels: Ints) -> str:
    """Identity of a labelled set of images: sha256 over keys and labels, in whatever order.

    Args:
        keys: one a row; several views of an image count once.
        labels: (n,) class numbers.
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

    Args:
        correct: (draws, n) whether each test image was classified rightly.
        keys: of the n images, each once.
    """
    assert len(set(keys)) == correct.shape[1] == len(keys)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    rows = np.packbits(correct[:, order], axis=1)
    return tuple(base64.b64encode(row.tobytes()).decode() for row in rows)


def pack_classes(labels: Ints, keys: Sequence[str]) -> str:
    """Classes of test images as text: little-endian uint16 in ascending order of keys, compressed.

    Above 65,535 classes it is uint32.

    Args:
        labels: (n,) class numbers from 0.
        keys: of the n images, each once.
    """
    assert len(set(keys)) == len(labels) == len(keys)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    numbers = labels[order].astype("<u2" if labels.max(initial=0) < 2**16 else "<u4")
    return base64.b64encode(zlib.compress(numbers.tobytes(), 9)).decode()


def unpack_classes(packed: str, num_images: int) -> Ints:
    """(n,) class numbers in ascending order of keys.

    Raises:
        IjepaError: it does not hold so many images.
    """
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
    """(draws, n) whether each test image was classified rightly, in ascending order of keys.

    Raises:
        IjepaError: it does not hold so many images.
    """
    try:
        rows = [np.frombuffer(base64.b64decode(text, validate=True), np.uint8) for text in packed]
    except ValueError as error:
        raise IjepaError(f"A score's `correct` is not base64 ({error}).") from error
    if not rows or {len(row) for row in rows} != {-(-num_images // 8)}:
        raise IjepaError(f"A score's `correct` is not of the {num_images:,} test images.")
    return np.unpackbits(np.stack(rows), axis=1, count=num_images).astype(np.bool_)


def write_result(path: Path, result: ProbeResult) -> None:
    """Write a whole file or none."""
    write_json(path, json.loads(result.model_dump_json()) | {"seal": result.seal})


def is_result(path: Path) -> bool:
    """Is there a file of `ijepa probe` or `ijepa finetune`, whatever its version?"""
    return path.is_file() and "probe" in read_json(path)


def read_result(path: StrPath) -> ProbeResult:
    """Read what `ijepa probe` or `ijepa finetune` wrote, a file or the folder of a run.

    Raises:
        IjepaError: not there, not a result of this version, damaged, or changed since.
    """
    path = Path(path)
    path = path / RESULT if path.is_dir() else path
    if not path.is_file():
        raise IjepaError(f"There is no result {path}; make one with `ijepa probe`.")
    body = read_json(path)
    if "probe" not in body:
        raise IjepaError(
            f"{path} is not a result of `ijepa probe` or `ijepa finetune`: it holds "
            f"{', '.join(sorted(body)[:5]) or 'nothing'}. Name another file."
        )
    if body.get("schema_version") != SCHEMA:
        raise IjepaError(
            f"{path} is not a result of schema {SCHEMA}, but of another version of ijepa: run what "
            f"made it again, or read it with that version."
        )
    seal = body.pop("seal", None)
    result = validated(ProbeResult, body, str(path))
    if seal != result.seal:
        raise IjepaError(
            f"{path} is not as it was written: it was changed afterwards. Restore it, or run "
            f"what made it again with --force."
        )
    for score in result.scores:
        try:
            unpack_correct(score.correct, result.test_rows)
        except IjepaError as error:
            raise IjepaError(f"{path}: {error}") from error
    return result
