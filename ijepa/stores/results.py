"""Results of probes: one JSON file with scores and all that produced them."""

from pathlib import Path

from ijepa.config import Config, ProbeConfig, validated
from ijepa.errors import IjepaError
from ijepa.stores.stage import read_json

SCHEMA = 1


class Origin(Config):
    """The two feature files behind a score.

    Attributes:
        encoder: name, for people; `weights_sha256` for machines.
        train: fingerprint of the training features; likewise `test`.
        data: fingerprint of the shard set of the test features.
    """

    encoder: str
    weights_sha256: str
    train: str
    test: str
    data: str


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
        choices: what was chosen on the held-out part of train.
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


class ProbeResult(Config):
    """All scores of one probe on one label; baselines stand beside the first encoder.

    Attributes:
        selection: how choices were made, in words.
        chance: share of the most frequent class of the test set.
        train_rows: of the first encoder; likewise `test_rows`.
    """

    schema_version: int = SCHEMA
    probe: str
    protocol: str
    selection: str
    config: ProbeConfig
    num_classes: int
    chance: float
    train_rows: int
    test_rows: int
    scores: tuple[Score, ...]
    fingerprint: str


def read_result(path: Path) -> ProbeResult:
    """Read what `ijepa probe` wrote.

    Raises:
        IjepaError: not there, or not a result of this version.
    """
    if not path.is_file():
        raise IjepaError(f"There is no result {path}; make one with `ijepa probe`.")
    body = read_json(path)
    if body.get("schema_version") != SCHEMA:
        raise IjepaError(f"{path} is not a probe result of schema {SCHEMA}; probe again.")
    return validated(ProbeResult, body, str(path))
