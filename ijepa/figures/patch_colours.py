"""Patch tokens as colours: their first three principal components as red, green and blue."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.decomposition import PCA

from ijepa.errors import IjepaError
from ijepa.figures.sheet import (
    GAP_PX,
    LINE_PX,
    SOFT,
    Pixels,
    Sheet,
    caption_lines,
    captions_height,
    write_captions,
)

BACKGROUND = 222  # grey of patches that are not of the foreground
TAILS = (1.0, 99.0)  # percentiles that become darkest and brightest
TILE_PX = 128

Floats = np.ndarray[tuple[int, ...], np.dtype[np.floating[Any]]]
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class Components(NamedTuple):
    """Principal components of tokens.

    Attributes:
        places: (n, k) of each token along them.
        explained: (k,) share of the variance, 0 to 1.
    """

    places: Floats
    explained: Floats


class PatchColours(NamedTuple):
    """Colours of the patches of some images.

    Attributes:
        colours: (images, rows, columns, 3) uint8.
        explained: share of the coloured tokens' variance that the three components have, 0 to 1.
        foreground: (images, rows, columns), which patches are coloured.
    """

    colours: Pixels
    explained: float
    foreground: Bools


def principal_components(tokens: Floats, count: int = 3) -> Components:
    """Project tokens; of each component the largest loading is positive, whatever the solver.

    Args:
        tokens: (n, dim), at least `count` + 1 of them.
        count: at most dim.
    """
    pca = PCA(count, svd_solver="covariance_eigh").fit(tokens)
    loadings = pca.components_
    largest = loadings[np.arange(count), np.abs(loadings).argmax(axis=1)]
    places = (tokens - pca.mean_) @ (loadings * np.sign(largest)[:, np.newaxis]).T
    return Components(places, pca.explained_variance_ratio_)


def patch_colours(tokens: Floats, threshold: float | None = None) -> PatchColours:
    """Colour the patches of a batch of images, so that alike tokens are alike in all of them.

    Args:
        tokens: (images, rows, columns, dim).
        threshold: colour only patches that lie above it on the first component, scaled from 0 to 1
            and turned so that the images' borders lie lower than their insides; the colours are
            then components of these patches alone, as DINOv2's figures have it. None colours all.

    Raises:
        IjepaError: the threshold leaves too few patches for three components.
    """
    shape, dim = tokens.shape[:3], tokens.shape[3]
    flat = tokens.reshape(-1, dim).astype(np.float64)
    kept = np.ones(len(flat), dtype=bool)
    if threshold is not None:
        kept = foreground(tokens, threshold).ravel()
        if kept.sum() < 4:
            raise IjepaError(
                f"Only {int(kept.sum())} patches lie above the foreground threshold {threshold:g}; "
                f"choose a lower one."
            )
    found = principal_components(flat[kept])
    colours = np.full((len(flat), 3), BACKGROUND, dtype=np.uint8)
    colours[kept] = (255 * _scaled(found.places)).round().astype(np.uint8)
    return PatchColours(
        colours.reshape(*shape, 3), float(found.explained.sum()), kept.reshape(shape)
    )


def foreground(tokens: Floats, threshold: float) -> Bools:
    """(images, rows, columns): patches above the threshold, see `patch_colours`."""
    shape = tokens.shape[:3]
    flat = tokens.reshape(-1, tokens.shape[3]).astype(np.float64)
    first = principal_components(flat, 1).places.reshape(shape)
    border = np.ones(shape[1:], dtype=bool)
    border[1:-1, 1:-1] = False
    if not border.all() and first[:, border].mean() > first[:, ~border].mean():
        first = -first
    above: Bools = _scaled(first.reshape(-1, 1)).reshape(shape) > threshold
    return above


class Column(NamedTuple):
    """One encoder and layer: its name, and `PatchColours` of the images that are shown."""

    title: str
    explained: float
    colours: Pixels


def colour_sheet(
    images: Sequence[Pixels], columns: Sequence[Column], captions: Sequence[str]
) -> Sheet:
    """Draw one row an image: the image, then its patches by each encoder and layer.

    Args:
        images: (height, width, 3) uint8 each.
        columns: colours of as many images.
        captions: sentences that stand above.
    """
    size = _size(images[0])
    width = max(3, len(columns) + 1) * (size[0] + GAP_PX) + GAP_PX
    lines = caption_lines(captions, width)
    top = captions_height(lines)
    sheet = Sheet(width, top + 2 * LINE_PX + len(images) * (size[1] + GAP_PX))
    write_captions(sheet, lines)
    sheet.words(GAP_PX, top, "image")
    for place, column in enumerate(columns, start=1):
        left = GAP_PX + place * (size[0] + GAP_PX)
        sheet.words(left, top, column.title)
        sheet.words(left, top + LINE_PX, f"{column.explained:.0%}", SOFT)
    for row, image in enumerate(images):
        down = top + 2 * LINE_PX + row * (size[1] + GAP_PX)
        sheet.picture(GAP_PX, down, image, size)
        for place, column in enumerate(columns, start=1):
            sheet.picture(GAP_PX + place * (size[0] + GAP_PX), down, column.colours[row], size)
    return sheet


def _scaled(places: Floats) -> Floats:
    """Each column from 0 to 1, its outermost percent cut."""
    low, high = np.percentile(places, TAILS, axis=0)
    scaled: Floats = np.clip((places - low) / np.maximum(high - low, 1e-12), 0, 1)
    return scaled


def _size(image: Pixels) -> tuple[int, int]:
    """(width, height) of a tile."""
    height, width = image.shape[:2]
    scale = TILE_PX / max(height, width)
    return round(width * scale), round(height * scale)
