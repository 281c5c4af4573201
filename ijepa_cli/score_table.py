"""Scores as tables for the terminal; the same tables, rows and numbers as on the page."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from ijepa.report import ReportResult
    from ijepa.results.compare import Comparisons
    from ijepa.results.record import Scores
    from ijepa.results.tables import TableView


def report_tables(result: "ReportResult") -> Iterator[Table | str]:
    """Tables of the paper that hold a number of ours, ablations at scale, scores, the verdict."""
    yield from _as_tables(result.tables)
    yield from result.verdict
    if result.results:
        made, total = result.paper_cells
        yield f"the paper's tables: {made} of {total} numbers have a result beside them (--paper)"


def result_tables(results: "Sequence[Scores]") -> Iterator[Table | str]:
    """Tables of the scores that a command made, as a report has them; below, further measures."""
    from ijepa.results.tables import grouped, measured, score_tables

    yield from _as_tables(score_tables(grouped(results)))
    for score in (score for scores in results for score in scores):
        if score.measures:
            yield f"{score.encoder}: {', '.join(measured(score))}"


def _as_tables(tables: "Iterable[TableView]") -> Iterator[Table]:
    """All but details, and tables of the paper that hold no number of ours."""
    for shown in tables:
        if shown.kind == "details" or not any(shown.made):
            continue
        places = [n for n, head in enumerate(shown.columns) if not head.startswith("+")]
        heads = [shown.columns[place] for place in places]
        rows = [
            [f"{c.text} ({c.note})" if c.note else c.text for c in (row[place] for place in places)]
            for row in shown.rows
        ]
        if shown.kind == "scores":  # a row a probe: few encoders and many probes fit the width
            named = [head.lstrip("#") for head in heads]
            (_, *encoders), *probes = zip(named, *rows, strict=True)
            heads, rows = ["probe", *(f"#{name}" for name in encoders)], [*map(list, probes)]
        number = f"Table {shown.number}: " if shown.number else ""
        table = _table(f"{number}{shown.title}", *heads)
        for row in rows:
            table.add_row(*row)
        for column in table.columns:
            column.no_wrap = False
        table.caption = "\n".join([shown.caption, *shown.notes])
        yield table


def _table(title: str | None, *heads: str) -> Table:
    """An empty table; a column whose head begins with `#` holds numbers."""
    table = Table(
        title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for head in heads:
        number = head.startswith("#")
        side: Literal["left", "right"] = "right" if number else "left"
        table.add_column(head.lstrip("#"), justify=side, overflow="fold", no_wrap=number)
    return table


def comparison_table(found: "Comparisons") -> Table:
    """One row a setting: the difference of two encoders on the same images."""
    table = _table(
        f"{found.protocol}, {found.label}, {found.test_rows:,} test images",
        "setting", "first", "second", "#top-1 %", "#difference (95% CI)", "#mean per class",
        "#right alone", "#p",
    )  # fmt: skip

    def points(value: float, ends: tuple[float, float]) -> str:
        return f"{100 * value:+.2f} ({100 * ends[0]:+.2f} to {100 * ends[1]:+.2f})"

    for row in found.rows:
        table.add_row(
            row.setting,
            *row.encoders,
            f"{100 * row.top1[0]:.2f}, {100 * row.top1[1]:.2f}",
            points(row.difference, row.interval),
            points(row.mean_class_difference, row.mean_class_interval),
            f"{row.only_first:,}, {row.only_second:,}",
            f"{row.p_value:.2g}",
        )
    return table
