"""The report's page: one HTML file that loads nothing."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from PIL import Image

from ijepa.errors import IjepaError
from ijepa.results.record import Result, Score, result_id
from ijepa.results.tables import Shown
from ijepa.templating import templates
from ijepa.version import VERSION

MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}
PAGE = ".html"
PICTURES = (*MEDIA, PAGE)  # what `ijepa visualize` makes
# Facts of a picture's record that tell what it shows, in this order, where it has them.
TELLING = ("encoder", "which", "layer", "layers", "data", "source", "split", "recipe", "seed")
SECTIONS = {
    "paper": "The paper's tables",
    "ablation": "The paper's ablations at other scales",
    "scores": "Scores",
}


class Picture(NamedTuple):
    """A picture inside the page."""

    name: str  # of its file; empty for what the page draws itself
    html: Markup  # the element that shows it
    caption: str
    command: str = ""  # that made it; empty if it is not known


class RunView(NamedTuple):
    """What the page shows of a run; `masks` is empty where no pretraining has any."""

    name: str
    summary: str
    masks: str
    maps: Sequence[Picture]
    charts: Sequence[Picture]
    config: str
    command: str


def page(
    title: str,
    tables: Sequence[Shown],
    results: Sequence[Result],
    runs: Sequence[RunView],
    pictures: Sequence[Picture],
) -> str:
    """The whole HTML text; the paper's tables lead if a number of ours is in them."""
    environment = templates("results/templates")
    environment.globals.update(result_id=result_id, encoders=_encoders, counted=_counted)
    environment.filters["breakable"] = breakable
    is_filled = any(any(table.made) for table in tables if table.kind == "paper")
    kinds = sorted(SECTIONS, key=lambda kind: kind == "paper" and not is_filled)
    sections = [(k, SECTIONS[k], [t for t in tables if t.kind == k]) for k in kinds]
    return environment.get_template("page.html.j2").render(
        title=title,
        sections=[section for section in sections if section[2]],
        results=results,
        runs=runs,
        pictures=pictures,
        version=VERSION,
    )


def file_picture(path: Path, record: Mapping[str, Any] | None) -> Picture:
    """Take a PNG, JPEG, SVG or HTML file into the page, with the record of what made it.

    Raises:
        IjepaError: an image that is none, or text that is not UTF-8.
    """
    caption, command = _caption(record), str((record or {}).get("command", ""))
    suffix = path.suffix.lower()
    try:
        text = path.read_text() if suffix in (PAGE, ".svg") else ""
        if suffix not in (PAGE, ".svg"):
            with Image.open(path) as image:
                image.verify()
    except UnicodeDecodeError as error:
        raise IjepaError(f"{path} is not UTF-8 text ({error.reason}); make it again.") from error
    except (OSError, SyntaxError) as error:
        raise IjepaError(
            f"{path} is no picture that can be read ({error}); make it again."
        ) from error
    if suffix == PAGE:
        frame = Markup('<iframe sandbox="allow-scripts" title="{}" srcdoc="{}"></iframe>')
        return Picture(path.name, frame.format(path.name, text), caption, command)
    if suffix == ".svg" and "<svg" not in text:
        raise IjepaError(f"{path} is no SVG picture; make it again with `ijepa visualize`.")
    html = _img(MEDIA[suffix], path.read_bytes(), f"{path.name}: {caption}")
    return Picture(path.name, html, caption, command)


def map_picture(image: Image.Image, caption: str) -> Picture:
    """A small image whose pixels are shown large."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return Picture("", _img("image/png", buffer.getvalue(), caption, "map"), caption)


def _img(media: str, content: bytes, alt: str, kind: str = "") -> Markup:
    address = f"data:{media};base64,{base64.b64encode(content).decode()}"
    return Markup('<img class="{}" src="{}" alt="{}">').format(kind, address, alt)


def _caption(record: Mapping[str, Any] | None) -> str:
    """What a picture shows: the settings that tell the most."""
    if record is None:
        return "No record stands beside the file: nothing is known of it."
    known = {**record.get("config", {}), **record}
    told = [f"{name} {known[name]}" for name in TELLING if isinstance(known.get(name), str | int)]
    return ", ".join([str(record.get("stage", "made by hand")), *told])


def breakable(path: str) -> Markup:
    """A path that a narrow page may break behind a separator, not only in the middle of a word."""
    text = escape(path)
    for separator in "/_:-":
        text = text.replace(separator, Markup(f"{separator}<wbr>"))
    return text


def _encoders(result: Result) -> list[Score]:
    """A score of each encoder of a result."""
    views = ("encoder", "weights_sha256", "which", "layers", "pooling", "image_px", "test_features")
    found = {str([getattr(score, name) for name in views]): score for score in reversed(result)}
    return list(reversed(found.values()))


def _counted(things: Sequence[object], noun: str) -> str:
    """Such as `1 run` or `2 runs`."""
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"
