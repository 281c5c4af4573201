"""Scores that may stand in one column, seeds averaged.

Numbers of different protocols, data, splits, labels or images are in different groups, and no table
holds more than one group. A line of a group is one encoder seen in one way, over all its seeds.
"""

import statistics
from collections.abc import Sequence

from pydantic import JsonValue

from ijepa.config import Config
from ijepa.lineage import Lineage
from ijepa.results.record import ProbeResult, Score
from ijepa.stage import fingerprint_of

# Of a probe's configuration: what leaves numbers comparable, or is said elsewhere.
SAID_ELSEWHERE = {"seed", "encoder", "name", "protocol", "label", "precision"}


class Ground(Config):
    """What numbers must share to be compared.

    Attributes:
        protocol: as the results name it, likewise `label`.
        setting: of a probe that has several, such as `5 a class`.
        source: what the shard sets were made from, see `stores.results.joined_source`.
        train_split: of the shard sets, likewise `test_split`.
        train_images: identity of the training set, see `stores.results.image_set`; likewise
            `test_images`.
    """

    protocol: str
    label: str
    setting: str
    source: str
    train_split: str
    test_split: str
    train_images: str
    test_images: str


class Member(Config):
    """One score of a line.

    Attributes:
        encoder: its name, for people.
        seeds: (of the encoder, of the probe); None where an encoder has none.
        interval: 95%, of `top1`; `mean_class_interval` likewise.
        draws_std: over draws of the training subset.
        p_value: against the first encoder of the same result; None for that one.
        best_on_test: see `stores.results.Score`, likewise `choices`.
        is_first: is it the encoder that the result is about?
        result: seal of the result.
    """

    encoder: str
    seeds: tuple[int | None, int]
    top1: float
    interval: tuple[float, float]
    mean_class: float
    mean_class_interval: tuple[float, float]
    draws_std: float | None
    p_value: float | None
    best_on_test: float | None
    choices: dict[str, float | int | str]
    is_first: bool
    result: str


class Line(Config):
    """One encoder, seen in one way; the mean over seeds where there are several.

    Attributes:
        encoder: name of the first member's.
        lineage: of the first member's.
        which: `target` or `context` encoder.
        image_px: side of the evaluated square, or (height, width).
        top1: mean over members, `top1_std` their standard deviation; None for one.
        mean_class: likewise.
        best_on_test: mean of the best on test; None where no member has one.
        settings: of the probe, beyond its protocol.
        departures: in what it is not of the protocol.
        again: members that were measured again, of which the first alone counts, and came out
            otherwise.
    """

    encoder: str
    lineage: Lineage
    which: str
    image_px: int | tuple[int, int]
    top1: float
    top1_std: float | None
    mean_class: float
    mean_class_std: float | None
    best_on_test: float | None
    settings: dict[str, JsonValue]
    departures: tuple[str, ...]
    members: tuple[Member, ...]
    again: tuple[Member, ...]

    @property
    def one(self) -> Member | None:
        """The only member; None where several were averaged."""
        return self.members[0] if len(self.members) == 1 else None


class Group(Config):
    """One table: lines on common ground.

    Attributes:
        description: of the protocol, likewise `selection`.
        chance: share of the most frequent class of the test set.
        repeats: how many there are, see `ProbeResult.repeats`.
    """

    ground: Ground
    description: str
    selection: str
    num_classes: int
    chance: float
    train_rows: int
    test_rows: int
    repeats: int
    lines: tuple[Line, ...]


def grouped(results: Sequence[ProbeResult]) -> tuple[Group, ...]:
    """All scores, each in the group and line where it belongs, in the order in which they came."""
    grounds: dict[Ground, dict[str, list[tuple[ProbeResult, Score]]]] = {}
    families: dict[str, str] = {}  # equal weights are one encoder, whatever made them
    for result in results:
        for score in result.scores:
            weights = score.origin.weights_sha256
            family = families.setdefault(weights, score.origin.lineage.family or weights)
            lines = grounds.setdefault(ground(result, score), {})
            lines.setdefault(_identity(result, score, family), []).append((result, score))
    return tuple(_group(place, list(lines.values())) for place, lines in grounds.items())


def ground(result: ProbeResult, score: Score) -> Ground:
    """Where a score stands."""
    return Ground(
        protocol=result.protocol,
        label=result.label,
        setting=score.setting,
        source=result.source,
        train_split=result.splits.train,
        test_split=result.splits.test,
        train_images=result.train_images,
        test_images=result.test_images,
    )


def _identity(result: ProbeResult, score: Score, family: str) -> str:
    """Equal for scores that differ in seeds only: settings of encoder and probe, and the view."""
    origin = score.origin
    view = [origin.which, origin.layers, origin.pooling, origin.image_px, origin.transform]
    precisions = [origin.precision, score.precision]
    return fingerprint_of([family, view, precisions, _settings(result), score.departures])


def _settings(result: ProbeResult) -> dict[str, JsonValue]:
    return {name: value for name, value in result.config.items() if name not in SAID_ELSEWHERE}


def _group(place: Ground, lines: list[list[tuple[ProbeResult, Score]]]) -> Group:
    first = lines[0][0][0]
    return Group(
        ground=place,
        description=first.description,
        selection=first.selection,
        num_classes=first.num_classes,
        chance=first.chance,
        train_rows=first.train_rows,
        test_rows=first.test_rows,
        repeats=len(first.repeats),
        lines=tuple(_line(scores) for scores in lines),
    )


def _line(scores: list[tuple[ProbeResult, Score]]) -> Line:
    """Scores of equal seeds and weights count once."""
    members: dict[tuple[object, ...], Member] = {}
    again = []
    for result, score in scores:
        member = _member(result, score)
        first = members.setdefault((*member.seeds, score.origin.weights_sha256), member)
        if _numbers(member) != _numbers(first):
            again.append(member)
    result, score = scores[0]
    found = tuple(members.values())
    best = [member.best_on_test for member in found if member.best_on_test is not None]
    return Line(
        encoder=score.origin.encoder,
        lineage=score.origin.lineage,
        which=score.origin.which,
        image_px=score.origin.image_px,
        top1=statistics.mean(member.top1 for member in found),
        top1_std=_std([member.top1 for member in found]),
        mean_class=statistics.mean(member.mean_class for member in found),
        mean_class_std=_std([member.mean_class for member in found]),
        best_on_test=statistics.mean(best) if best else None,
        settings=_settings(result),
        departures=score.departures,
        members=found,
        again=tuple(again),
    )


def _numbers(member: Member) -> tuple[float | None, ...]:
    return member.top1, member.mean_class, member.best_on_test


def _std(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _member(result: ProbeResult, score: Score) -> Member:
    return Member(
        encoder=score.origin.encoder,
        seeds=(score.origin.lineage.seed, result.seed),
        top1=score.top1,
        interval=score.top1_interval,
        mean_class=score.mean_class,
        mean_class_interval=score.mean_class_interval,
        draws_std=score.draws_std,
        p_value=score.p_value,
        best_on_test=score.best_on_test,
        choices=score.choices,
        is_first=score.origin == result.scores[0].origin,
        result=result.seal,
    )
