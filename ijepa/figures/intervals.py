"""Dots with intervals: how encoders compare on each probe, as HTML whose text keeps its size."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from ijepa.templating import templates


class Dot(NamedTuple):
    """One encoder on one probe; numbers are shares, from 0 to 1."""

    name: str
    value: float
    low: float
    high: float
    kind: int  # its colour, from 1; alike for one encoder on all probes


class Strip(NamedTuple):
    """One probe: what it asks, what guessing the most frequent class reaches, and its dots."""

    title: str
    chance: float
    dots: Sequence[Dot]


def interval_plot(strips: Sequence[Strip]) -> Markup:
    """Draw all strips over one axis in percent, wide enough for every interval and for chance."""
    ends = [end for s in strips for end in (s.chance, *(e for d in s.dots for e in d[2:4]))]
    room = 0.03 * (max(ends) - min(ends)) or 0.05
    low, high = max(0.0, min(ends) - room), min(1.0, max(ends) + room)
    ticks = [t for t in MaxNLocator(4).tick_values(100 * low, 100 * high) if low <= t / 100 <= high]

    def place(share: float) -> float:
        return round(100 * (share - low) / (high - low), 2)

    page = templates("figures").get_template("intervals.html.j2")
    marks = [(place(tick / 100), f"{tick:g}") for tick in ticks]
    return Markup(page.render(strips=strips, place=place, ticks=marks))  # escaped by the template
