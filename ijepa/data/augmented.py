"""Training batches for fine-tuning: random crops, flips and RandAugment, each a pure function."""

import random
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import posterize, rand_augment_transform
from torch.utils.data import Dataset

from ijepa.config import DataConfig, FinetuneConfig, height_width
from ijepa.data.decode import decode_image
from ijepa.data.loader import Batch, StepPlan, random_crop
from ijepa.data.shards import SplitReader
from ijepa.jepa.rng import AUGMENTED, stream

TRANSLATED = 0.45  # of the side, at most; timm's and MAE's


class AugmentedBatches(Dataset[Batch]):
    """Step -> augmented crops of the images that `plan` names.

    What is drawn for an image depends on (seed, step, its place in the batch) alone.
    """

    def __init__(self, images: SplitReader, plan: StepPlan, config: FinetuneConfig) -> None:
        self._images, self._plan, self._seed = images, plan, config.seed
        self._randaugment = _randaugment(config.randaugment, plan.config)

    def __getitem__(self, step: int) -> Batch:
        numbers, places, draws = self._plan.part(step)
        config, made = self._plan.config, []
        for number, place in zip(numbers.tolist(), places.tolist(), strict=True):
            pixels = decode_image(self._images.read_image(number))
            crop = random_crop(pixels, draws, place, config.image_size, "bicubic")
            if self._randaugment is not None:
                # timm draws from the generators of `random` and NumPy, which are this process's.
                draw = stream(self._seed, AUGMENTED, step * config.batch_size + place)
                words = draw.integers(2**32, size=2).tolist()
                random.seed(words[0])
                np.random.seed(words[1])  # noqa: NPY002  # the one that timm reads
                image = Image.fromarray(crop[0].permute(1, 2, 0).contiguous().numpy())
                augmented = torch.from_numpy(np.array(self._randaugment(image)))
                crop = augmented.permute(2, 0, 1).unsqueeze(0)
            made.append(crop)
        return Batch(step, torch.cat(made), torch.from_numpy(numbers))


def _randaugment(name: str, data: DataConfig) -> Any:  # noqa: ANN401  # a class of timm's, untyped
    if not name:
        return None
    side = min(height_width(data.image_px))
    grey = tuple(min(255, round(255 * value)) for value in data.mean)
    transform = rand_augment_transform(
        name, {"translate_const": int(TRANSLATED * side), "img_mean": grey}
    )
    for op in transform.ops:
        if op.aug_fn is posterize:
            op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits_to_keep: int, **rest: object) -> Image.Image:
    """timm's; its magnitude of 10, which noise reaches, keeps no bits, and Pillow 13 refuses that.

    Without bits nothing is left: black, as Pillow 12 and before had it.
    """
    if bits_to_keep == 0:
        return Image.new(image.mode, image.size)
    kept: Image.Image = posterize(image, bits_to_keep, **rest)  # type: ignore[no-untyped-call]  # timm
    return kept
