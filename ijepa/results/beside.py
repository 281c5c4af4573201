"""The paper's tables with a number of ours beside each that was really made: the same row.

A line fills a cell only if its encoder is that of the row (method, network, epochs, data, and in
ablations every setting of the recipe; of two encoders the target's), its data set is that of the
column, whole, and its protocol one of the column's. Everything else stays in tables of its own.
"""

from collections.abc import Mapping, Sequence

from ijepa.config import Config
from ijepa.paper import (
    FOREIGN,
    TABLES,
    Column,
    Row,
    Table,
    pretraining_data,
    pretraining_epochs,
)
from ijepa.results.groups import Group, Line
from ijepa.results.pretraining import Settings, recipe_settings, rest
from ijepa.results.record import source_kinds

LIST_TOLERANCE = 0.02  # a drawn percent has a few images more or less than the published list


class Cell(Config):
    """One row of a table of the paper, for one task.

    Attributes:
        method: as the paper has it, likewise `arch`, `epochs` and `group`.
        paper: percent.
        ours: the line that is this row; None if there is none.
        difference: ours less the paper's, in points.
        note: the protocol and how ours departs from it; or `not run` and why.
    """

    method: str
    arch: str
    epochs: int | None
    group: str
    paper: float
    ours: Line | None
    difference: float | None
    note: str


class PaperTable(Config):
    """One task of one table of the paper; all numbers of ours in it are of one group.

    Attributes:
        protocol: of ours; of the paper where there is none of ours.
        ground: splits and images of ours, in words; empty where there is none of ours.
    """

    number: int
    title: str
    task: str
    protocol: str
    ground: str
    cells: tuple[Cell, ...]


def beside_paper(groups: Sequence[Group], known: Mapping[str, Settings]) -> tuple[PaperTable, ...]:
    """Every table of the paper, a part for each task, and for each group of ours that fills it.

    Args:
        groups: all numbers of ours.
        known: settings of pretraining by family.
    """
    return tuple(
        part
        for table in TABLES
        for place, column in enumerate(table.columns)
        for part in _parts(table, place, column, groups, known)
    )


def _parts(
    table: Table,
    place: int,
    column: Column,
    groups: Sequence[Group],
    known: Mapping[str, Settings],
) -> list[PaperTable]:
    """Numbers of different protocols or test sets never share a column: a part for each group."""
    filled: list[tuple[Group | None, dict[Row, list[Line]]]] = []
    near: dict[Row, list[Line]] = {row: [] for row in table.rows}
    for group in groups:
        if not is_task(group, column):
            continue
        found = {
            row: [x for x in group.lines if _is_trained_as(x, row, table, known)]
            for row in table.rows
        }
        lines = {row: [x for x in found[row] if x.which == "target"] for row in table.rows}
        near = {row: near[row] + found[row] for row in table.rows}
        if any(lines.values()):
            filled.append((group, lines))
    reasons = {row: why_not(row, column, near[row]) for row in table.rows}
    return [
        _part(table, place, column, group, lines, reasons)
        for group, lines in filled or [(None, {})]
    ]


def _part(
    table: Table,
    place: int,
    column: Column,
    group: Group | None,
    lines: Mapping[Row, list[Line]],
    reasons: Mapping[Row, str],
) -> PaperTable:
    cells = []
    for row in table.rows:
        value, ours = row.values[place], lines.get(row, [])
        cells += [_filled(row, value, line, group) for line in ours if group]
        if not ours:
            cells.append(_cell(row, value, None, f"not run: {reasons[row]}"))
    return PaperTable(
        number=table.number,
        title=table.title,
        task=column.task,
        protocol=group.ground.protocol if group else column.protocols[0],
        ground=_words(group) if group else "",
        cells=tuple(cells),
    )


def _words(group: Group) -> str:
    place = group.ground
    return f"{place.source}, {place.train_split} to {place.test_split}"


def _filled(row: Row, value: float, line: Line, group: Group) -> Cell:
    best = line.best_on_test
    said = [group.ground.protocol, *line.departures]
    if best is not None:
        said.append(f"best head on test, as papers report: {100 * best:.1f}")
    return _cell(row, value, line, "; ".join(said))


def _cell(row: Row, value: float, line: Line | None, note: str) -> Cell:
    return Cell(
        method=row.method,
        arch=row.arch,
        epochs=row.epochs,
        group=row.group,
        paper=value,
        ours=line,
        difference=None if line is None else 100 * line.top1 - value,
        note=note,
    )


def why_not(row: Row, column: Column, near: Sequence[Line] = ()) -> str:
    """What is missing for a row, in words.

    Args:
        row: that is empty.
        column: of it.
        near: lines of its pretraining, which the row may have been filled with.
    """
    contexts = [line.encoder for line in near if line.which != "target"]
    if contexts:
        return f"{contexts[0]} is its context encoder, the paper's is the target encoder"
    prefix = FOREIGN.get(row.method)
    if prefix:
        return f"no weights: no result given of --encoder {prefix}FILE"
    return f"no result given of recipe {row.recipe} on {column.data.kind}: by {column.protocols[0]}"


def is_task(group: Group, column: Column) -> bool:
    """Are the group's numbers by a protocol of the column, on its data set, whole?"""
    place, data = group.ground, column.data
    return (
        place.protocol in column.protocols
        and source_kinds(place.source) == {data.kind}
        and place.label == data.label
        and group.num_classes == data.classes
        and group.test_rows == data.test_images
        and _is_trained_on(group, column)
    )


def _is_trained_on(group: Group, column: Column) -> bool:
    setting, whole, few = group.ground.setting, column.data.train_images, column.few_images
    if few is None:
        return group.train_rows == whole and not setting
    if group.train_rows == whole:
        return setting.partition(" (")[0] in {"1% of train", f"lists of {few:,} images"}
    return abs(group.train_rows - few) <= LIST_TOLERANCE * few


def _is_trained_as(line: Line, row: Row, table: Table, known: Mapping[str, Settings]) -> bool:
    """Is it of a row's pretraining: in ablations by every setting, else by its lineage?"""
    lineage = line.lineage
    if lineage.data != pretraining_data(row):
        return False
    if table.varies:
        settings = known.get(lineage.family or "")
        return settings is not None and rest(settings) == rest(recipe_settings(row.recipe))
    return (
        lineage.method == row.method
        and lineage.arch == row.arch
        and lineage.epochs in pretraining_epochs(row)
    )
