"""Two encoders on one test set, image by image."""

from pathlib import Path

from ijepa.config import Config, StrPath
from ijepa.errors import IjepaError
from ijepa.results.record import (
    Ints,
    ProbeResult,
    Score,
    read_result,
    unpack_classes,
    unpack_correct,
)

SAME = ("protocol", "label", "train_images", "test_images")  # or numbers say nothing of each other


class Comparison(Config):
    """What one encoder gets right that another does not, in one setting of a probe.

    Attributes:
        setting: as in the results.
        encoders: names of the two.
        top1: accuracy of each.
        difference: of the first less the second; its 95% interval by a paired bootstrap.
        only_first: images that the first alone classifies rightly; likewise `only_second`.
        mean_class_difference: of the means of the classes' accuracies, its 95% interval by a paired
            bootstrap within each class.
        p_value: exact two-sided McNemar test.
    """

    setting: str
    encoders: tuple[str, str]
    top1: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    mean_class_difference: float
    mean_class_interval: tuple[float, float]
    only_first: int
    only_second: int
    p_value: float


class Comparisons(Config):
    """Of two results, setting by setting."""

    protocol: str
    label: str
    test_rows: int
    rows: tuple[Comparison, ...]


def compare(first: StrPath, second: StrPath) -> Comparisons:
    """Compare the first encoders of two results, which must be of one protocol and of one data.

    Raises:
        IjepaError: they are not, depart from the protocol otherwise, or average several draws.
    """
    first, second = Path(first), Path(second)
    one, other = read_result(first), read_result(second)
    alike = {what: (getattr(one, what), getattr(other, what)) for what in SAME}
    alike |= {
        "settings": (list(_firsts(one)), list(_firsts(other))),
        "departures": (_departures(one), _departures(other)),
    }
    for what, (ours, theirs) in alike.items():
        if ours != theirs:
            name = what.replace("_", " ")
            raise IjepaError(
                f"{first} and {second} cannot be compared: {name} is {_said(ours)} and "
                f"{_said(theirs)}. Probe both encoders alike, on the same images."
            )
    pairs = zip(_firsts(one).values(), _firsts(other).values(), strict=True)
    labels = unpack_classes(one.test_classes, one.test_rows)
    rows = tuple(_compared(a, b, one.test_rows, labels) for a, b in pairs if _is_one_draw(a))
    if not rows:
        raise IjepaError(f"{first} averages several draws; compare probes that are fitted once.")
    return Comparisons(protocol=one.protocol, label=one.label, test_rows=one.test_rows, rows=rows)


def _firsts(result: ProbeResult) -> dict[str, Score]:
    """The first encoder's score of each setting."""
    found: dict[str, Score] = {}
    for score in result.scores:
        found.setdefault(score.setting, score)
    return found


def _departures(result: ProbeResult) -> list[str]:
    """Of the first encoder, in all settings."""
    return sorted({line for score in _firsts(result).values() for line in score.departures})


def _said(found: str | list[str]) -> str:
    return found if isinstance(found, str) else "; ".join(found) or "none"


def _is_one_draw(score: Score) -> bool:
    return len(score.correct) == 1


def _compared(first: Score, second: Score, test_rows: int, labels: Ints) -> Comparison:
    from ijepa.probes.scores import paired_class_difference, paired_difference, paired_p_value

    one, other = (unpack_correct(score.correct, test_rows)[0] for score in (first, second))
    difference = paired_difference(one, other)
    by_class = paired_class_difference(one, other, labels)
    return Comparison(
        setting=first.setting,
        encoders=(first.origin.encoder, second.origin.encoder),
        top1=(first.top1, second.top1),
        difference=difference.value,
        interval=(difference.low, difference.high),
        mean_class_difference=by_class.value,
        mean_class_interval=(by_class.low, by_class.high),
        only_first=int((one & ~other).sum()),
        only_second=int((other & ~one).sum()),
        p_value=paired_p_value(one, other),
    )
