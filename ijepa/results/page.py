"""The report's page: one HTML file that loads nothing."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markupsafe import Markup, escape
from PIL import Image

from ijepa.errors import IjepaError
from ijepa.results.record import Score, Scores, result_id
from ijepa.results.tables import TableView
from ijepa.templating import templates

MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}
PAGE = ".html"
PICTURES = (*MEDIA, PAGE)  # what `ijepa visualize` makes
PREVIEW_PX = (720, 540)  # of a picture on the first screen: its upper part
# Facts of a picture's record that tell what it shows, in this order, where it has them.
TELLING = ("encoder", "which", "layer", "layers", "data", "source", "split", "recipe", "seed")
SEEN = yaml.safe_load(
    resources.files("ijepa.results").joinpath("templates/pictures.yaml").read_text()
)  # what to see in a picture, by the stage that made it
SECTIONS = {
    "scores": "Scores",
    "ablation": "The paper's ablations at other scales",
    "paper": "The paper's tables",
}


class Picture(NamedTuple):
    """A picture inside the page."""

    name: str  # of its file, or the title of a chart
    html: Markup  # the element that shows it
    caption: str
    command: str = ""  # that made it; empty if it is not known
    facts: str = ""  # what it is of: encoder, data, ...
    preview: Markup = Markup()  # a small version for the first screen; empty where there is none


def page(tables: Sequence[TableView], *, paper_first: bool, **shown: object) -> str:
    """The whole HTML text of tables, those of the paper perhaps first, and what templates show."""
    environment = templates("results/templates")
    environment.globals.update(result_id=result_id, encoders=_encoders)
    environment.filters.update(
        breakable=breakable,
        prose=lambda text: Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", str(escape(text)))),
        # The content of a CSS string, whatever is in the text.
        css_text=lambda text: re.sub(r"[^0-9A-Za-z]", lambda c: f"\\{ord(c[0]):06x}", text),
    )
    kinds = sorted(SECTIONS, key=lambda kind: kind == "scores" and paper_first)
    sections = [(k, SECTIONS[k], [t for t in tables if t.kind == k]) for k in kinds]
    return environment.get_template("page.html.j2").render(
        sections=[section for section in sections if section[2]],
        details=[table for table in tables if table.kind == "details"],
        **shown,
    )


def file_picture(path: Path, record: Mapping[str, Any] | None) -> Picture:
    """Take a PNG, JPEG, SVG or HTML file into the page, with the record of what made it."""
    facts, command = _facts(record), str((record or {}).get("command", ""))
    caption = SEEN.get(str((record or {}).get("stage")), "")
    suffix, preview = path.suffix.lower(), Markup()
    try:
        text = path.read_text() if suffix in (PAGE, ".svg") else ""
        if suffix not in (PAGE, ".svg"):
            with Image.open(path) as image:
                image.load()
                width, height = image.size
                upper = image.convert("RGB").crop((0, 0, width, min(height, width * 3 // 4)))
            upper.thumbnail(PREVIEW_PX)
            upper.save(buffer := io.BytesIO(), "PNG", optimize=True)
            preview = _img("image/png", buffer.getvalue(), f"upper part of {path.name}")
    except UnicodeDecodeError as error:
        raise IjepaError(f"{path} is not UTF-8 text ({error.reason}). Rebuild it.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise IjepaError(f"{path} cannot be read as a picture ({error}). Rebuild it.") from error
    if suffix == PAGE:
        frame = Markup('<iframe sandbox="allow-scripts" title="{}" srcdoc="{}"></iframe>')
        return Picture(path.name, frame.format(path.name, text), caption, command, facts)
    if suffix == ".svg" and "<svg" not in text:
        raise IjepaError(f"{path} is not an SVG picture. Rebuild it with `ijepa visualize`.")
    html = _img(MEDIA[suffix], path.read_bytes(), f"{path.name}: {caption or facts}")
    return Picture(path.name, html, caption, command, facts, preview or html)


def _img(media: str, content: bytes, alt: str) -> Markup:
    address = f"data:{media};base64,{base64.b64encode(content).decode()}"
    return Markup('<img src="{}" alt="{}">').format(address, alt)


def _facts(record: Mapping[str, Any] | None) -> str:
    """What a picture is of: the settings that tell the most."""
    if record is None:
        return "There is no record beside the file, so what it shows is unknown."
    known = {**record.get("config", {}), **record}
    told = []
    for name in TELLING:
        value = known.get(name)
        values = value if isinstance(value, list) else [value]
        if values and all(isinstance(one, str | int) for one in values):
            told.append(f"{name} {' and '.join(map(str, values))}")
    return ", ".join([str(record.get("stage", "made by hand")), *told])


def breakable(path: str) -> Markup:
    """A path that a narrow page may break behind a separator, not only in the middle of a word."""
    text = escape(path)
    for separator in "/_:-":
        text = text.replace(separator, Markup(f"{separator}<wbr>"))
    return text


def _encoders(result: Scores) -> list[Score]:
    """A score of each encoder of a result."""
    views = ("encoder", "weights_sha256", "which", "layers", "pooling", "image_px", "test_features")
    found = {str([getattr(score, name) for name in views]): score for score in reversed(result)}
    return list(reversed(found.values()))
