"""Tables of scores: what may be compared in one table, means over seeds, how sure they are.

Scores of different protocols, data, splits, labels or images never share a table. A line of a table
is one encoder seen in one way, over all its seeds.
"""

import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ijepa.config import Config
from ijepa.files import fingerprint_of
from ijepa.paper import tables_by
from ijepa.results.record import Result, Score, result_id

# What scores must share to be compared.
SETTING_FIELDS = (
    "protocol", "label", "setting", "source", "train_split", "test_split", "train_images",
    "test_images",
)  # fmt: skip
# How an encoder is seen; scores of one line share it.
VIEW = (
    "which", "layers", "pooling", "image_px", "transform", "features_precision", "precision",
    "deviations",
)  # fmt: skip
# Settings of a probe that are ignored when scores are grouped.
SAID_ELSEWHERE = {"seed", "encoder", "name", "protocol", "label", "precision"}


class Cell(Config):
    """One entry of a table."""

    text: str = ""
    value: float | None = None  # what the column is sorted by, and machines read; None: the text
    note: str = ""  # small print beside it, such as an interval
    results: tuple[str, ...] = ()  # ids of the results that it comes from, see `result_id`


class Shown(Config):
    """A table as it is shown: on the page, in the terminal, as JSON."""

    kind: Literal["paper", "ablation", "scores"]
    number: int | None = None  # of the paper's table; None for scores
    title: str  # what is compared
    caption: str  # on what, and what to know of it
    # Heads; one that begins with `#` holds numbers, one with `+` is too long for a terminal.
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    made: tuple[bool, ...]  # for each row, whether it holds a number of ours


class Member(NamedTuple):
    """One score of a line, and the id of its result."""

    score: Score
    result: str


class Line(NamedTuple):
    """One encoder, seen in one way."""

    members: tuple[Member, ...]  # scores that are averaged, each of other seeds or weights
    again: tuple[Member, ...]  # same seeds and weights as a member, but other numbers

    @property
    def score(self) -> Score:
        """The first one, for all that they share."""
        return self.members[0].score

    def mean(self, field: str) -> float:
        """Of a number of all members."""
        return float(statistics.mean(getattr(one.score, field) for one in self.members))

    def std(self, field: str) -> float | None:
        """Standard deviation over members; None for one."""
        values = [getattr(member.score, field) for member in self.members]
        return statistics.stdev(values) if len(values) > 1 else None


class Group(NamedTuple):
    """Lines with the same evaluation setting; `score` is one of theirs."""

    score: Score
    lines: tuple[Line, ...]


def grouped(results: Sequence[Result]) -> list[Group]:
    """All scores, each in the group and line where it belongs, in the order in which they came."""
    grounds: dict[str, dict[str, list[Member]]] = {}
    families: dict[str, str] = {}  # equal weights are one encoder, whatever made them
    for result in results:
        of_result = result_id(result)
        for score in result:
            weights = score.weights_sha256
            family = families.setdefault(weights, score.provenance.family or weights)
            settings = {k: v for k, v in score.config.items() if k not in SAID_ELSEWHERE}
            view = [getattr(score, name) for name in VIEW]
            ground = fingerprint_of([getattr(score, name) for name in SETTING_FIELDS])
            lines = grounds.setdefault(ground, {})
            way = fingerprint_of([family, view, settings])
            lines.setdefault(way, []).append(Member(score, of_result))
    return [
        Group(next(iter(lines.values()))[0].score, tuple(map(_line, lines.values())))
        for lines in grounds.values()
    ]


def _line(found: list[Member]) -> Line:
    """Scores of equal seeds and weights count once."""
    members: dict[tuple[object, ...], Member] = {}
    again = []
    for member in found:
        score = member.score
        same = (score.provenance.seed, score.seed, score.weights_sha256)
        first = members.setdefault(same, member).score
        numbers = [(s.top1, s.mean_class, s.best_on_test) for s in (score, first)]
        if numbers[0] != numbers[1]:
            again.append(member)
    return Line(tuple(members.values()), tuple(again))


def score_table(group: Group) -> Shown:
    """All lines of a group."""
    has_best = any(line.score.best_on_test is not None for line in group.lines)
    best = ("#best on test % (optimistic)",) if has_best else ()
    score, by = group.score, tables_by(group.score.protocol)
    caption = [
        f"{score_data(score)}. {score.description}. Chosen: {score.selection}. "
        f"{score.train_rows:,} training and {score.test_rows:,} test images, "
        f"{score.num_classes} classes, chance {percent(score.chance, 1)}%."
    ]
    if score.repeats:
        caption.append(
            f"{len(score.repeats):,} test images are training images, too, byte for byte under "
            f"another name."
        )
    if by:
        caption.append(
            f"The paper's numbers by this protocol are in table{'s' if len(by) > 1 else ''} "
            f"{', '.join(map(str, by))}."
        )
    return Shown(
        kind="scores",
        title=score_name(score),
        caption=" ".join(caption),
        columns=(
            "encoder", "#top-1 %", "#mean per class %", "#p", *best, "+seeds, encoder/probe",
            "+chosen",
        ),
        rows=tuple(_score_row(line, has_best) for line in group.lines),
        made=(True,) * len(group.lines),
    )  # fmt: skip


def _score_row(line: Line, has_best: bool) -> tuple[Cell, ...]:
    score, several = line.score, len(line.members) > 1
    notes = [f"not of the protocol: {'; '.join(score.deviations)}"] if score.deviations else []
    notes += [f"again, of the same seeds: {percent(one.score.top1)}" for one in line.again]
    name = score.encoder + (" and others" if several else "")
    of_again = tuple(one.result for one in line.again)
    mean, std = line.mean("mean_class"), line.std("mean_class")
    p_value = None if several else score.p_value
    cells = [
        Cell(text=name, note="; ".join(notes), results=of_again),
        top1(line),
        Cell(text=percent(mean), value=mean, note="" if std is None else f"± {percent(std)}"),
        Cell(text="" if p_value is None else f"{p_value:.2g}", value=p_value),
    ]
    if has_best:
        best = None if score.best_on_test is None else line.mean("best_on_test")
        cells.append(Cell(text=percent(best), value=best))
    chosen = (
        ", ".join(f"{k.replace('_', ' ')} {_short(v)}" for k, v in one.score.choices.items())
        for one in line.members
    )
    return (*cells, Cell(text=seeds(line)), Cell(text="; ".join(chosen)))


def _short(value: object) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.4g}" if is_number else str(value)


def percent(share: float | None, digits: int = 2) -> str:
    """0.4821 as 48.21; nothing where there is none."""
    return "" if share is None else f"{100 * share:.{digits}f}"


def top1(line: Line) -> Cell:
    """Top-1, and how sure it is: over seeds, or the interval of the only score."""
    score, mean, std = line.score, line.mean("top1"), line.std("top1")
    if std is not None:
        note = f"± {percent(std)} over {len(line.members)} seeds"
    else:
        note = "{} to {}".format(*(percent(end, 1) for end in score.top1_interval))
        if score.draws_std is not None:
            note += f", ± {percent(score.draws_std)} over draws"
    results = tuple(dict.fromkeys(member.result for member in line.members))
    return Cell(text=percent(mean), value=mean, note=note, results=results)


def seeds(line: Line) -> str:
    """Seeds of encoder and probe, such as `0/0, 1/0`."""
    pairs = ((one.score.provenance.seed, one.score.seed) for one in line.members)
    return ", ".join(f"{'-' if encoder is None else encoder}/{probe}" for encoder, probe in pairs)


def score_name(score: Score) -> str:
    """Protocol, label and setting."""
    return f"{score.protocol} on {score.label}" + (f", {score.setting}" if score.setting else "")


def score_data(score: Score) -> str:
    """What was trained on and scored."""
    return f"{score.source or 'unknown source'}, {score.train_split} to {score.test_split}"
