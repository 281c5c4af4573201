"""A split decoded once and kept in memory, so that small images do not wait for the decoder."""

import os
from concurrent.futures import ThreadPoolExecutor

import torch

from ijepa.data.decode import decode_rgb, size_of
from ijepa.data.loader import Batch, Images, StepPlan
from ijepa.errors import IjepaError
from ijepa.jepa.augment import crop_batch, fit_box
from ijepa.progress import Progress, silent

MOST_OF_MEMORY = 0.7  # the networks need some, too


class DecodedImages:
    """All images of a split, each in the upper left corner of a canvas of one size.

    Attributes:
        pixels: (N, 3, H, W) uint8 on the device that crops them.
        sizes: (height, width) of each image.
    """

    def __init__(
        self, images: Images, device: torch.device, workers: int, progress: Progress = silent
    ) -> None:
        """Decode everything.

        Raises:
            IjepaError: it would not fit into the device's memory.
        """
        with ThreadPoolExecutor(max(1, workers)) as pool:
            numbers = range(len(images))
            self.sizes = list(pool.map(lambda n: size_of(images.read_image(n)), numbers))
            height, width = (max(side) for side in zip(*self.sizes, strict=True))
            needed = len(images) * 3 * height * width
            available = _free_bytes(device)
            if needed > MOST_OF_MEMORY * available:
                raise IjepaError(
                    f"{len(images):,} images on canvases of {height}x{width} pixels need "
                    f"{needed / 1e9:.1f} GB; {device} has {available / 1e9:.1f} GB for everything. "
                    f"Shard them smaller (--resize), or leave --cache away."
                )
            pixels = torch.zeros((len(images), 3, height, width), dtype=torch.uint8)

            def fill(number: int) -> None:
                image = torch.from_numpy(decode_rgb(images.read_image(number)))
                pixels[number, :, : image.shape[0], : image.shape[1]] = image.permute(2, 0, 1)

            for number, _ in enumerate(pool.map(fill, numbers)):
                progress("decode images", number + 1, len(images))
        self.pixels = pixels.to(device)

    def __len__(self) -> int:
        return len(self.sizes)


class CachedCropBatches:
    """Step -> what `RandomCropBatches` makes, cropped on the device in one call."""

    def __init__(self, decoded: DecodedImages, plan: StepPlan) -> None:
        self._decoded, self._plan = decoded, plan

    def __getitem__(self, step: int) -> Batch:
        numbers, places, draws = self._plan.part(step)
        rows = [
            (number, draws.flip[place], *fit_box(draws, place, *self._decoded.sizes[number]))
            for place, number in zip(places.tolist(), numbers.tolist(), strict=True)
        ]
        pixels, drawn = self._decoded.pixels, torch.tensor(rows)
        if pixels.is_cuda:
            drawn = drawn.pin_memory().to(pixels.device, non_blocking=True)
        chosen, flip, boxes = drawn[:, 0], drawn[:, 1].bool(), drawn[:, 2:]
        crops = crop_batch(pixels[chosen], boxes, flip, self._plan.config.image_px)
        return Batch(step, crops, torch.from_numpy(numbers))


def _free_bytes(device: torch.device) -> int:
    """Of a GPU what is free, of the machine all that it has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
