"""Images of a split: which are shown, and how encoders see them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ijepa.config import DataConfig, EncodersConfig
from ijepa.data.loader import ViewPlan, read_views
from ijepa.data.shards import ShardSet, SplitReader
from ijepa.errors import IjepaError
from ijepa.figures.draw import Pixels
from ijepa.jepa.augment import normalise


def pick_images(split: SplitReader, config: EncodersConfig) -> list[int]:
    """Places in the split of the images to show.

    Raises:
        IjepaError: a key that is not there, one named twice, or fewer images than are to be drawn.
    """
    keys = config.keys
    if not keys:
        return draw_images(split, config.images, config.seed)
    if len(set(keys)) < len(keys):
        raise IjepaError("An image is named twice; name each key once.")
    found = {key: number for number, key in enumerate(split.keys())}
    missing = [key for key in keys if key not in found]
    if missing:
        raise IjepaError(
            f"Split {split.name} of {split.folder} has no image {missing[0]!r}; its first is "
            f"{split.keys([0])[0]!r}."
        )
    return [found[key] for key in keys]


def draw_images(
    split: SplitReader, count: int, seed: int, without: Sequence[int] = ()
) -> list[int]:
    """Places of some images in ascending order, none of `without`; raises as `pick_images`."""
    there = np.setdiff1d(np.arange(len(split)), np.asarray(without, np.int64))
    if count > len(there):
        other = f" besides the {len(without)} that are looked at" if len(without) else ""
        raise IjepaError(
            f"Split {split.name} of {split.folder} has {len(there):,} images{other}, not {count:,}."
        )
    return sorted(np.random.default_rng(seed).choice(there, count, replace=False).tolist())


def more_images(split: SplitReader, shown: list[int], count: int, seed: int) -> list[int]:
    """The shown images and others, `count` in all or as many as there are."""
    missing = min(count, len(split)) - len(shown)
    return shown + draw_images(split, max(missing, 0), seed, without=shown)


def views_of(split: SplitReader, numbers: Sequence[int], data: DataConfig) -> Tensor:
    """(n, 3, height, width) uint8: the images as an encoder is evaluated on them."""
    return read_views(split, numbers, ViewPlan(data.image_px, data.eval_crop_fraction))


def as_input(views: Tensor, data: DataConfig, device: torch.device) -> Tensor:
    """(n, 3, height, width) float: views as a network takes them."""
    return normalise(views.to(device), data.mean, data.std)


def as_pixels(views: Tensor) -> Pixels:
    """(n, height, width, 3) uint8 in the memory of the machine."""
    found: Pixels = views.permute(0, 2, 3, 1).cpu().numpy()
    return found


def source_of(data: ShardSet, config: EncodersConfig) -> str:
    """A caption: where the images come from."""
    drawn = "chosen by key" if config.keys else f"drawn with seed {config.seed}"
    return f"Data: {data.source}, split {config.split} ({data.fingerprint[:12]}), {drawn}."
