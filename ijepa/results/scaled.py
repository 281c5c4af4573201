"""Ablations of the paper at the scale of other data: the same comparison, other numbers.

Runs make up a table if they differ in what its rows differ in, and in nothing else. The paper's
numbers beside them show the order that it found, not what to reach.
"""

from collections.abc import Mapping, Sequence

from ijepa.config import Config
from ijepa.paper import TABLES, Row, Table
from ijepa.results.beside import is_task
from ijepa.results.groups import Ground, Group, Line
from ijepa.results.pretraining import Settings, recipe_settings, rest, trait
from ijepa.stage import fingerprint_of


class ScaledRow(Config):
    """One row of the paper, and one encoder that stands for it.

    Attributes:
        name: as the paper has it.
        paper: percent, by task; of other data.
        ours: None where no run stands for the row.
        differs: further settings in which runs of the table differ.
    """

    name: str
    paper: dict[str, float]
    ours: Line | None
    differs: str


class ScaledTable(Config):
    """One table of the paper at the scale of a group."""

    number: int
    title: str
    ground: Ground
    rows: tuple[ScaledRow, ...]


def scaled_tables(
    groups: Sequence[Group], known: Mapping[str, Settings]
) -> tuple[ScaledTable, ...]:
    """Every ablation of which a group holds two rows or more.

    Args:
        groups: all numbers of ours.
        known: settings of pretraining by family.
    """
    found = []
    for table in TABLES:
        if not table.varies:
            continue
        for group in groups:
            if not any(is_task(group, column) for column in table.columns):
                found += _tables(table, group, known)
    return tuple(found)


def _tables(table: Table, group: Group, known: Mapping[str, Settings]) -> list[ScaledTable]:
    """Lines that are equal but for what the table varies; two rows at least, else no comparison."""
    alike: dict[str, dict[Row, list[Line]]] = {}
    for line in group.lines:
        settings = known.get(line.lineage.family or "")
        row = settings and row_of(table, settings)
        if settings and row:
            same = fingerprint_of([line.which, rest(settings, (*table.varies, *table.free))])
            alike.setdefault(same, {}).setdefault(row, []).append(line)
    return [_table(table, group, lines, known) for lines in alike.values() if len(lines) > 1]


def row_of(table: Table, settings: Settings) -> Row | None:
    """Which row of an ablation a pretraining stands for, whatever its scale."""
    for row in table.rows:
        recipe = recipe_settings(row.recipe)
        if all(trait(settings, name) == trait(recipe, name) for name in table.varies):
            return row
    return None


def _table(
    table: Table, group: Group, lines: Mapping[Row, list[Line]], known: Mapping[str, Settings]
) -> ScaledTable:
    every = {
        line.lineage.family: known[line.lineage.family or ""] for x in lines.values() for line in x
    }
    names = [name for name in _differing(list(every.values())) if name not in table.varies]
    rows = []
    for row in table.rows:
        paper = {c.task: value for c, value in zip(table.columns, row.values, strict=True)}
        for line in lines.get(row, [None]):
            settings = every[line.lineage.family] if line else {}
            said = ", ".join(
                f"{name} {_short(settings[name])}" for name in names if name in settings
            )
            rows.append(ScaledRow(name=row.method, paper=paper, ours=line, differs=said))
    return ScaledTable(
        number=table.number, title=table.title, ground=group.ground, rows=tuple(rows)
    )


def _differing(settings: Sequence[Settings]) -> list[str]:
    """Names of settings that are not the same in all."""
    names = dict.fromkeys(name for one in settings for name in one)
    first = settings[0]
    return [name for name in names if any(one.get(name) != first.get(name) for one in settings)]


def _short(value: object) -> str:
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)
