"""Scores as tables for the terminal; the same groups, rows and numbers as on the page."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from ijepa.report import ReportOutcome
    from ijepa.results.beside import PaperTable
    from ijepa.results.compare import Comparisons
    from ijepa.results.groups import Ground, Group, Line
    from ijepa.results.record import ProbeResult
    from ijepa.results.scaled import ScaledTable
    from ijepa.results.stand_ins import StandInTable


def report_tables(outcome: "ReportOutcome") -> Iterator[Table | str]:
    """Tables of the paper that hold a number of ours, ablations at scale, then every group."""
    for table in outcome.paper:
        if any(cell.ours for cell in table.cells):
            yield _paper_table(table)
    for stand_in in outcome.stand_ins:
        yield _stand_in_table(stand_in)
    for scaled in outcome.scaled:
        yield _scaled_table(scaled)
    for group in outcome.groups:
        yield _group_table(group)
    cells = [cell for table in outcome.paper for cell in table.cells]
    made = sum(cell.ours is not None for cell in cells)
    yield f"the paper's tables: {made} of {len(cells)} cells made here; the page says why not"


def _stand_in_table(found: "StandInTable") -> Table:
    """A column a protocol, setting and data set, top-1 in percent."""
    table = Table(title=f"table {found.number} at this scale: {found.title}", title_justify="left")
    table.add_column("encoder", overflow="fold")
    for ground in found.columns:
        words = (ground.protocol, ground.label, ground.setting, ground.source)
        table.add_column("\n".join(filter(None, words)), justify="right", overflow="fold")
    for row in found.rows:
        scores = (f"{100 * line.top1:.2f}" if line else "-" for line in row.lines)
        table.add_row(row.encoder, *scores)
    table.add_section()
    table.add_row("most frequent class", *(f"{100 * chance:.1f}" for chance in found.chances))
    return table


def score_table(results: Sequence["ProbeResult"], *, cached: bool = False) -> Table:
    """One row a score; p compares with the first encoder of the same result."""
    table = Table(title="cached" if cached else None, title_justify="left")
    for column in ("probe", "label", "encoder"):
        table.add_column(column, overflow="fold")
    for column in ("top-1 % (95% CI)", "mean class %", "best on test %", "p", "chance %"):
        table.add_column(column, justify="right")
    for result in results:
        for score in result.scores:
            probe = f"{result.protocol} {score.setting}".strip()
            spread = f" ± {100 * score.draws_std:.1f}" if score.draws_std is not None else ""
            low, high = score.top1_interval
            table.add_row(
                probe,
                result.label,
                score.origin.encoder,
                f"{100 * score.top1:.2f}{spread} ({100 * low:.1f} to {100 * high:.1f})",
                f"{100 * score.mean_class:.2f}",
                "" if score.best_on_test is None else f"{100 * score.best_on_test:.2f}",
                "" if score.p_value is None else f"{score.p_value:.2g}",
                f"{100 * result.chance:.1f}",
            )
        table.add_section()
    departures = dict.fromkeys(line for result in results for line in result.departures)
    lines = [f"Not of the protocol: {'; '.join(departures)}"] if departures else []
    lines += [
        _repeats(repeats) for repeats in {len(result.repeats) for result in results} if repeats
    ]
    table.caption, table.caption_justify = "\n".join(lines) or None, "left"
    return table


def comparison_table(found: "Comparisons") -> Table:
    """One row a setting: the difference of two encoders on the same images."""
    title = f"{found.protocol}, {found.label}, {found.test_rows:,} test images"
    table = Table(title=title, title_justify="left")
    for column in ("setting", "first", "second"):
        table.add_column(column, overflow="fold")
    for column in ("top-1 %", "difference (95% CI)", "mean per class", "right alone", "p"):
        table.add_column(column, justify="right")
    for row in found.rows:
        table.add_row(
            row.setting,
            row.encoders[0],
            row.encoders[1],
            f"{100 * row.top1[0]:.2f}, {100 * row.top1[1]:.2f}",
            _difference(row.difference, row.interval),
            _difference(row.mean_class_difference, row.mean_class_interval),
            f"{row.only_first:,}, {row.only_second:,}",
            f"{row.p_value:.2g}",
        )
    return table


def _difference(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def _paper_table(found: "PaperTable") -> Table:
    title = f"Table {found.number}: {found.title}; {found.task}, {found.protocol}, {found.ground}"
    table = Table(title=title, title_justify="left")
    for column in ("method", "network"):
        table.add_column(column)
    for column in ("epochs", "paper", "ours", "difference"):
        table.add_column(column, justify="right")
    table.add_column("protocol, or why not run", overflow="fold")
    for cell in found.cells:
        table.add_row(
            cell.method,
            cell.arch,
            str(cell.epochs or ""),
            f"{cell.paper:.1f}",
            _top1(cell.ours) if cell.ours else "",
            "" if cell.difference is None else f"{cell.difference:+.2f}",
            cell.note,
        )
    return table


def _scaled_table(found: "ScaledTable") -> Table:
    title = f"Table {found.number}: {found.title}, at the scale of {_ground(found.ground)}"
    table = Table(title=title, title_justify="left")
    table.add_column("row")
    table.add_column("paper, other data", justify="right")
    table.add_column("ours", justify="right")
    table.add_column("encoder", overflow="fold")
    table.add_column("differs in", overflow="fold")
    for row in found.rows:
        table.add_row(
            row.name,
            "; ".join(map(str, row.paper.values())),
            _top1(row.ours) if row.ours else "not run",
            row.ours.encoder if row.ours else "",
            row.differs,
        )
    return table


def _group_table(group: "Group") -> Table:
    table = Table(title=_ground(group.ground), title_justify="left")
    table.add_column("encoder", overflow="fold")
    for column in ("top-1 %", "mean class %", "best on test %", "p"):
        table.add_column(column, justify="right")
    for line in group.lines:
        p_value = line.one.p_value if line.one else None
        table.add_row(
            line.encoder + (" and others" if len(line.members) > 1 else ""),
            _top1(line),
            f"{100 * line.mean_class:.2f}",
            "" if line.best_on_test is None else f"{100 * line.best_on_test:.2f}",
            "" if p_value is None else f"{p_value:.2g}",
        )
    lines = [f"chance {100 * group.chance:.1f}%"]
    lines += [_repeats(group.repeats)] if group.repeats else []
    lines += [f"not of the protocol: {x}" for line in group.lines for x in line.departures]
    lines += [
        f"{line.encoder} again, of the same seeds: {100 * member.top1:.2f}"
        for line in group.lines
        for member in line.again
    ]
    table.caption, table.caption_justify = "; ".join(dict.fromkeys(lines)), "left"
    return table


def _ground(ground: "Ground") -> str:
    setting = f", {ground.setting}" if ground.setting else ""
    where = f"{ground.source or 'unknown source'}, {ground.train_split} to {ground.test_split}"
    return f"{ground.protocol} on {ground.label}{setting}; {where}"


def _top1(line: "Line") -> str:
    from ijepa.results.page import spread

    return f"{100 * line.top1:.2f} ({spread(line)})"


def _repeats(number: int) -> str:
    return f"{number:,} test images are training images, too, byte for byte under another name"
