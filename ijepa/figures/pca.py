"""Patch tokens as colours: their first three principal components as red, green and blue."""

import numpy as np
from sklearn.decomposition import PCA

from ijepa.arrays import Bools, Floats, Pixels
from ijepa.errors import IjepaError
from ijepa.figures.draw import HIDDEN

TAILS = (1.0, 99.0)  # percentiles that become darkest and brightest


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
    flat = tokens.reshape(-1, tokens.shape[3]).astype(np.float64)
    kept = np.ones(len(flat), dtype=bool)
    if threshold is not None and len(flat) > 1:
        kept = _foreground(flat, tokens.shape[:3], threshold).ravel()
    if min(kept.sum(), flat.shape[1]) < 3:
        above = "" if threshold is None else f" above the threshold {threshold:g}"
        raise IjepaError(
            f"{kept.sum():,} patches{above} with tokens {flat.shape[1]} wide have no three "
            f"components; take more images{above and ', choose a lower one'}, or a wider encoder."
        )
    pca = PCA(3, svd_solver="covariance_eigh")
    colours = np.full((len(flat), 3), HIDDEN, dtype=np.uint8)
    colours[kept] = (255 * _scaled(pca.fit_transform(flat[kept]))).round().astype(np.uint8)
    return colours.reshape(*tokens.shape[:3], 3), float(pca.explained_variance_ratio_.sum())


def _foreground(flat: Floats, shape: tuple[int, ...], threshold: float) -> Bools:
    first = PCA(1, svd_solver="covariance_eigh").fit_transform(flat).reshape(shape)
    border = np.ones(shape[1:], dtype=bool)
    border[1:-1, 1:-1] = False
    if not border.all() and first[:, border].mean() > first[:, ~border].mean():
        first = -first
    above: Bools = _scaled(first.reshape(-1, 1)).reshape(shape) > threshold
    return above


def _scaled(places: Floats) -> Floats:
    """Each column from 0 to 1, its outermost percent cut."""
    low, high = np.percentile(places, TAILS, axis=0)
    scaled: Floats = np.clip((places - low) / np.maximum(high - low, 1e-12), 0, 1)
    return scaled
