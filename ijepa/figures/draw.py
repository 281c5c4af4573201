"""One way to draw: matplotlib, light or dark, as PNG or SVG that repeat to the byte.

A figure's units are pixels from its upper left corner. Text from files is data: it is drawn as it
is stored, `$` and `<` included, and control characters become visible.
"""

import contextlib
import io
import logging
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from PIL import Image

from ijepa.arrays import Floats, Ints, Pixels
from ijepa.text import printable

TEXT_PX, LINE_PX, GAP_PX, TILE_PX = 12, 17, 10, 128
LEAST_PX = 420  # width of a figure, so that its captions can be read
PNG_SCALE = 2  # pixels of a PNG for one of the figure
MOST_NAMED = 8  # letters that a warning names
PER_INCH = 72  # at which one of matplotlib's points is one pixel
INK, SOFT, GROUND = (  # light, dark
    ("#1b1f24", "#e6e9ec"),
    ("#5c6670", "#9aa4ae"),
    ("#ffffff", "#14171a"),
)
HIDDEN = 222  # grey of patches that are not shown
BLUE, GREEN, ORANGE = "#1f6feb", "#15803d", "#c2410c"
# From white over orange to dark red: more is darker, in grey too.
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#fed98e", "#ec7014", "#662506"])
# After Paul Tol's and Okabe and Ito's schemes: told apart on white, on black, and by the
# colour-blind.
COLOURS = (
    "#2f7ed8", "#e07b00", "#1f9d6b", "#d0418f", "#8a63d2", "#a89000", "#d64545", "#0c9cb4",
    "#8c6d4f", "#7a8793",
)  # fmt: skip

Line = Sequence[tuple[float, float]]  # points (across, down), 0 to 1

log = logging.getLogger(__name__)


class Tile(NamedTuple):
    """An image in a row of a sheet: (height, width, 3) uint8; None leaves a square empty."""

    pixels: Pixels | None
    words: Sequence[str] = ()  # lines below it, the first in ink, the others softer
    lines: Sequence[Line] = ()  # drawn over it
    colour: str = BLUE
    stroke: float = 2  # width of the lines in pixels


class Section(NamedTuple):
    """Rows of tiles below a title; each column's heading has one line or more."""

    title: str
    headings: Sequence[Sequence[str]]
    rows: Sequence[Sequence[Tile]]


@contextlib.contextmanager
def style(*, dark: bool = False) -> Iterator[None]:
    """Make, and encode, figures inside: settings of the user's matplotlib have no effect there."""
    ink, soft, ground = (pair[dark] for pair in (INK, SOFT, GROUND))
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # `encoded` says it once
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "text.color": ink,
                "text.parse_math": False,
                "axes.labelcolor": ink,
                "axes.edgecolor": soft,
                "xtick.color": soft,
                "ytick.color": soft,
                "figure.facecolor": ground,
                "axes.facecolor": "none",
                "font.size": TEXT_PX,
                "font.sans-serif": ["DejaVu Sans"],  # it comes with matplotlib
                "image.composite_image": False,
                "svg.fonttype": "none",
                "svg.hashsalt": "ijepa",
            }
        )
        yield


def sheet(sections: Sequence[Section], captions: Sequence[str], tile_px: int = TILE_PX) -> Figure:
    """Draw sections of tiles one below the other, below captions; `tile_px` is a longer side."""
    rows = [row for section in sections for row in section.rows]
    step = GAP_PX + max(_size(tile, tile_px)[0] for row in rows for tile in row)
    width = max(LEAST_PX, GAP_PX + step * max(map(len, rows)))
    figure, axes, top = captioned(captions, width)
    for section in sections:
        if section.title:
            words(axes, GAP_PX, top, [fitted(section.title, width - 2 * GAP_PX)])
            top += LINE_PX
        for column, heading in enumerate(section.headings):
            words(axes, GAP_PX + column * step, top, heading)
        top += LINE_PX * max(map(len, section.headings)) + 2
        for row in section.rows:
            for column, tile in enumerate(row):
                left, size = GAP_PX + column * step, _size(tile, tile_px)
                if tile.pixels is not None:
                    picture(axes, left, top, tile.pixels, size)
                lines = [np.array(line) * size + (left, top) for line in tile.lines]
                marks = LineCollection(
                    lines, colors=tile.colour, linewidths=tile.stroke, capstyle="projecting"
                )
                axes.add_collection(marks, autolim=False)
                room = size[0] + GAP_PX - 4
                words(axes, left, top + size[1], [fitted(line, room) for line in tile.words])
            below = max(len(tile.words) for tile in row)
            top += max(_size(tile, tile_px)[1] for tile in row) + LINE_PX * below + GAP_PX
    return sized(figure, width, top)


def _size(tile: Tile, tile_px: int) -> tuple[int, int]:
    """(width, height)."""
    height, width = (1, 1) if tile.pixels is None else tile.pixels.shape[:2]
    scale = tile_px / max(height, width)
    return round(width * scale), round(height * scale)


def captioned(captions: Sequence[str], width: int) -> tuple[Figure, Axes, int]:
    """A figure that `sized` finishes, with sentences at its top, and where they end."""
    figure = Figure(dpi=PER_INCH)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    columns = int((width - 2 * GAP_PX) / (0.55 * TEXT_PX))
    lines = [line for text in captions for line in textwrap.wrap(printable(text), columns)]
    for number, line in enumerate(lines):
        words(axes, GAP_PX, GAP_PX + number * LINE_PX, [line])
    return figure, axes, 2 * GAP_PX + LINE_PX * len(lines)


def sized(figure: Figure, width: int, height: int) -> Figure:
    """Make the figure that large, in pixels, its unit."""
    figure.axes[0].set(xlim=(0, width), ylim=(height, 0))
    figure.set_size_inches((width + 1e-6) / PER_INCH, (height + 1e-6) / PER_INCH)  # not one less
    return figure


def words(axes: Axes, x: float, y: float, lines: Sequence[str]) -> None:
    """Write lines of text, the first in ink and its top at `y`, the others softer."""
    for number, line in enumerate(lines):
        colour = mpl.rcParams["axes.edgecolor" if number else "text.color"]
        axes.text(x, y + TEXT_PX + number * LINE_PX, _visible(line), color=colour)


def picture(axes: Axes, x: float, y: float, pixels: Pixels, size: tuple[int, int]) -> None:
    """Show an image at that (width, height): what grows is shown in squares, else averaged."""
    fine = (size[0] * PNG_SCALE, size[1] * PNG_SCALE)
    grows = fine[0] >= pixels.shape[1]
    how = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
    shown = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(fine, how))
    extent = (x, x + size[0], y + size[1], y)
    axes.imshow(shown, extent=extent, interpolation="none", aspect="auto", zorder=1.5)


def _visible(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def fitted(text: str, width: float, keep: Literal["start", "end"] = "end") -> str:
    """The text, or as much of it as fits into that many pixels; keys differ at their ends."""
    text, font = _visible(text), FontProperties(size=TEXT_PX)
    short, rest = text, text
    while rest and text_to_path.get_text_width_height_descent(short, font, False)[0] > width:
        rest = rest[1:] if keep == "end" else rest[:-1]
        short = f"...{rest}" if keep == "end" else f"{rest}..."
    return short


def box(left: float, top: float, width: float, height: float) -> Line:
    """The outline of a rectangle."""
    right, bottom = left + width, top + height
    return [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]


def keep_patches(image: Pixels, numbers: Ints, grid: tuple[int, int]) -> Pixels:
    """The image (height, width, 3) with all but these patches, row-major in the grid, in grey."""
    seen = np.zeros(grid[0] * grid[1], dtype=bool)
    seen[numbers] = True
    sides = image.shape[0] // grid[0], image.shape[1] // grid[1]
    whole = seen.reshape(grid).repeat(sides[0], axis=0).repeat(sides[1], axis=1)
    return np.where(whole[..., np.newaxis], image, np.uint8(HIDDEN))


def heat(shares: Floats) -> Pixels:
    """Colours (..., 3) of numbers: white for 0 or less, dark for 1 or more."""
    return np.asarray(HEAT(shares, bytes=True))[..., :3]


def encoded(figure: Figure, suffix: str) -> bytes:
    """The file's bytes, without date and version; `suffix` is .png or .svg.

    Warns of letters that are boxes in a PNG. An SVG keeps its text, for the fonts of its reader.
    """
    buffer = io.BytesIO()
    if suffix == ".png":
        known = get_font(findfont(FontProperties())).get_charmap()
        texts = [text.get_text() for text in figure.findobj(Text)]
        if boxes := sorted({letter for letter in "".join(texts) if ord(letter) not in known}):
            log.warning(
                "DejaVu Sans, the font of pictures, lacks %s: boxes stand in their place. Draw an "
                ".svg, which takes your own fonts.",
                " ".join(boxes[:MOST_NAMED]) + (" and more" if len(boxes) > MOST_NAMED else ""),
            )
        dpi = PER_INCH * PNG_SCALE
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    else:
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    return buffer.getvalue()
