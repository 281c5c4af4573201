"""From a decoded image to the square that a network sees.

Boxes are cut in the stored depth. Crops of 8 bits stay uint8, and the float image is made once a
batch, on the device that computes; crops of other depths are float32, divided by their `LEVELS`.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ijepa.config import LEVELS, DataConfig, Interpolation, Size, height_width

TRIES = 10  # torchvision's RandomResizedCrop tries as often

Pixels = np.ndarray[tuple[int, ...], np.dtype[Any]]  # of a type of `LEVELS`
Box = tuple[int, int, int, int]


class CropDraws(NamedTuple):
    """The random numbers of a batch of crops, drawn before any image is read."""

    area_fraction: list[list[float]]  # (B, TRIES) of the image's area
    aspect: list[list[float]]  # (B, TRIES) width / height
    corner: list[list[float]]  # (B, 2) between top and bottom, left and right; 0 to 1
    flip: list[bool]  # (B,) whether to mirror
    aspects: tuple[float, float]  # the least and the most


def draw_crops(batch_size: int, config: DataConfig, rng: np.random.Generator) -> CropDraws:
    """Draw what torchvision's RandomResizedCrop draws: area uniform, aspect log-uniform."""
    shape = (batch_size, TRIES)
    low, high = np.log(config.crop_aspect)
    return CropDraws(
        area_fraction=rng.uniform(*config.crop_scale, shape).tolist(),
        aspect=np.exp(rng.uniform(low, high, shape)).tolist(),
        corner=rng.random((batch_size, 2)).tolist(),
        flip=(rng.random(batch_size) < (0.5 if config.flip else 0.0)).tolist(),
        aspects=config.crop_aspect,
    )


def fit_box(draws: CropDraws, number: int, height_px: int, width_px: int) -> Box:
    """The first drawn crop that fits into an image: (top, left, height, width) in pixels.

    If none of the tries fits, the largest centred crop with one of the aspects that are drawn.
    """
    area = height_px * width_px
    for fraction, aspect in zip(draws.area_fraction[number], draws.aspect[number], strict=True):
        width = round(math.sqrt(area * fraction * aspect))
        height = round(math.sqrt(area * fraction / aspect))
        if 0 < width <= width_px and 0 < height <= height_px:
            down, across = draws.corner[number]
            top = int(down * (height_px - height + 1))
            return top, int(across * (width_px - width + 1)), height, width
    least, most = draws.aspects
    ratio = min(max(width_px / height_px, least), most)
    width = min(width_px, max(1, round(height_px * ratio)))
    height = min(height_px, max(1, round(width_px / ratio)))
    return (height_px - height) // 2, (width_px - width) // 2, height, width


def resize_box(
    image: Pixels, box: Box, image_px: int | Size, *, mode: Interpolation = "bilinear"
) -> Tensor:
    """Cut a box from (height, width, C) and resize it, antialiased, as Pillow's crop and resize.

    A value may differ from Pillow's by two levels of 255, for torch rounds the filter's weights to
    16 bits; with `bicubic` by more where hard edges are enlarged. The result is (1, C, *size) uint8
    or float32 (see `in_units`), channels last in memory.
    """
    top, left, height, width = box
    size = height_width(image_px)
    cut = in_units(np.ascontiguousarray(image[top : top + height, left : left + width]))
    # With the batch axis made before the permutation, torch sees channels-last memory and takes
    # its vectorised uint8 kernel; made after it, resizing is four times slower.
    pixels = torch.from_numpy(cut[np.newaxis]).permute(0, 3, 1, 2)
    if (height, width) == size:
        return pixels
    return F.interpolate(pixels, size, mode=mode, antialias=True)


def in_units(pixels: Pixels) -> Pixels:
    """Pixels of 8 bits as they are, others as float32 of the units that networks see."""
    if pixels.dtype == np.uint8:
        return pixels
    return pixels.astype(np.float32) / np.float32(LEVELS[pixels.dtype.name])


def crop_batch(images: Tensor, boxes: Tensor, flip: Tensor, image_px: int | Size) -> Tensor:
    """Cut a box from each image of a batch and resize all of them at once, on any device.

    The same filter as `resize_box`, as two products of matrices instead of a loop over images; a
    value may differ by one level of 255.

    Images are (B, C, H, W) uint8, or float32 (see `in_units`), which is not rounded; boxes (B, 4)
    int64 (top, left, height, width) in pixels, inside each image; `flip` (B,) bool, whether to
    mirror. Returns (B, C, *size) of the images' type.
    """
    height, width = height_width(image_px)
    top, left, box_height, box_width = boxes.unbind(1)
    across = _resampling(left, box_width, width, images.shape[3])
    across = torch.where(flip.view(-1, 1, 1), across.flip(1), across)
    down = _resampling(top, box_height, height, images.shape[2])
    if images.dtype != torch.uint8:
        return down.unsqueeze(1) @ (images @ across.transpose(1, 2).unsqueeze(1))
    rows = (images.float() @ across.transpose(1, 2).unsqueeze(1) + 0.5).floor()
    return (down.unsqueeze(1) @ rows + 0.5).floor().clamp(0, 255).to(torch.uint8)


def _resampling(start: Tensor, length: Tensor, num_out: int, num_in: int) -> Tensor:
    """(B, num_out, num_in): how much of each input pixel goes into each output pixel, antialiased.

    A triangle as wide as an output pixel, or as an input pixel where the image is enlarged.
    """
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length / num_out
    place = torch.arange(num_in, device=start.device)
    centre = start + (torch.arange(num_out, device=start.device).view(1, -1, 1) + 0.5) * scale
    weight = (1 - (place + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weight = weight * ((place >= start) & (place < start + length))
    return weight / weight.sum(dim=-1, keepdim=True)


def evaluation_crop(
    image: Pixels,
    image_px: int | Size,
    crop_fraction: float | None,
    mode: Interpolation = "bilinear",
) -> Tensor:
    """The view by which an image is scored, as torchvision's Resize and CenterCrop make it.

    With 224 and 224 / 256 these are Resize(256) and CenterCrop(224). Here Pillow resamples only
    what is kept, from a box between pixels: a value may differ by one level of 255; with `bicubic`,
    one of 10,000 by more. Of the short side, once resized, `crop_fraction` is kept; None squeezes
    the whole image into the wanted shape, as VISSL's Clevr protocols. The image is (height, width,
    C), the result as that of `resize_box`.
    """
    (height, width), size = image.shape[:2], height_width(image_px)
    box = evaluation_box(height, width, size, crop_fraction)
    resampling = Image.Resampling[mode.upper()]
    if image.dtype == np.uint8 and image.shape[2] == 3:
        view = Image.fromarray(image).resize((size[1], size[0]), resampling, box)
        return torch.from_numpy(np.array(view)[np.newaxis]).permute(0, 3, 1, 2)
    channels = (Image.fromarray(one) for one in np.moveaxis(in_units(image), 2, 0))
    views = [np.array(one.resize((size[1], size[0]), resampling, box)) for one in channels]
    return torch.from_numpy(np.stack(views, axis=-1)[np.newaxis]).permute(0, 3, 1, 2)


def evaluation_box(
    height: int, width: int, size: Size, crop_fraction: float | None
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels of the part that `evaluation_crop` shows."""
    if crop_fraction is None:
        return 0.0, 0.0, float(width), float(height)
    kept_height, kept_width = size
    whole_height, whole_width = resized_px(size, crop_fraction)
    if whole_height * width >= whole_width * height:  # then the width has some to spare
        whole_width = whole_height * width // height
    else:
        whole_height = whole_width * height // width
    top, left = round((whole_height - kept_height) / 2), round((whole_width - kept_width) / 2)
    return (
        left * width / whole_width,
        top * height / whole_height,
        (left + kept_width) * width / whole_width,
        (top + kept_height) * height / whole_height,
    )


def resized_px(image_px: int | Size, crop_fraction: float) -> Size:
    """(height, width) to which a centre crop's shape is resized before it is cut; timm rounds so.

    An image takes the smallest size of its own aspect that covers it: of a square, the short side.
    """
    height, width = height_width(image_px)
    return int(height / crop_fraction + 1e-9), int(width / crop_fraction + 1e-9)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, C, height, width) uint8, or float32 of `in_units`, to float32 of that mean and std."""
    most = 255.0 if images.dtype == torch.uint8 else 1.0
    shift, scale = (_levels(values, most, images.device) for values in (mean, std))
    return (images.float() - shift) / scale


@cache
def _levels(values: tuple[float, ...], most: float, device: torch.device) -> Tensor:
    """(C, 1, 1) levels of `most`; made once for a device, for a copy there makes it wait."""
    with torch.inference_mode(mode=False):
        return (torch.tensor(values).view(-1, 1, 1) * most).to(device)
