"""The paper's tables with scores of ours beside, and its ablations at the scale of other data.

A score of ours fills a row of the paper only if it is that very row: its encoder (method, network,
epochs, data, and in ablations every setting of the recipe; the target encoder), its data set,
whole, and its protocol. Ablations at other scales compare runs that differ in what the paper's rows
differ in, and in nothing else: they show whether the order that the paper found holds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any

from ijepa.config import PretrainConfig, architecture, flat
from ijepa.files import fingerprint_of
from ijepa.paper import FOREIGN, TABLES, Column, Row, Table, pretraining_data, pretraining_epochs
from ijepa.provenance import run_family
from ijepa.recipes import load_recipe
from ijepa.results.record import Score, Scores, source_kinds
from ijepa.results.tables import (
    Cell,
    Group,
    Line,
    TableView,
    percent,
    score_data,
    score_name,
    seeds,
    top1,
)

LIST_TOLERANCE = 0.02  # a drawn percent has a few images more or less than the published list
# Settings of a pretraining without effect on the weights, or a bound that a small grid moves.
ASIDE = ("seed", "watch.", "checkpoint_epochs", "stream.", "masks.min_keep")
# Sizes of the predictor are compared as shares of the encoder's: a small one is as deep or wide.
SHARES = {"predictor.depth": "depth", "predictor.dim": "dim"}

Settings = Mapping[str, Any]  # of a pretraining, by dotted name
OF_WHOLE_RUNS = (None, "best")  # checkpoints
Families = Mapping[str, Settings]
Lines = Mapping[Row, Sequence[Line]]  # of ours, by the row of the paper where they stand


def tables_of_paper(
    results: Sequence[Scores], groups: Sequence[Group], configs: Iterable[PretrainConfig] = ()
) -> list[TableView]:
    """Every table of the paper, then its ablations at other scales.

    `groups` are the scores of `results`; `configs` are of pretraining runs, which tell the settings
    of encoders whose results do not.
    """
    known: dict[str, Settings] = {}  # of pretraining, by family
    for config in configs:
        body = config.model_dump(mode="json", exclude={"seed"})
        known[run_family("I-JEPA", body)] = flat(body)
    for score in (score for result in results for score in result):
        provenance = score.provenance
        is_ours = provenance.method == "I-JEPA" and provenance.checkpoint in OF_WHOLE_RUNS
        if is_ours and provenance.family and provenance.settings:
            known[provenance.family] = flat(provenance.settings)
    paper = [_parts(table, c, groups, known) for table in TABLES for c in table.columns]
    ablations = [_ablations(table, group, known) for table in TABLES for group in groups]
    return [*chain(*paper, *ablations)]


def _parts(
    table: Table, column: Column, groups: Sequence[Group], known: Families
) -> Iterator[TableView]:
    """A task of a table, once for each group of ours that fills a row of it, or once without."""
    filled: list[tuple[str, Lines]] = []
    for group in groups:
        if not _is_task(group.score, column):
            continue
        targets = [line for line in group.lines if line.score.which == "target"]
        lines = {
            row: [line for line in targets if _is_trained_as(line.score, row, table, known)]
            for row in table.rows
        }
        if any(lines.values()):
            ours = f"{group.score.protocol}, {score_data(group.score)}"
            filled.append((f"{column.task}; ours {ours}", lines))
    at = table.columns.index(column)
    for caption, by_row in filled or [(column.task, {})]:
        places = _places(table, by_row)
        yield TableView(
            kind="paper",
            number=table.number,
            title=table.title,
            caption=caption,
            columns=(
                "method", "network", "#epochs", "#paper", "#ours", "#difference",
                "protocol, or why not run",
            ),
            rows=tuple(
                _paper_row(row, row.values[at], line, column) for row, line in places
            ),
            made=tuple(line is not None for _, line in places),
        )  # fmt: skip


def _places(table: Table, lines: Lines) -> list[tuple[Row, Line | None]]:
    """Each row of a table with each line of ours in it; once with None if there is none."""
    none: Sequence[Line | None] = [None]
    return [(row, line) for row in table.rows for line in lines.get(row) or none]


def _paper_row(row: Row, paper: float, line: Line | None, column: Column) -> tuple[Cell, ...]:
    """What stands in a row, with `line` of ours or what is missing."""
    cells = (
        Cell(text=row.method, note=row.group),
        Cell(text=row.arch),
        Cell(text="" if row.epochs is None else str(row.epochs), value=row.epochs),
        Cell(text=f"{paper:.1f}", value=paper / 100),
    )
    if line is None:
        by = f"on {column.kind} by protocol {column.protocols[0]}"
        why_not = f"no result of recipe {row.recipe} and its target encoder {by} was given"
        if row.method in FOREIGN:
            why_not = f"no result of --encoder {FOREIGN[row.method]}FILE was given"
        return (*cells, Cell(), Cell(), Cell(text=f"not run: {why_not}"))
    difference, score = 100 * line.mean("top1") - paper, line.score
    said = [score.protocol, *score.deviations]
    if score.best_on_test is not None:
        said.append(f"best head on test, as papers report: {percent(score.best_on_test, 1)}")
    difference_cell = Cell(text=f"{difference:+.2f}", value=difference / 100)
    return (*cells, top1(line), difference_cell, Cell(text="; ".join(said)))


def _is_task(score: Score, column: Column) -> bool:
    """Is it by a protocol of the column, on its data set, whole?"""
    few = column.few_images
    if few is None:
        has_labels = score.train_rows == column.train_images and not score.setting
    elif score.train_rows == column.train_images:
        drawn = score.setting.partition(" (")[0]
        has_labels = drawn in ("1% of train", f"lists of {few:,} images")
    else:
        has_labels = abs(score.train_rows - few) <= LIST_TOLERANCE * few
    return (
        has_labels
        and score.protocol in column.protocols
        and source_kinds(score.source) == {column.kind}
        and (score.label, score.num_classes) == (column.label, column.classes)
        and score.test_rows == column.test_images
    )


def _is_trained_as(score: Score, row: Row, table: Table, known: Families) -> bool:
    """Is it of a row's pretraining: in ablations by every setting, else by its provenance?"""
    provenance = score.provenance
    if provenance.data != pretraining_data(row) or provenance.checkpoint not in OF_WHOLE_RUNS:
        return False
    if table.varies:
        settings = known.get(provenance.family or "")
        return settings is not None and _rest(settings) == _rest(_recipe_settings(row.recipe))
    return (
        provenance.method == row.method
        and provenance.arch == row.arch
        and provenance.epochs in pretraining_epochs(row)
    )


def _ablations(table: Table, group: Group, known: Families) -> Iterator[TableView]:
    """An ablation of the paper for runs of other data that differ in what it varies alone."""
    if not table.varies or any(_is_task(group.score, column) for column in table.columns):
        return
    alike: dict[str, dict[Row, list[Line]]] = {}
    for line in group.lines:
        settings = known.get(line.score.provenance.family or "", {})
        row = _row_of(table, settings) if settings else None
        if row:
            rest = _rest(settings, (*table.varies, *table.free))
            same = fingerprint_of([line.score.which, rest])
            alike.setdefault(same, {}).setdefault(row, []).append(line)
    for lines in alike.values():
        if len(lines) > 1:
            yield _ablation_table(table, group, lines, known)


def _row_of(table: Table, settings: Settings) -> Row | None:
    """Which row of an ablation a pretraining stands for, whatever its scale."""
    for row in table.rows:
        recipe = _recipe_settings(row.recipe)
        if all(_trait(settings, name) == _trait(recipe, name) for name in table.varies):
            return row
    return None


def _ablation_table(table: Table, group: Group, lines: Lines, known: Families) -> TableView:
    places = _places(table, lines)
    settings = [known[line.score.provenance.family or ""] if line else {} for _, line in places]
    given = [one for one in settings if one]
    names = [
        name for name in dict.fromkeys(n for one in given for n in one) if name not in table.varies
    ]
    differing = [name for name in names if any(o.get(name) != given[0].get(name) for o in given)]
    rows = []
    for (row, line), own in zip(places, settings, strict=True):
        values = {
            n: own[n] if isinstance(own[n], list) else [own[n]] for n in differing if n in own
        }
        differs = ", ".join(f"{n} {' to '.join(map(str, v))}" for n, v in values.items())
        ours = (
            (top1(line), Cell(text=line.score.encoder), Cell(text=seeds(line)))
            if line
            else (Cell(text="not run at this scale"), Cell(), Cell())
        )
        paper = Cell(text="; ".join(map(str, row.values)), value=row.values[0] / 100)
        rows.append((Cell(text=row.method), paper, *ours, Cell(text=differs)))
    return TableView(
        kind="ablation",
        number=table.number,
        title=f"{table.title}, at the scale of {group.score.source or 'unknown data'}",
        caption=f"{score_name(group.score)}; {score_data(group.score)}",
        columns=(
            "row", "#paper, other data", "#ours", "encoder", "+seeds, encoder/probe", "differs in",
        ),
        rows=tuple(rows),
        made=tuple(line is not None for _, line in places),
    )  # fmt: skip


@cache
def _recipe_settings(name: str) -> Settings:
    return flat(load_recipe(name).model_dump(mode="json"))


def _rest(settings: Settings, without: Sequence[str] = ()) -> dict[str, Any]:
    """All settings that change the weights, but those in `without`."""
    return {
        name: value
        for name, value in settings.items()
        if not name.startswith(ASIDE) and name not in without
    }


def _trait(settings: Settings, name: str) -> object:
    """A setting in a form that can be compared across scales.

    Depth and width of the predictor are shares of the encoder's. Pixels are pixels, normalised or
    not, for the paper does not say which it took.
    """
    value = settings.get(name)
    if name in SHARES and {name, "encoder.arch"} <= settings.keys():
        return value / getattr(architecture(settings["encoder.arch"]), SHARES[name])
    return str(value).removeprefix("normalised-") if name == "targets.space" else value
