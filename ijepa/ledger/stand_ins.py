"""Tables of the paper filled by encoders that stand for its rows, at the scale of other data.

Which results make up a table is said by whoever made them, see `ijepa report --table`: a small
network cannot be told to stand for a large one by its settings. A column is one group, so that its
numbers may be compared; the paper's own numbers stay in tables of their own.
"""

from collections.abc import Mapping, Sequence, Set

from ijepa.config import Config
from ijepa.errors import IjepaError
from ijepa.ledger.groups import Ground, Group, Line
from ijepa.paper import TABLES


class StandInRow(Config):
    """One encoder; `lines` are by column, None where it was not scored."""

    encoder: str
    arch: str
    lines: tuple[Line | None, ...]


class StandInTable(Config):
    """One table; `chances` are what the most frequent class scores, by column."""

    number: int
    title: str
    columns: tuple[Ground, ...]
    chances: tuple[float, ...]
    rows: tuple[StandInRow, ...]


def stand_in_tables(
    groups: Sequence[Group], results_of: Mapping[int, Set[str]]
) -> tuple[StandInTable, ...]:
    """Tables by number, each of all lines that a result of it has a part in.

    Args:
        groups: all numbers.
        results_of: fingerprints of results by the number of the table that they are meant for.

    Raises:
        IjepaError: the paper has no such table.
    """
    titles = {table.number: table.title for table in TABLES}
    for number in results_of:
        if number not in titles:
            raise IjepaError(
                f"The paper has no table {number}; its tables are {min(titles)} to {max(titles)}."
            )
    return tuple(
        _table(number, titles[number], groups, results_of[number]) for number in sorted(results_of)
    )


def _table(number: int, title: str, groups: Sequence[Group], results: Set[str]) -> StandInTable:
    columns = []
    for group in groups:
        lines = {
            line.encoder: line
            for line in group.lines
            if any(member.result in results for member in line.members)
        }
        if lines:
            columns.append((group, lines))
    names = dict.fromkeys(name for _, lines in columns for name in lines)
    rows = (_row(name, [lines.get(name) for _, lines in columns]) for name in names)
    return StandInTable(
        number=number,
        title=title,
        columns=tuple(group.ground for group, _ in columns),
        chances=tuple(group.chance for group, _ in columns),
        rows=tuple(rows),
    )


def _row(name: str, lines: list[Line | None]) -> StandInRow:
    arch = next((line.lineage.arch for line in lines if line and line.lineage.arch), "")
    return StandInRow(encoder=name, arch=arch or "", lines=tuple(lines))
