"""Tables of the paper filled by encoders that stand for its rows, at the scale of other data.

Which results make up a table is said by whoever made them, see `ijepa report --table`: a small
network cannot be told to stand for a large one by its settings. A column is one group, so that its
numbers may be compared; the paper's own numbers stay in tables of their own.
"""

from collections.abc import Mapping, Sequence, Set

from ijepa.config import Config
from ijepa.errors import IjepaError
from ijepa.paper import TABLES
from ijepa.results.groups import Ground, Group, Line, grouped
from ijepa.results.record import ProbeResult


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
    results: Sequence[ProbeResult], results_of: Mapping[int, Set[str]]
) -> tuple[StandInTable, ...]:
    """Tables by number, each of the results that are meant for it and of no other.

    Args:
        results: all that there are.
        results_of: seals of results by the number of the table that they are meant for.

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
        _table(number, titles[number], grouped([r for r in results if r.seal in meant]))
        for number, meant in sorted(results_of.items())
    )


def _table(number: int, title: str, groups: Sequence[Group]) -> StandInTable:
    columns = [_named(group) for group in groups]
    names = dict.fromkeys(name for lines in columns for name in lines)
    rows = (_row(name, [lines.get(name) for lines in columns]) for name in names)
    return StandInTable(
        number=number,
        title=title,
        columns=tuple(group.ground for group in groups),
        chances=tuple(group.chance for group in groups),
        rows=tuple(rows),
    )


def _named(group: Group) -> dict[str, Line]:
    """Lines by encoder; one that was scored in several ways has a row for each."""
    found: dict[str, Line] = {}
    for line in group.lines:
        name, times = line.encoder, 1
        while name in found:
            times += 1
            name = f"{line.encoder}, scored otherwise ({times})"
        found[name] = line
    return found


def _row(name: str, lines: list[Line | None]) -> StandInRow:
    arch = next((line.lineage.arch for line in lines if line and line.lineage.arch), "")
    return StandInRow(encoder=name, arch=arch or "", lines=tuple(lines))
