"""From a decoded image to the square that a network sees.

Crops happen on uint8; the float image is made once a batch, on the device that computes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ijepa.config import Rgb

TRIES = 10  # torchvision's RandomResizedCrop tries as often

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Box = tuple[int, int, int, int]


def random_box(
    height_px: int,
    width_px: int,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """The crop of torchvision's RandomResizedCrop: (top, left, height, width) in pixels.

    Args:
        height_px: of the image.
        width_px: of the image.
        scale: range of the crop's area as a fraction of the image's, uniform.
        aspect: range of width / height, log-uniform.
        rng: the only source of randomness.

    Returns:
        The crop; if ten draws do not fit, the largest centred one with an allowed aspect.
    """
    area = height_px * width_px * rng.uniform(*scale, TRIES)
    ratio = np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1]), TRIES))
    corner = rng.random(2)
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (widths >= 1) & (heights >= 1) & (widths <= width_px) & (heights <= height_px)
    if not fits.any():
        return _central_box(height_px, width_px, aspect)
    first = int(fits.argmax())
    height, width = int(heights[first]), int(widths[first])
    top = int(corner[0] * (height_px - height + 1))
    return top, int(corner[1] * (width_px - width + 1)), height, width


def resize_box(image: Pixels, box: Box, image_px: int, *, mode: str = "bilinear") -> Tensor:
    """Cut a box and resize it to a square, antialiased as Pillow does.

    Args:
        image: (height, width, 3) uint8.
        box: (top, left, height, width) in pixels, inside the image.
        image_px: side of the square.
        mode: `bilinear` or `bicubic`.

    Returns:
        (3, image_px, image_px) uint8.
    """
    top, left, height, width = box
    cut = torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)
    if (height, width) == (image_px, image_px):
        return cut
    # A batch of one over (height, width, channel) memory takes torch's vectorised uint8 kernel.
    size = (image_px, image_px)
    return F.interpolate(cut.unsqueeze(0), size, mode=mode, antialias=True)[0]


def evaluation_crop(image: Pixels, image_px: int, crop_fraction: float) -> Tensor:
    """Centre square whose side is `crop_fraction` of the short side, resized: (3, px, px) uint8.

    With 224 / 256 this is the usual resize to 256 and centre crop of 224 in one resampling.
    """
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * crop_fraction))
    return resize_box(image, ((height - side) // 2, (width - side) // 2, side, side), image_px)


def squash(image: Pixels, image_px: int) -> Tensor:
    """The whole image as a square, aspect not kept (VISSL's Clevr protocols): (3, px, px) uint8."""
    return resize_box(image, (0, 0, image.shape[0], image.shape[1]), image_px)


def normalise(images: Tensor, mean: Rgb, std: Rgb) -> Tensor:
    """(B, 3, height, width) uint8 to float32 with the data set's mean and standard deviation."""
    shift = torch.tensor(mean, device=images.device).view(3, 1, 1) * 255.0
    scale = torch.tensor(std, device=images.device).view(3, 1, 1) * 255.0
    return (images.float() - shift) / scale


def _central_box(height_px: int, width_px: int, aspect: tuple[float, float]) -> Box:
    ratio = min(max(width_px / height_px, aspect[0]), aspect[1])
    width = min(width_px, max(1, round(height_px * ratio)))
    height = min(height_px, max(1, round(width_px / ratio)))
    return (height_px - height) // 2, (width_px - width) // 2, height, width
