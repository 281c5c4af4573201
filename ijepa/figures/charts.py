"""Charts of the page, as HTML whose text keeps its size: a run's curves, dots with intervals."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

import yaml
from markupsafe import Markup
from matplotlib.ticker import EngFormatter, MaxNLocator

from ijepa.templating import templates

Records = Sequence[dict[str, float]]
Points = tuple[Sequence[float], Sequence[float]]  # x ascending, y
# An encoder on a probe: name; value, low and high in [0, 1]; number of its colour, from 1, which is
# the same on all probes.
Dot = tuple[str, float, float, float, int]
Strip = tuple[str, float, Sequence[Dot]]  # a probe: its title, what a constant guess reaches, dots

MOST_POINTS = 240  # more than a narrow chart has pixels to show
CURVES = [
    (one["fields"], one["title"], one["reading"])
    for one in yaml.safe_load(resources.files("ijepa.figures").joinpath("curves.yaml").read_text())
]


class Curve(NamedTuple):
    """A chart of a run, and how to read it."""

    html: Markup
    title: str
    caption: str


def run_curves(records: Records) -> tuple[list[Curve], str]:
    """Charts of a run's `metrics.jsonl`; values that never change are one line of text instead."""
    charts, constant = [], []
    has_images = any("images" in record for record in records)  # a decoder counts steps alone
    x, x_label = ("images", "images seen") if has_images else ("step", "steps")
    for fields, title, reading in CURVES:
        series = {field.replace("_", " "): points(records, x, field) for field in fields}
        if not all(x for x, _ in series.values()):
            continue
        if all(len(set(y)) == 1 for _, y in series.values()):
            constant += [f"{name} {y[0]:.4g}" for name, (_, y) in series.items()]
            continue
        charts.append(_curve(series, x_label, title, reading))
    return charts, f"Constant over the run: {', '.join(constant)}." if constant else ""


def health_curve(runs: Mapping[str, Records], most: int) -> tuple[Curve | None, list[str]]:
    """The first chart for a reader, and the measured runs that it leaves out.

    It shows nearest neighbours if any run measured them, else RankMe, of the first `most` runs.
    """
    chart, shown, missing = None, dict[str, Points](), list[str]()
    for (field, *_), title, reading in CURVES[:2]:
        series = {name: points(records, "images", field) for name, records in runs.items()}
        series = {name: curve for name, curve in series.items() if curve[0]}
        if series and chart is None:
            shown = dict(itertools.islice(series.items(), most))
            chart = _curve(shown, "images seen", title, reading)
        missing += [name for name in series if name not in (*shown, *missing)]
    return chart, missing


def points(records: Records, x: str, y: str) -> Points:
    """Values of two fields where a record has a number for the second; the first may be absent."""
    there = [record for record in records if math.isfinite(record.get(y, math.nan))]
    return [record.get(x, 0.0) for record in there], [record[y] for record in there]


def _curve(series: Mapping[str, Points], x_label: str, title: str, reading: str) -> Curve:
    ends = [
        f"from {y[0]:.4g} to {y[-1]:.4g}" if len(y) > 1 else f"measured once: {y[0]:.4g}"
        for _, y in series.values()
    ]
    if len(series) > 1:
        ends = [f"{name} {end}" for name, end in zip(series, ends, strict=True)]
    change = ", ".join(ends)
    chart = line_chart(series, x_label, title, from_zero="accuracy" in title)
    return Curve(chart, title, f"{change[0].upper()}{change[1:]}. {reading}")


def line_chart(
    series: Mapping[str, Points], x_label: str, y_label: str, *, from_zero: bool = False
) -> Markup:
    """Draw lines on common axes in the colours of the page, with a dashed line at the first value.

    Each has a point at least; their names are shown if there are several. `from_zero` begins the
    axis at 0, so that noise does not look like a change. A script of the page reads the values from
    `data-lines` and shows those under the pointer.
    """
    lines = {}
    for name, (x, y) in series.items():
        line = lines[name] = [*zip(x, y, strict=True)]
        if len(line) > MOST_POINTS:  # the first, the last, the lowest and highest of each stretch
            kept, size = {0, len(line) - 1}, -(-2 * len(line) // (MOST_POINTS - 2))
            for start in range(0, len(line), size):
                stretch = range(start, min(start + size, len(line)))
                kept |= {min(stretch, key=y.__getitem__), max(stretch, key=y.__getitem__)}
            lines[name] = [line[number] for number in sorted(kept)]
    (left, right), x_ticks = _axis([x for line in lines.values() for x, _ in line])
    values = [y for line in lines.values() for _, y in line] + [0.0] * from_zero
    (low, high), y_ticks = _axis(values, room=0.06)
    places = {
        name: [(_place(x, left, right), 1000 - _place(y, low, high)) for x, y in line]
        for name, line in lines.items()
    }
    shown = [[name, [[_short(x), _short(y)] for x, y in line]] for name, line in lines.items()]
    page = templates("figures").get_template("chart.html.j2")
    html = page.render(
        label=y_label,
        x_label=x_label,
        lines=places,
        x_ticks=[(_place(value, left, right) / 10, _tick(value)) for value in x_ticks],
        y_ticks=[(_place(value, low, high) / 10, _tick(value)) for value in y_ticks],
        data=json.dumps({"x": [left, right], "unit": x_label.split()[0], "lines": shown}),
    )
    return Markup(html)  # escaped by the template


def _axis(values: Sequence[float], room: float = 0.0) -> tuple[tuple[float, float], list[float]]:
    """The ends of an axis, with a share of room beyond the values, and its ticks."""
    low, high = min(values), max(values)
    if low == high:  # in the middle of an axis that begins at 0
        first, last = sorted((0.0, 2 * low or 1.0))
        return (first, last), [low]
    room *= high - low
    low, high = low - room, high + room
    ticks = [float(t) for t in MaxNLocator(4).tick_values(low, high) if low <= t <= high]
    return (low, high), ticks


def _place(value: float, low: float, high: float) -> float:
    """From 0 for `low` to 1000 for `high`, to a tenth."""
    return round(1000 * (value - low) / (high - low), 1)


def _tick(value: float) -> str:
    """Such as `0.15` or `20k`."""
    return EngFormatter(sep="")(value) if abs(value) >= 1000 else f"{value:.4g}"


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def interval_plot(strips: Sequence[Strip]) -> Markup:
    """Draw all strips over one axis in percent, wide enough for every interval and for chance."""
    ends = [chance for _, chance, _ in strips]
    ends += [end for *_, dots in strips for dot in dots for end in dot[2:4]]
    room = 0.03 * (max(ends) - min(ends)) or 0.05
    low, high = max(0.0, min(ends) - room), min(1.0, max(ends) + room)
    ticks = [t for t in MaxNLocator(4).tick_values(100 * low, 100 * high) if low <= t / 100 <= high]

    def place(share: float) -> float:
        return round(100 * (share - low) / (high - low), 2)

    page = templates("figures").get_template("intervals.html.j2")
    marks = [(place(tick / 100), f"{tick:g}") for tick in ticks]
    return Markup(page.render(strips=strips, place=place, ticks=marks))  # escaped by the template
