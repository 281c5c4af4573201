"""The report's page: one HTML file that loads nothing."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from ijepa.paper import tables_by
from ijepa.results.beside import PaperTable
from ijepa.results.embed import Picture
from ijepa.results.groups import Group, Line
from ijepa.results.record import Origin, ProbeResult
from ijepa.results.run_view import RunView
from ijepa.results.scaled import ScaledTable
from ijepa.results.stand_ins import StandInTable
from ijepa.templating import templates
from ijepa.versions import library_versions


class Contents(NamedTuple):
    """All that a page shows.

    Attributes:
        paper: every table of the paper, with ours beside it where it was made.
        stand_ins: tables of the paper filled by encoders that stand for its rows.
        scaled: ablations at the scale of other data.
        groups: all scores, comparable ones together.
        results: where they come from.
    """

    paper: Sequence[PaperTable]
    stand_ins: Sequence[StandInTable]
    scaled: Sequence[ScaledTable]
    groups: Sequence[Group]
    results: Sequence[ProbeResult]
    runs: Sequence[RunView]
    pictures: Sequence[Picture]


def page(contents: Contents) -> str:
    """The whole HTML text."""
    environment = templates("results/templates")
    environment.globals.update(
        percent=percent,
        spread=spread,
        seeds=seeds,
        tables_by=tables_by,
        short=short,
        origins=origins,
        counted=counted,
    )
    environment.filters["breakable"] = breakable
    template = environment.get_template("page.html.j2")
    filled = any(cell.ours for table in contents.paper for cell in table.cells)
    version = library_versions().get("ijepa", "not installed")  # run from a checkout
    return template.render(**contents._asdict(), version=version, paper_first=filled)


def percent(share: float | None, digits: int = 2) -> str:
    """0.4821 as 48.21; nothing where there is none."""
    return "" if share is None else f"{100 * share:.{digits}f}"


def spread(line: Line) -> str:
    """How sure a line's top-1 is: over seeds, or the interval of the only score."""
    if line.top1_std is not None:
        return f"± {percent(line.top1_std)} over {len(line.members)} seeds"
    (member,) = line.members
    low, high = member.interval
    draws = f", ± {percent(member.draws_std)} over draws" if member.draws_std is not None else ""
    return f"{percent(low, 1)} to {percent(high, 1)}{draws}"


def seeds(line: Line) -> str:
    """Seeds of encoder and probe, such as `0/0, 1/0`."""
    pairs = (member.seeds for member in line.members)
    return ", ".join(f"{'-' if encoder is None else encoder}/{probe}" for encoder, probe in pairs)


def origins(result: ProbeResult) -> list[Origin]:
    """Encoders of a result, each once."""
    found: list[Origin] = []
    for score in result.scores:
        if score.origin not in found:
            found.append(score.origin)
    return found


def counted(things: Sequence[object], noun: str) -> str:
    """Such as `1 run` or `2 runs`."""
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"


def breakable(path: str) -> Markup:
    """A path that a narrow page may break behind a separator, not only in the middle of a word."""
    text = escape(path)
    for separator in "/_:-":
        text = text.replace(separator, Markup(f"{separator}<wbr>"))
    return text


def short(value: object) -> str:
    """A chosen value: numbers in four digits."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.4g}" if is_number else str(value)
