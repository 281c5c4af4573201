"""A line chart as SVG text, small enough to stand in a page and readable on light and dark."""

import math
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 14, 40  # margins that hold the axes' labels
MOST_POINTS = 400  # more than the chart has pixels to show
TICKS = 4


class Series(NamedTuple):
    """One line: its name, and its points in ascending order of x."""

    name: str
    x: list[float]
    y: list[float]


class _Axis(NamedTuple):
    """A linear map from values to pixels."""

    low: float
    high: float
    start_px: float
    end_px: float

    def px(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start_px + share * (self.end_px - self.start_px)


def line_chart(series: list[Series], x_label: str, y_label: str) -> Markup:
    """Draw lines over a common grid, named by a legend where there are several.

    Args:
        series: at least one point in all together.
        x_label: with its unit, if it has one.
        y_label: likewise.
    """
    x_ticks = nice_ticks(*_ends([value for line in series for value in line.x]))
    y_ticks = nice_ticks(*_ends([value for line in series for value in line.y]))
    across = _Axis(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    up = _Axis(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">',
        *(_x_tick(across, tick) for tick in x_ticks),
        *(_y_tick(up, tick) for tick in y_ticks),
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{escape(x_label)}</text>',
        f'<text class="label" transform="translate(13 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>',
        *(_line(line, number, across, up) for number, line in enumerate(series)),
        *(_legend(line, number) for number, line in enumerate(series) if len(series) > 1),
        "</svg>",
    ]
    return Markup("".join(parts))  # every text in it is escaped above


def nice_ticks(low: float, high: float) -> list[float]:
    """About four round numbers, the first not above `low`, the last not below `high`."""
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    rough = (high - low) / TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(s * magnitude for s in (1, 2, 2.5, 5, 10) if s * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _ends(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def _x_tick(axis: _Axis, value: float) -> str:
    px = axis.px(value)
    return (
        f'<line class="grid" x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_short(value)}</text>'
    )


def _y_tick(axis: _Axis, value: float) -> str:
    px = axis.px(value)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{px:.1f}" y2="{px:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{px + 4:.1f}" text-anchor="end">{_short(value)}</text>'
    )


def _line(line: Series, number: int, across: _Axis, up: _Axis) -> str:
    every = max(1, math.ceil(len(line.x) / MOST_POINTS))
    x, y = line.x[::every] + line.x[-1:], line.y[::every] + line.y[-1:]
    pairs = zip(x, y, strict=True)
    points = " ".join(f"{across.px(a):.1f},{up.px(b):.1f}" for a, b in pairs)
    return f'<polyline class="line line{number}" points="{points}"/>'


def _legend(line: Series, number: int) -> str:
    x, y = LEFT + 10 + 130 * number, TOP + 10
    return (
        f'<line class="line line{number}" x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}"/>'
        f'<text x="{x + 23}" y="{y}">{escape(line.name)}</text>'
    )


def _short(value: float) -> str:
    """At most five characters or so: 1.5k, 0.002, 1e-05."""
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{round(value, 10):g}"
