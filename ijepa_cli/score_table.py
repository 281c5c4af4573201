"""Scores as tables for the terminal; the same tables, rows and numbers as on the page."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from rich.table import Table

if TYPE_CHECKING:
    from ijepa.report import ReportOutcome
    from ijepa.results.compare import Comparisons
    from ijepa.results.record import Result


def report_tables(outcome: "ReportOutcome") -> Iterator[Table | str]:
    """Tables of the paper that hold a number of ours, ablations at scale, scores, the verdict."""
    for shown in outcome.tables:
        if shown.kind == "details" or not any(shown.made):
            continue
        places = [n for n, head in enumerate(shown.columns) if not head.startswith("+")]
        number = f"Table {shown.number}: " if shown.number else ""
        table = _table(f"{number}{shown.title}", *(shown.columns[place] for place in places))
        for row in shown.rows:
            cells = (row[place] for place in places)
            table.add_row(*(f"{c.text} ({c.note})" if c.note else c.text for c in cells))
        table.caption = "\n".join([shown.caption, *shown.notes])
        yield table
    yield from outcome.verdict
    if outcome.results:
        made, total = outcome.paper_cells
        yield f"the paper's tables: {made} of {total} numbers have a result beside them (--paper)"


def _table(title: str | None, *heads: str) -> Table:
    """An empty table; a column whose head begins with `#` holds numbers."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    for head in heads:
        justify: Literal["left", "right"] = "right" if head.startswith("#") else "left"
        table.add_column(head.lstrip("#"), justify=justify, overflow="fold")
    return table


def score_table(results: Sequence["Result"], *, cached: bool = False) -> Table:
    """One row a score; p compares with the first encoder of the same result."""
    table = _table(
        "cached" if cached else None,
        "probe", "label", "encoder", "#top-1 % (95% CI)", "#mean class %", "#best on test %", "#p",
        "#chance %",
    )  # fmt: skip
    for result in results:
        for score in result:
            spread = f" ± {100 * score.draws_std:.1f}" if score.draws_std is not None else ""
            low, high = score.top1_interval
            table.add_row(
                f"{score.protocol} {score.setting}".strip(),
                score.label,
                score.encoder,
                f"{100 * score.top1:.2f}{spread} ({100 * low:.1f} to {100 * high:.1f})",
                f"{100 * score.mean_class:.2f}",
                "" if score.best_on_test is None else f"{100 * score.best_on_test:.2f}",
                "" if score.p_value is None else f"{score.p_value:.2g}",
                f"{100 * score.chance:.1f}",
            )
        table.add_section()
    scores = [score for result in results for score in result]
    deviations = dict.fromkeys(line for score in scores for line in score.deviations)
    notes = [f"Not of the protocol: {'; '.join(deviations)}"] if deviations else []
    notes += [
        f"{number:,} test images are training images, too, byte for byte under another name"
        for number in {len(score.repeats) for score in scores} - {0}
    ]
    table.caption = "\n".join(notes) or None
    return table


def comparison_table(found: "Comparisons") -> Table:
    """One row a setting: the difference of two encoders on the same images."""
    table = _table(
        f"{found.protocol}, {found.label}, {found.test_rows:,} test images",
        "setting", "first", "second", "#top-1 %", "#difference (95% CI)", "#mean per class",
        "#right alone", "#p",
    )  # fmt: skip
    for row in found.rows:
        differences = (
            (row.difference, *row.interval),
            (row.mean_class_difference, *row.mean_class_interval),
        )
        table.add_row(
            row.setting,
            *row.encoders,
            f"{100 * row.top1[0]:.2f}, {100 * row.top1[1]:.2f}",
            *(
                f"{100 * v:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
                for v, low, high in differences
            ),
            f"{row.only_first:,}, {row.only_second:,}",
            f"{row.p_value:.2g}",
        )
    return table
