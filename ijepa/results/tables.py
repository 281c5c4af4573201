"""Tables of scores: what may be compared in one table, means over seeds, how sure they are.

Scores of different protocols, data, splits, labels or images never share a table. A line of a table
is one encoder seen in one way, over all its seeds.
"""

import json
import statistics
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ijepa.config import Config
from ijepa.files import fingerprint_of
from ijepa.paper import tables_by
from ijepa.results.record import Result, Score, result_id

# What scores must share to be compared.
GROUND = (
    "protocol", "label", "setting", "source", "train_split", "test_split", "train_images",
    "test_images",
)  # fmt: skip
# How an encoder is seen; scores of one line share it.
VIEW = (
    "which", "layers", "pooling", "image_px", "transform", "features_precision", "precision",
    "departures",
)  # fmt: skip
# Of a probe's configuration: what leaves numbers comparable, or is said elsewhere.
SAID_ELSEWHERE = {"seed", "encoder", "name", "protocol", "label", "precision"}


class Cell(Config):
    """One entry of a table.

    Attributes:
        text: what is shown.
        value: what the column is sorted by, and what machines read; None where the text says it.
        note: small print beside it, such as an interval.
        results: ids of the results that it comes from, see `result_id`.
    """

    text: str = ""
    value: float | None = None
    note: str = ""
    results: tuple[str, ...] = ()


class Shown(Config):
    """A table as it is shown: on the page, in the terminal, as JSON.

    Attributes:
        kind: of the paper, an ablation of the paper at the scale of other data, or scores alone.
        number: of the paper's table; None for scores.
        title: what is compared.
        caption: on what, and what to know of it.
        columns: heads; one that begins with `#` holds numbers, one with `+` is too long for a
            terminal.
        rows: a cell a column.
        made: for each row, whether it holds a number of ours.
    """

    kind: Literal["paper", "ablation", "scores"]
    number: int | None
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    made: tuple[bool, ...]


class Member(NamedTuple):
    """One score of a line, and the id of its result."""

    score: Score
    result: str


class Line(NamedTuple):
    """One encoder, seen in one way.

    Attributes:
        members: scores that are averaged, each of other seeds or weights.
        again: scores of the same seeds and weights as a member that came out otherwise.
    """

    members: tuple[Member, ...]
    again: tuple[Member, ...]

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
    """Lines on common ground; `score` is any of theirs, for all that they share."""

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
            lines = grounds.setdefault(_digest(score, GROUND), {})
            way = fingerprint_of([family, _digest(score, VIEW), _probe_settings(score)])
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


def _digest(score: Score, fields: Sequence[str]) -> str:
    return json.dumps([getattr(score, field) for field in fields])


def _probe_settings(score: Score) -> dict[str, Any]:
    return {name: value for name, value in score.config.items() if name not in SAID_ELSEWHERE}


def score_table(group: Group) -> Shown:
    """All lines of a group."""
    has_best = any(line.score.best_on_test is not None for line in group.lines)
    best = ("#best on test % (optimistic)",) if has_best else ()
    return Shown(
        kind="scores",
        number=None,
        title=score_name(group.score),
        caption=_caption(group),
        columns=(
            "encoder", "#top-1 %", "#mean per class %", "#p", *best, "+seeds, encoder/probe",
            "+chosen",
        ),
        rows=tuple(_score_row(line, has_best) for line in group.lines),
        made=(True,) * len(group.lines),
    )  # fmt: skip


def _score_row(line: Line, has_best: bool) -> tuple[Cell, ...]:
    score, several = line.score, len(line.members) > 1
    notes = [f"not of the protocol: {'; '.join(score.departures)}"] if score.departures else []
    notes += [f"again, of the same seeds: {percent(one.score.top1)}" for one in line.again]
    p_value = None if several else score.p_value
    std = line.std("mean_class")
    cells = [
        Cell(
            text=score.encoder + (" and others" if several else ""),
            note="; ".join(notes),
            results=tuple(one.result for one in line.again),
        ),
        top1(line),
        Cell(
            text=percent(line.mean("mean_class")),
            value=line.mean("mean_class"),
            note=f"± {percent(std)}" if std is not None else "",
        ),
        Cell(text="" if p_value is None else f"{p_value:.2g}", value=p_value),
    ]
    if has_best:
        best = None if score.best_on_test is None else line.mean("best_on_test")
        cells.append(Cell(text=percent(best), value=best))
    chosen = (
        ", ".join(f"{k.replace('_', ' ')} {short(v)}" for k, v in one.score.choices.items())
        for one in line.members
    )
    return (*cells, Cell(text=seeds(line)), Cell(text="; ".join(chosen)))


def _caption(group: Group) -> str:
    score, by = group.score, tables_by(group.score.protocol)
    parts = [
        f"{score_data(score)}. {score.description}. Chosen: {score.selection}. "
        f"{score.train_rows:,} training and {score.test_rows:,} test images, "
        f"{score.num_classes} classes, chance {percent(score.chance, 1)}%."
    ]
    if score.repeats:
        parts.append(
            f"{len(score.repeats):,} test images are training images, too, byte for byte under "
            f"another name."
        )
    if by:
        parts.append(
            f"The paper's numbers by this protocol are in table{'s' if len(by) > 1 else ''} "
            f"{', '.join(map(str, by))}."
        )
    return " ".join(parts)


def percent(share: float | None, digits: int = 2) -> str:
    """0.4821 as 48.21; nothing where there is none."""
    return "" if share is None else f"{100 * share:.{digits}f}"


def short(value: object) -> str:
    """A chosen value: numbers in four digits."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.4g}" if is_number else str(value)


def top1(line: Line) -> Cell:
    """Top-1, and how sure it is: over seeds, or the interval of the only score."""
    score, std = line.score, line.std("top1")
    if std is not None:
        note = f"± {percent(std)} over {len(line.members)} seeds"
    else:
        note = "{} to {}".format(*(percent(end, 1) for end in score.top1_interval))
        if score.draws_std is not None:
            note += f", ± {percent(score.draws_std)} over draws"
    results = tuple(dict.fromkeys(member.result for member in line.members))
    return Cell(
        text=percent(line.mean("top1")), value=line.mean("top1"), note=note, results=results
    )


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
