"""Scores as tables for the terminal; the same tables, rows and numbers as on the page."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from ijepa.report import ReportResult
    from ijepa.results.compare import Comparisons
    from ijepa.results.record import Score, Scores

UNEVEN = 0.005  # difference of top-1 and the mean of classes that is worth a column
NAMED = ("mIoU", "delta1", "mean accuracy")  # of measures, columns of their own
SIGNIFICANT = 0.05  # p-value of the paired test


def report_tables(result: "ReportResult") -> Iterator[Table | str]:
    """Tables of the paper that hold a number of ours, ablations at scale, scores, the verdict."""
    for shown in result.tables:
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
    yield from result.verdict
    if result.results:
        made, total = result.paper_cells
        yield f"the paper's tables: {made} of {total} numbers have a result beside them (--paper)"


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


def score_table(result: "Scores") -> Table:
    """One row a score; the last column compares with the first encoder on the same images."""
    first = result[0]
    uneven = any(abs(score.mean_class - score.top1) > UNEVEN for score in result)
    heads = ["setting"] if any(score.setting for score in result) else []
    main = f"#{first.headline} % (95%)"
    heads += ["encoder", main, *(["#mean of classes %"] if uneven else [])]
    heads += [f"#{name} % (95%)" for name in first.metrics]
    heads += [f"#{name} (95%)" for name in first.measures if name not in NAMED]
    heads += ["compared with the first"] if len({score.encoder for score in result}) > 1 else []
    table, leader = _table(None, *heads), first
    for score in result:
        leader = score if score.p_value is None and score.encoder == first.encoder else leader
        low, high = score.top1_interval
        spread = f" ± {100 * score.draws_std:.1f}" if score.draws_std is not None else ""
        interval = f"({100 * low:.1f} to {100 * high:.1f})"
        cells = {
            "setting": score.setting,
            "encoder": score.encoder,
            **{
                f"#{n} (95%)": "{:.4g} ({:.3g} to {:.3g})".format(*m)
                for n, m in score.measures.items()
            },
            main: f"{100 * score.top1:.2f}{spread} {interval}",
            "#mean of classes %": f"{100 * score.mean_class:.2f}",
            "compared with the first": _compared(score, leader),
        }
        for name, (value, *ends) in score.metrics.items():
            between = " to ".join(f"{100 * end:.1f}" for end in ends)
            cells[f"#{name} % (95%)"] = f"{100 * value:.2f} ({between})"
        table.add_row(*(cells[head] for head in heads))
    return table


def score_title(result: "Scores") -> str:
    """What a table of scores is about: protocol, label, images, and what a constant guess gives."""
    first = result[0]
    return (
        f"{first.protocol}, label {first.label}, {first.test_rows:,} test images; {first.guess} "
        f"gives {100 * first.chance:.1f}%"
    )


def _compared(score: "Score", first: "Score") -> str:
    """The difference and its p-value, in words."""
    if score is first:
        return ""
    points = 100 * (score.top1 - first.top1)
    if score.p_value is None:
        return f"{points:+.1f} points, not tested"
    p = "p < 0.001" if score.p_value < 0.001 else f"p = {score.p_value:.2g}"
    clear = score.p_value < SIGNIFICANT
    return f"{points:+.1f} points, {p}" if clear else f"no clear difference, {p}"


def score_notes(scores: Sequence["Score"]) -> list[str]:
    """What must be said with scores: deviations from their protocol, duplicates in the data."""
    deviations = dict.fromkeys(line for score in scores for line in score.deviations)
    notes = [f"deviations from the protocol: {'; '.join(deviations)}"] if deviations else []
    return notes + [
        f"{number:,} test images are also training images, byte for byte, under another name"
        for number in {len(score.repeats) for score in scores} - {0}
    ]


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
