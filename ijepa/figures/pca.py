"""Patch tokens as colours: their first three principal components as red, green and blue."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ijepa.arrays import Bools, Floats, Pixels
from ijepa.errors import IjepaError
from ijepa.figures.draw import HIDDEN, Section, Tile, sheet

TAILS = (1.0, 99.0)  # percentiles that become darkest and brightest


def principal_components(tokens: Floats, count: int = 3) -> tuple[Floats, Floats]:
    """Project tokens (n, dim); of each component the largest loading is positive.

    Returns (n, count) places of the tokens along them, and (count,) shares of the variance, 0 to 1.
    """
    mean, num = tokens.mean(axis=0), len(tokens)
    covariance = (tokens.T @ tokens - num * mean[:, np.newaxis] * mean) / (num - 1)
    variances, vectors = np.linalg.eigh(covariance)  # ascending
    variances = np.maximum(variances[::-1], 0)
    loadings = vectors.T[::-1][:count]
    largest = loadings[np.arange(count), np.abs(loadings).argmax(axis=1)]
    places = (tokens - mean) @ (loadings * np.sign(largest)[:, np.newaxis]).T
    return places, variances[:count] / variances.sum()


def patch_colours(tokens: Floats, threshold: float | None = None) -> tuple[Pixels, float]:
    """Colour the patches of a batch of images, so that alike tokens are alike in all of them.

    Args:
        tokens: (images, rows, columns, dim).
        threshold: colour only patches that lie above it on the first component, scaled from 0 to 1
            and turned so that the images' borders lie lower than their insides; the colours are
            then components of these patches alone, as DINOv2's figures have it. None colours all.

    Returns:
        (images, rows, columns, 3) uint8, and the components' share of the variance, 0 to 1.
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
    places, explained = principal_components(flat[kept])
    colours = np.full((len(flat), 3), HIDDEN, dtype=np.uint8)
    colours[kept] = (255 * _scaled(places)).round().astype(np.uint8)
    return colours.reshape(*shape, 3), float(explained.sum())


def foreground(tokens: Floats, threshold: float) -> Bools:
    """(images, rows, columns): patches above the threshold, see `patch_colours`."""
    shape = tokens.shape[:3]
    flat = tokens.reshape(-1, tokens.shape[3]).astype(np.float64)
    first = principal_components(flat, 1)[0].reshape(shape)
    border = np.ones(shape[1:], dtype=bool)
    border[1:-1, 1:-1] = False
    if not border.all() and first[:, border].mean() > first[:, ~border].mean():
        first = -first
    above: Bools = _scaled(first.reshape(-1, 1)).reshape(shape) > threshold
    return above


def colour_figure(
    images: Sequence[Pixels], columns: Sequence[tuple[str, float, Pixels]], captions: Sequence[str]
) -> Figure:
    """Draw one row an image (height, width, 3): the image, then its patches in several columns.

    Columns are a title, the share of variance, and `patch_colours` of as many images.
    """
    headings = [["image"], *((title, f"{explained:.0%}") for title, explained, _ in columns)]
    rows = [
        [Tile(image), *(Tile(colours[number]) for _, _, colours in columns)]
        for number, image in enumerate(images)
    ]
    return sheet([Section("", headings, rows)], captions)


def _scaled(places: Floats) -> Floats:
    """Each column from 0 to 1, its outermost percent cut."""
    low, high = np.percentile(places, TAILS, axis=0)
    scaled: Floats = np.clip((places - low) / np.maximum(high - low, 1e-12), 0, 1)
    return scaled
