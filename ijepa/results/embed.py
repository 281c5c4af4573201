"""Pictures as text inside a page: data addresses, which load nothing."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ijepa.errors import IjepaError

MEDIA = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".svg": "image/svg+xml",
}
PAGE = ".html"
PICTURES = (*MEDIA, PAGE)  # what `ijepa visualize` makes
# Facts of a picture's record that tell what it shows, in this order, where it has them.
TELLING = ("encoder", "which", "layer", "layers", "data", "source", "split", "recipe", "seed")


class Picture(NamedTuple):
    """A picture of `ijepa visualize` and what is known of it.

    Attributes:
        name: of its file.
        address: data address of an image; empty for a page.
        text: of a page that lives inside the report; empty for an image.
        caption: what it shows, as its record says.
        command: that made it; empty if the record has none.
    """

    name: str
    address: str
    text: str
    caption: str
    command: str


def picture(path: Path, record: Mapping[str, Any] | None) -> Picture:
    """Take a picture into the page.

    Args:
        path: a PNG, JPEG, SVG or HTML file.
        record: of the stage that made it; None if it has none.

    Raises:
        IjepaError: an image that is none, or text that is not UTF-8.
    """
    is_page = path.suffix.lower() == PAGE
    command = str((record or {}).get("command", ""))
    if is_page:
        return Picture(path.name, "", _text(path), caption(record), command)
    return Picture(path.name, _image_uri(path), "", caption(record), command)


def caption(record: Mapping[str, Any] | None) -> str:
    """What a picture shows: its record's `caption`, else the settings that tell the most."""
    if record is None:
        return "No record stands beside the file: nothing is known of it."
    if "caption" in record:
        return str(record["caption"])
    known = {**record.get("config", {}), **record}
    told = [f"{name} {known[name]}" for name in TELLING if isinstance(known.get(name), str | int)]
    return ", ".join([str(record.get("stage", "made by hand")), *told])


def png_uri(image: Image.Image) -> str:
    """An image as the address of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def data_uri(media: str, content: bytes) -> str:
    """Bytes as an address."""
    return f"data:{media};base64,{base64.b64encode(content).decode()}"


def _image_uri(path: Path) -> str:
    media = MEDIA[path.suffix.lower()]
    if media == "image/svg+xml":
        if "<svg" not in _text(path):
            raise IjepaError(f"{path} is no SVG picture; make it again with `ijepa visualize`.")
    else:
        try:
            with Image.open(path) as image:
                image.verify()
        except (OSError, SyntaxError) as error:
            raise IjepaError(
                f"{path} is no picture that can be read ({error}); make it again."
            ) from error
    return data_uri(media, path.read_bytes())


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise IjepaError(f"{path} is not UTF-8 text ({error.reason}); make it again.") from error
