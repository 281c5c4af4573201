"""Images of a split: which are shown, as encoders see them, and a recipe's masks on them."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ijepa.arrays import Array, Pixels
from ijepa.config import LEVELS, DataConfig, EncodersConfig, MasksConfig
from ijepa.data.loader import RandomCropBatches, StepPlan, ViewPlan, read_views
from ijepa.data.shards import SplitReader
from ijepa.errors import IjepaError
from ijepa.figures.masks import mask_figure
from ijepa.visualize import Drawing, Given, places_of


def draw_masks(config: MasksConfig, given: Given) -> Drawing:
    """Masks of step 0 on the images of step 0."""
    recipe, images = config.recipe, None
    count = min(config.images, recipe.masks.group_size, recipe.data.batch_size)
    if given.data:
        split = given.split(recipe.data.split)
        if len(split) < recipe.data.batch_size:
            raise IjepaError(
                f"Split {split.name} of {split.folder} has {len(split):,} images, fewer than one "
                f"batch of {recipe.data.batch_size:,}; lower data.batch_size, or leave --data out."
            )
        plan = StepPlan(len(split), recipe.data, recipe.seed, slice(0, count))
        images = as_pixels(RandomCropBatches(split, plan)[0].images, given)
    drawn, figures = mask_figure(recipe, config.batches, count, images, given.note)
    return drawn, {"encoders": (), "images": count, "figures": figures}


def pick_images(split: SplitReader, config: EncodersConfig) -> list[int]:
    """Places in the split of the images to show; refuses unknown keys."""
    if not config.keys:
        return draw_images(split, config.images, config.seed)
    return places_of(config.keys, split.keys(), f"Split {split.name} of {split.folder}")


def draw_images(
    split: SplitReader, count: int, seed: int, without: Sequence[int] = ()
) -> list[int]:
    """Places of `count` images, or of all there are, in ascending order, none of `without`."""
    there = np.setdiff1d(np.arange(len(split)), np.asarray(without, np.int64))
    count = min(count, len(there))
    return sorted(np.random.default_rng(seed).choice(there, count, replace=False).tolist())


def more_images(split: SplitReader, shown: list[int], count: int, seed: int) -> list[int]:
    """The shown images and others, `count` in all or as many as there are."""
    return shown + draw_images(split, max(count - len(shown), 0), seed, without=shown)


def views_of(split: SplitReader, numbers: Sequence[int], data: DataConfig) -> Tensor:
    """(n, C, height, width): the images as an encoder is evaluated on them."""
    return read_views(split, numbers, ViewPlan(data.image_px, data.eval_crop_fraction))


def as_pixels(views: Tensor, given: Given) -> Pixels:
    """(n, height, width, 3) uint8 of (n, C, height, width), see `shown`."""
    return shown(views.permute(0, 2, 3, 1).cpu().numpy(), given)


def shown(pixels: Array, given: Given) -> Pixels:
    """(..., 3) uint8 to look at, of (..., C) of a type of `LEVELS`; see `Given.note`."""
    assert given.data is not None
    stats = given.data.pixels
    if stats is None or given.channels is None:
        return pixels  # already what to show
    chosen = np.array(given.channels) - 1
    mean, std = np.array(stats.mean)[chosen], np.array(stats.std)[chosen]
    shares = (pixels[..., chosen] / LEVELS[pixels.dtype.name] - mean) / (4 * std) + 0.5
    found: Pixels = np.rint(255 * shares.clip(0, 1)).astype(np.uint8)
    return found
