"""Scores as tables for the terminal; the same tables, rows and numbers as on the page."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from ijepa.report import ReportOutcome
    from ijepa.results.compare import Comparisons
    from ijepa.results.record import Result
    from ijepa.results.tables import Shown


def report_tables(outcome: "ReportOutcome") -> Iterator[Table | str]:
    """Tables of the paper that hold a number of ours, ablations at scale, then every group."""
    for shown in outcome.tables:
        if any(shown.made):
            yield _table(shown)
    made = [one for shown in outcome.tables if shown.kind == "paper" for one in shown.made]
    yield f"the paper's tables: {sum(made)} of {len(made)} cells made here; the page says why not"


def _table(shown: "Shown") -> Table:
    number = f"Table {shown.number}: " if shown.number else ""
    table = Table(title=f"{number}{shown.title}", title_justify="left", caption_justify="left")
    columns = [place for place, head in enumerate(shown.columns) if not head.startswith("+")]
    for place in columns:
        head = shown.columns[place]
        table.add_column(
            head.lstrip("#"), justify="right" if head.startswith("#") else "left", overflow="fold"
        )
    for row in shown.rows:
        cells = (row[place] for place in columns)
        table.add_row(*(f"{c.text} ({c.note})" if c.note else c.text for c in cells))
    table.caption = shown.caption
    return table


def score_table(results: Sequence["Result"], *, cached: bool = False) -> Table:
    """One row a score; p compares with the first encoder of the same result."""
    table = Table(title="cached" if cached else None, title_justify="left")
    for column in ("probe", "label", "encoder"):
        table.add_column(column, overflow="fold")
    for column in ("top-1 % (95% CI)", "mean class %", "best on test %", "p", "chance %"):
        table.add_column(column, justify="right")
    for result in results:
        for score in result:
            probe = f"{score.protocol} {score.setting}".strip()
            spread = f" ± {100 * score.draws_std:.1f}" if score.draws_std is not None else ""
            low, high = score.top1_interval
            table.add_row(
                probe,
                score.label,
                score.encoder,
                f"{100 * score.top1:.2f}{spread} ({100 * low:.1f} to {100 * high:.1f})",
                f"{100 * score.mean_class:.2f}",
                "" if score.best_on_test is None else f"{100 * score.best_on_test:.2f}",
                "" if score.p_value is None else f"{score.p_value:.2g}",
                f"{100 * score.chance:.1f}",
            )
        table.add_section()
    departures = dict.fromkeys(
        line for result in results for score in result for line in score.departures
    )
    lines = [f"Not of the protocol: {'; '.join(departures)}"] if departures else []
    lines += [
        _repeats(repeats) for repeats in {len(result[0].repeats) for result in results} if repeats
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


def _repeats(number: int) -> str:
    return f"{number:,} test images are training images, too, byte for byte under another name"
