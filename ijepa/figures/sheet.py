"""A sheet to put pictures, words, frames and dots on, written as PNG or as SVG.

It has a white ground of its own, so that it looks the same on a light and on a dark page.
"""

import base64
import io
import textwrap
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from markupsafe import escape
from PIL import Image, ImageDraw, ImageFont

from ijepa.text import printable

FORMATS = (".png", ".svg")
INK, SOFT, GROUND = "#1e1e1e", "#5c6670", "#ffffff"
TEXT_PX, LINE_PX, GAP_PX = 13, 18, 10
CHARACTER_PX = 6.6  # of the font at 13 px, on the average

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Point = tuple[float, float]


class _Picture(NamedTuple):
    place: tuple[int, int]
    pixels: Image.Image


class _Words(NamedTuple):
    place: tuple[int, int]
    text: str
    colour: str


class _Line(NamedTuple):
    points: tuple[Point, ...]
    colour: str
    width: int


class _Shape(NamedTuple):
    corners: tuple[Point, ...]  # one is the middle of a dot
    radius: float
    colour: str


class Sheet:
    """What is put on it last lies on top; places are pixels from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        """Start with an empty sheet."""
        self.width, self.height = width, height
        self._marks: list[_Picture | _Words | _Line | _Shape] = []

    def picture(self, x: int, y: int, pixels: Pixels, size: tuple[int, int] | None = None) -> None:
        """Put down (height, width, 3) uint8, brought to `size` (width, height): larger in squares.

        What becomes smaller is averaged.
        """
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if size and size != image.size:
            grows = size[0] >= image.width
            how = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
            image = image.resize(size, how)
        self._marks.append(_Picture((x, y), image))

    def words(self, x: int, y: int, text: str, colour: str = INK) -> None:
        """Write lines of text, the first one's top at `y`."""
        for number, line in enumerate(printable(text).split("\n")):
            self._marks.append(_Words((x, y + number * LINE_PX), line, colour))

    def line(self, points: Sequence[Point], colour: str = INK, width: int = 1) -> None:
        """Draw from point to point."""
        self._marks.append(_Line(tuple(points), colour, width))

    def frame(self, x: int, y: int, size: tuple[int, int], colour: str, width: int = 2) -> None:
        """Draw a rectangle around a picture of that (width, height)."""
        right, bottom = x + size[0] - 1, y + size[1] - 1
        corners = [(x, y), (right, y), (right, bottom), (x, bottom), (x, y)]
        self.line(corners, colour, width)

    def shape(self, corners: Sequence[Point], colour: str, radius: float = 0.0) -> None:
        """Fill a polygon, or, given one point, a dot of that radius."""
        self._marks.append(_Shape(tuple(corners), radius, colour))

    def encoded(self, suffix: str) -> bytes:
        """The file's bytes; `suffix` is one of `FORMATS`. Equal sheets give equal bytes."""
        return {".png": self._png, ".svg": self._svg}[suffix]()

    def _png(self) -> bytes:
        buffer = io.BytesIO()
        self._drawn().save(buffer, "PNG")
        return buffer.getvalue()

    def _drawn(self) -> Image.Image:
        image = Image.new("RGB", (self.width, self.height), GROUND)
        pen = ImageDraw.Draw(image)
        font = ImageFont.load_default(TEXT_PX)
        for mark in self._marks:
            match mark:
                case _Picture(place, pixels):
                    image.paste(pixels, place)
                case _Words(place, text, colour):
                    pen.text(place, text, fill=colour, font=font)
                case _Line(points, colour, width):
                    pen.line(points, fill=colour, width=width, joint="curve")
                case _Shape(((x, y),), radius, colour):
                    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
                case _Shape(corners, _, colour):
                    pen.polygon(corners, fill=colour)
        return image

    def _svg(self) -> bytes:
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="system-ui, sans-serif" '
            f'font-size="{TEXT_PX}">',
            f'<rect width="100%" height="100%" fill="{GROUND}"/>',
            *(_svg_of(mark) for mark in self._marks),
            "</svg>\n",
        ]
        return "\n".join(parts).encode()


def caption_lines(texts: Sequence[str], width: int) -> list[str]:
    """Break sentences into lines that fit on a sheet of that width."""
    columns = max(20, int((width - 2 * GAP_PX) / CHARACTER_PX))
    return [line for text in texts for line in textwrap.wrap(text, columns)]


def write_captions(sheet: Sheet, lines: Sequence[str]) -> int:
    """Write what stands above everything else, and say where it ends."""
    sheet.words(GAP_PX, GAP_PX, "\n".join(lines))
    return captions_height(lines)


def captions_height(lines: Sequence[str]) -> int:
    """Pixels that `write_captions` takes."""
    return GAP_PX + LINE_PX * len(lines) + GAP_PX


def shortened(text: str, width: int, keep: Literal["start", "end"] = "end") -> str:
    """The text, or as much of it as fits into that many pixels; keys differ at their ends."""
    font = ImageFont.load_default(TEXT_PX)
    short, rest = text, text
    while font.getlength(short) > width and rest:
        rest = rest[1:] if keep == "end" else rest[:-1]
        short = f"...{rest}" if keep == "end" else f"{rest}..."
    return short


def heat_colours() -> Pixels:
    """256 colours from white over orange to dark red: more is darker, in grey too."""
    stops = np.array([[255, 255, 255], [254, 217, 142], [236, 112, 20], [102, 37, 6]], dtype=float)
    place = np.linspace(0, 1, 256)
    channels = [np.interp(place, np.linspace(0, 1, 4), stops[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


def png_of(image: Image.Image) -> str:
    """A picture as a `data:` address."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _svg_of(mark: _Picture | _Words | _Line | _Shape) -> str:
    match mark:
        case _Picture((x, y), pixels):
            return (
                f'<image x="{x}" y="{y}" width="{pixels.width}" height="{pixels.height}" '
                f'href="{png_of(pixels)}"/>'
            )
        case _Words((x, y), text, colour):
            return f'<text x="{x}" y="{y + TEXT_PX - 1}" fill="{colour}">{escape(text)}</text>'
        case _Line(points, colour, width):
            return (
                f'<polyline points="{_points(points)}" fill="none" stroke="{colour}" '
                f'stroke-width="{width}" stroke-linejoin="round"/>'
            )
        case _Shape(((x, y),), radius, colour):
            return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:g}" fill="{colour}"/>'
        case _Shape(corners, _, colour):
            return f'<polygon points="{_points(corners)}" fill="{colour}"/>'


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
