"""The report's page: one HTML file that loads nothing."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from PIL import Image

from ijepa.errors import IjepaError
from ijepa.results.record import Result, Score, result_id
from ijepa.results.tables import Shown
from ijepa.templating import templates

MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}
PAGE = ".html"
PICTURES = (*MEDIA, PAGE)  # what `ijepa visualize` makes
PREVIEW_PX = (720, 540)  # of a picture on the first screen: its upper part
# Facts of a picture's record that tell what it shows, in this order, where it has them.
TELLING = ("encoder", "which", "layer", "layers", "data", "source", "split", "recipe", "seed")
SEEN = {  # by the stage that made a picture: what to see in it
    "visualize masks": "The context encoder sees the context alone; the predictor must fill in the "
    "targets from it. The context should keep enough of the image to make that possible. The maps "
    "below show how often each patch is used.",
    "visualize attention": "Dark patches get most of a query's attention. In a useful encoder some "
    "heads follow objects or borders, unlike those of its random initialisation; a head that "
    "stays on one place in all images follows the position, not the content.",
    "visualize pca": "Patches of similar features have similar colours. Parts of one object should "
    "share a colour across images; smooth gradients alone show only the position of a patch.",
    "visualize neighbors": "Each row starts with a query; the images after it have the most "
    "similar features. Compare with the random initialisation or pixels: they find images of "
    "similar colours, a useful encoder finds images of the same content.",
    "visualize retrieval": "Hidden patches are drawn as the nearest real patches. The prediction "
    "should look more like the true tokens than like the mean token, which knows nothing of the "
    "image.",
    "visualize embedding": "Each point is an image. Classes that stand apart can be told apart "
    "from the features; the distances between groups mean nothing.",
    "visualize predictions": "Samples of one prediction share what the embedding says and differ "
    "in what it leaves open. The prediction is sure where its samples agree as well as those of "
    "the true embedding do.",
}
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


class RunView(NamedTuple):
    """What the page shows of a run; `masks` is empty where no pretraining has any."""

    name: str
    summary: str
    running: str  # how far an unfinished run is; empty for a finished one
    masks: str
    maps: Sequence[Picture]
    charts: Sequence[Picture]
    constant: str  # values that never change, in a sentence
    config: str
    command: str


class Head(NamedTuple):
    """The first screen."""

    title: str
    facts: Mapping[str, str]  # data, run, date, version, device, duration
    verdict: Sequence[str]  # the first sentence is the largest
    plot: Markup  # dots and intervals; empty without scores
    left_out: int  # how many probes the plot does not show
    health: Picture | None


class Content(NamedTuple):
    """All that is below the first screen."""

    tables: Sequence[Shown]
    paper: str  # a sentence on the paper's tables
    paper_first: bool  # show the paper's tables before the scores
    results: Sequence[Result]
    runs: Sequence[RunView]
    pictures: Sequence[Picture]


def page(head: Head, content: Content) -> str:
    """The whole HTML text."""
    environment = templates("results/templates")
    environment.globals.update(result_id=result_id, encoders=_encoders)
    environment.filters.update(breakable=breakable, prose=_prose, css_text=_css_text)
    tables = content.tables
    kinds = sorted(SECTIONS, key=lambda kind: kind == "scores" and content.paper_first)
    sections = [(k, SECTIONS[k], [t for t in tables if t.kind == k]) for k in kinds]
    return environment.get_template("page.html.j2").render(
        head=head,
        sections=[section for section in sections if section[2]],
        details=[table for table in tables if table.kind == "details"],
        **content._asdict(),
    )


def file_picture(path: Path, record: Mapping[str, Any] | None) -> Picture:
    """Take a PNG, JPEG, SVG or HTML file into the page, with the record of what made it.

    Raises:
        IjepaError: an image that is none, or text that is not UTF-8.
    """
    facts, command = _facts(record), str((record or {}).get("command", ""))
    caption = SEEN.get(str((record or {}).get("stage")), "")
    suffix, preview = path.suffix.lower(), Markup()
    try:
        text = path.read_text() if suffix in (PAGE, ".svg") else ""
        if suffix not in (PAGE, ".svg"):
            preview = _preview(path)
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


def _preview(path: Path) -> Markup:
    """The upper part of a PNG or JPEG, small, for the first screen."""
    with Image.open(path) as image:
        image.load()
        width, height = image.size
        upper = image.convert("RGB").crop((0, 0, width, min(height, width * 3 // 4)))
    upper.thumbnail(PREVIEW_PX)
    buffer = io.BytesIO()
    upper.save(buffer, "PNG", optimize=True)
    return _img("image/png", buffer.getvalue(), f"upper part of {path.name}")


def map_picture(image: Image.Image, caption: str) -> Picture:
    """A small image whose pixels are shown large."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return Picture("", _img("image/png", buffer.getvalue(), caption, "map"), caption)


def _img(media: str, content: bytes, alt: str, kind: str = "") -> Markup:
    address = f"data:{media};base64,{base64.b64encode(content).decode()}"
    return Markup('<img class="{}" src="{}" alt="{}">').format(kind, address, alt)


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


def _prose(text: str) -> Markup:
    """A sentence, what is between backticks as code."""
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", str(escape(text))))


def _encoders(result: Result) -> list[Score]:
    """A score of each encoder of a result."""
    views = ("encoder", "weights_sha256", "which", "layers", "pooling", "image_px", "test_features")
    found = {str([getattr(score, name) for name in views]): score for score in reversed(result)}
    return list(reversed(found.values()))


def _css_text(text: str) -> Markup:
    """Text as the content of a CSS string, whatever is in it."""
    return Markup("".join(c if c.isascii() and c.isalnum() else f"\\{ord(c):06x}" for c in text))
