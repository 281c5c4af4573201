"""Noisy gratings: what is predictable about them is what their class is, so little is enough."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE_PX = 32
CLASSES = 8


def gratings(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 32, 32, 3) uint8 and their orientation class.

    Phase and wavelength are random, noise is half as strong again as the wave: a linear reading of
    pixels knows nothing of the orientation.
    """
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, count)
    angle = (classes + rng.uniform(-0.3, 0.3, count)) * np.pi / CLASSES
    wavelength, phase = rng.uniform(5, 9, count), rng.uniform(0, 2 * np.pi, count)
    down, across = np.mgrid[:SIDE_PX, :SIDE_PX]
    along = np.multiply.outer(np.cos(angle), across) + np.multiply.outer(np.sin(angle), down)
    wave = np.sin(2 * np.pi * along / wavelength[:, None, None] + phase[:, None, None])
    noise = rng.normal(0, 60, (count, SIDE_PX, SIDE_PX, 3))
    images = np.clip(128 + 40 * wave[..., None] + noise, 0, 255).astype(np.uint8)
    return images, classes


def write_gratings(folder: Path, split: str, count: int, seed: int) -> None:
    """Class folders of PNG files under `folder/split`."""
    for number, (pixels, label) in enumerate(zip(*gratings(count, seed), strict=True)):
        path = folder / split / f"orientation{label}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=1)
