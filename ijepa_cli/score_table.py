"""Probe results as a table for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ijepa.compare import Comparisons
    from ijepa.stores.results import ProbeResult


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
                escape(score.origin.encoder),
                f"{100 * score.top1:.2f}{spread} ({100 * low:.1f} to {100 * high:.1f})",
                f"{100 * score.mean_class:.2f}",
                "" if score.best_on_test is None else f"{100 * score.best_on_test:.2f}",
                "" if score.p_value is None else f"{score.p_value:.2g}",
                f"{100 * result.chance:.1f}",
            )
        table.add_section()
    departures = dict.fromkeys(line for result in results for line in result.departures)
    if departures:
        table.caption = "Not of the protocol: " + "; ".join(departures)
        table.caption_justify = "left"
    return table


def comparison_table(found: "Comparisons") -> Table:
    """One row a setting: the difference of two encoders on the same images."""
    title = f"{found.protocol}, {found.label}, {found.test_rows:,} test images"
    table = Table(title=title, title_justify="left")
    for column in ("setting", "first", "second"):
        table.add_column(column, overflow="fold")
    for column in ("top-1 %", "difference (95% CI)", "right alone", "p"):
        table.add_column(column, justify="right")
    for row in found.rows:
        low, high = row.interval
        table.add_row(
            row.setting,
            escape(row.encoders[0]),
            escape(row.encoders[1]),
            f"{100 * row.top1[0]:.2f}, {100 * row.top1[1]:.2f}",
            f"{100 * row.difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
            f"{row.only_first:,}, {row.only_second:,}",
            f"{row.p_value:.2g}",
        )
    return table
