"""Tables of scores: what may be compared in one column, means over seeds, how sure they are.

Scores of different protocols, data, splits, labels or images never share a column. A line of a
table is one encoder seen in one way, over all its seeds.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from ijepa.config import Config
from ijepa.files import fingerprint_of
from ijepa.paper import tables_by
from ijepa.results.record import TRAINED_ON, Score, Scores, result_id

# What scores must share to be compared.
SETTING_FIELDS = (
    "protocol", "label", "setting", "source", "train_split", "test_split", "train_images",
    "test_images",
)  # fmt: skip
# What probes must share to be columns of one table.
TEST_SET = ("label", "source", "train_split", "test_split", "test_images")
# What scores of one line share: how the encoder was evaluated, then how the probe was fitted.
VIEW = ("which", "layers", "pooling", "image_px", "transform", "features_precision")
OF_PROBE = ("precision", "deviations")
# Settings of a probe that are ignored when scores are grouped.
SAID_ELSEWHERE = {"seed", "encoder", "name", "protocol", "label", "precision"}


class Cell(Config):
    """One entry of a table."""

    text: str = ""
    value: float | None = None  # what the column is sorted by, and machines read; None: the text
    note: str = ""  # small print beside it, such as an interval
    results: tuple[str, ...] = ()  # ids of the results that it comes from, see `result_id`


class TableView(Config):
    """A table as it is shown: on the page, in the terminal, as JSON.

    Kind `scores` compares encoders over several probes; `details` holds all of one probe.
    """

    kind: Literal["paper", "ablation", "scores", "details"]
    number: int | None = None  # of the paper's table; None for scores
    title: str  # what is compared
    caption: str  # on what, and what to know of it
    # Heads; one that begins with `#` holds numbers, one with `+` is too long for a terminal.
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    made: tuple[bool, ...]  # for each row, whether it holds a number of ours
    notes: tuple[str, ...] = ()  # what to know of its columns


class Member(NamedTuple):
    """One score of a line, and the id of its result."""

    score: Score
    result: str


class Line(NamedTuple):
    """One encoder, seen in one way."""

    members: tuple[Member, ...]  # scores that are averaged, each of other seeds or weights
    again: tuple[Member, ...]  # same seeds and weights as a member, but other numbers
    encoder: str  # fingerprint of the encoder, whatever its seed, and of how it is seen

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


def grouped(results: Sequence[Scores]) -> list[Group]:
    """All scores, each in the group and line where it belongs, in the order in which they came."""
    by_setting: dict[str, dict[tuple[str, str], list[Member]]] = {}
    families: dict[str, str] = {}  # equal weights are one encoder, whatever made them
    for result in results:
        of_result = result_id(result)
        for score in result:
            family = families.setdefault(score.weights, score.family)
            settings = {k: v for k, v in score.config.items() if k not in SAID_ELSEWHERE}
            encoder = fingerprint_of([family, [getattr(score, name) for name in VIEW]])
            probe = fingerprint_of([[getattr(score, name) for name in OF_PROBE], settings])
            setting = fingerprint_of([getattr(score, name) for name in SETTING_FIELDS])
            lines = by_setting.setdefault(setting, {})
            lines.setdefault((encoder, probe), []).append(Member(score, of_result))
    return [
        Group(
            next(iter(lines.values()))[0].score,
            tuple(_line(members, encoder) for (encoder, _), members in lines.items()),
        )
        for lines in by_setting.values()
    ]


def _line(every: list[Member], encoder: str) -> Line:
    """Scores of equal seeds and weights count once."""
    members: dict[tuple[object, ...], Member] = {}
    again = []
    for member in every:
        score = member.score
        same = (score.provenance.seed, score.seed, score.weights)
        first = members.setdefault(same, member).score
        numbers = [(s.top1, s.mean_class, s.best_on_test) for s in (score, first)]
        if numbers[0] != numbers[1]:
            again.append(member)
    return Line(tuple(members.values()), tuple(again), encoder)


def score_tables(groups: Sequence[Group]) -> list[TableView]:
    """One table for each label and test set, encoders down, probes across; then one a probe."""
    tables: dict[str, list[Group]] = {}
    for group in groups:
        same = fingerprint_of([getattr(group.score, name) for name in TEST_SET])
        tables.setdefault(same, []).append(group)
    data = data_names(group.score for group in groups)
    overview = [_score_table(table, data) for table in tables.values()]
    return [*overview, *map(_details_table, groups)]


def _score_table(groups: Sequence[Group], data: Mapping[str, str]) -> TableView:
    """`groups` share their test set; an encoder that has several lines in one has several rows."""
    rows: dict[tuple[str, int], dict[int, Line]] = {}  # lines by the number of their column
    for column, group in enumerate(groups):
        seen: Counter[str] = Counter()
        for line in group.lines:
            rows.setdefault((line.encoder, seen[line.encoder]), {})[column] = line
            seen[line.encoder] += 1
    names = [probe_name(group.score) for group in groups]
    names = [
        f"{name}, {group.score.train_rows:,} images" if names.count(name) > 1 else name
        for name, group in zip(names, groups, strict=True)
    ]
    more = [(number, name) for number, group in enumerate(groups) for name in group.score.metrics]
    score = groups[0].score
    about: dict[str, list[str]] = {}  # names of probes by what is said of them
    for name, group in zip(names, groups, strict=True):
        about.setdefault(" ".join(_about(group)), []).append(name)
    return TableView(
        kind="scores",
        title=" of ".join(filter(None, [f"Label {score.label}", data[score.source]])),
        caption=(
            f"{score.headline.replace('top', 'Top')} in percent. "
            f"{score_data(score)}: {score.test_rows:,} test images"
            f"{f', {score.num_classes} classes' if score.num_classes else ''}; "
            f"{score.guess} reaches {percent(score.chance, 1)}."
        ),
        columns=(
            "encoder",
            *(f"#{name}" for name in names),
            *(f"#{names[number]}: {name} %" for number, name in more),
        ),
        rows=tuple(
            (
                Cell(text=encoder_name(next(iter(lines.values())))),
                *(_probe_cell(lines.get(column)) for column in range(len(groups))),
                *(_metric_cell(lines.get(column), name) for column, name in more),
            )
            for lines in rows.values()
        ),
        made=(True,) * len(rows),
        notes=tuple(f"{'; '.join(named)}: {text}" for text, named in about.items()),
    )


def _probe_cell(line: Line | None) -> Cell:
    """Top-1 with its interval, and the p value of the paired test if it was made."""
    if line is None:
        return Cell()
    cell, score = top1(line), line.score
    notes = [cell.note]
    if len(line.members) == 1 and score.p_value is not None:
        notes.append(f"p {score.p_value:.2g}")
    if score.deviations:
        notes.append("deviates from the protocol")
    notes += [f"again, with the same seeds: {percent(one.score.top1)}" for one in line.again]
    again = tuple(one.result for one in line.again)
    return cell.model_copy(update={"note": "; ".join(notes), "results": (*cell.results, *again)})


def _metric_cell(line: Line | None, name: str) -> Cell:
    """One of `Score.metrics`, with its interval; the mean over seeds without."""
    values = [one.score.metrics[name] for one in line.members] if line else []
    if not values:
        return Cell()
    mean = statistics.mean(value for value, _, _ in values)
    note = (
        "{} to {}".format(*(percent(end, 1) for end in values[0][1:])) if len(values) == 1 else ""
    )
    return Cell(text=percent(mean), value=mean, note=note)


def _about(group: Group) -> list[str]:
    """Sentences on a probe: how it is fitted and chosen, its deviations, its data."""
    score, by = group.score, tables_by(group.score.protocol)
    said = [
        f"{score.description}. Chosen: {score.selection}. {score.train_rows:,} training images."
    ]
    deviations: dict[str, list[str]] = {}
    for line in group.lines:
        if line.score.deviations:
            deviations.setdefault("; ".join(line.score.deviations), []).append(encoder_name(line))
    if deviations and len(deviations) == 1 and len(*deviations.values()) == len(group.lines):
        said.append(f"Deviates from the protocol: {next(iter(deviations))}.")
    else:
        said += [
            f"{', '.join(names)} deviates from the protocol: {how}."
            for how, names in deviations.items()
        ]
    if score.repeats:
        said.append(
            f"{len(score.repeats):,} test images are training images, too, byte for byte under "
            f"another name."
        )
    if by:
        tables = f"table{'s' if len(by) > 1 else ''} {', '.join(map(str, by))}"
        said.append(f"The paper's numbers by this protocol are in {tables}.")
    return said


def _details_table(group: Group) -> TableView:
    """All numbers of one probe."""
    has_best = any(line.score.best_on_test is not None for line in group.lines)
    best = ("#best on test % (optimistic)",) if has_best else ()
    rows = []
    for line in group.lines:
        score, mean, std = line.score, line.mean("mean_class"), line.std("mean_class")
        p_value = None if len(line.members) > 1 else score.p_value
        cells = [
            Cell(text=encoder_name(line)),
            top1(line),
            Cell(text=percent(mean), value=mean, note="" if std is None else f"± {percent(std)}"),
            Cell(text="" if p_value is None else f"{p_value:.2g}", value=p_value),
        ]
        if has_best:
            share = None if score.best_on_test is None else line.mean("best_on_test")
            cells.append(Cell(text=percent(share), value=share))
        cells += [_metric_cell(line, name) for name in score.metrics]
        chosen = (
            ", ".join(
                f"{name.replace('_', ' ')} {value if isinstance(value, str) else f'{value:.4g}'}"
                for name, value in one.score.choices.items()
            )
            for one in line.members
        )
        told = "; ".join([*chosen, *measured(score)])
        rows.append((*cells, Cell(text=seeds(line)), Cell(text=told)))
    return TableView(
        kind="details",
        title=score_name(group.score),
        caption=f"{score_data(group.score)}.",
        columns=(
            "encoder", f"#{group.score.headline} %", "#mean per class %", "#p", *best,
            *(f"#{name} %" for name in group.score.metrics), "seeds, encoder/probe", "chosen",
        ),
        rows=tuple(rows),
        made=(True,) * len(group.lines),
    )  # fmt: skip


def measured(score: Score) -> list[str]:
    """Further numbers of a dense probe, in words: `RMSE 0.412 (0.40 to 0.43)`."""
    return [
        f"{name} {value:.4g} ({low:.3g} to {high:.3g})"
        for name, (value, low, high) in score.measures.items()
        if name != score.headline
    ]


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


def encoder_name(line: Line) -> str:
    """As the user named it, and whether it was fine-tuned; of several seeds, the first."""
    name = line.score.encoder + (" and others" if len(line.members) > 1 else "")
    return f"{name}, fine-tuned" if line.score.probe == "finetune" else name


def seeds(line: Line) -> str:
    """Seeds of encoder and probe, such as `0/0, 1/0`."""
    pairs = ((one.score.provenance.seed, one.score.seed) for one in line.members)
    return ", ".join(f"{'-' if encoder is None else encoder}/{probe}" for encoder, probe in pairs)


def probe_name(score: Score) -> str:
    """Protocol and setting."""
    return f"{score.protocol}, {score.setting}" if score.setting else score.protocol


def score_name(score: Score) -> str:
    """Protocol, label and setting."""
    return f"{score.protocol} on {score.label}" + (f", {score.setting}" if score.setting else "")


def data_names(scores: Iterable[Score]) -> dict[str, str]:
    """How to tell data sets apart, by their source: by kind if that is enough; empty for one."""
    sources = list(dict.fromkeys(score.source for score in scores))
    kinds = [source.partition(":")[0] for source in sources]
    if len(sources) == 1:
        return {sources[0]: ""}
    is_enough = len({*kinds}) == len(kinds) and not any(TRAINED_ON in one for one in sources)
    return dict(zip(sources, kinds if is_enough else sources, strict=True))


def score_data(score: Score) -> str:
    """What was trained on and scored."""
    return f"{score.source or 'unknown source'}, {score.train_split} to {score.test_split}"
