"""Does a decoder draw what it is told? Its samples are encoded again, and compared.

A block is drawn from the embedding of its true pixels, put back into its image, and encoded by the
frozen target encoder; likewise one drawn, with the same noise, from the embedding that this place
has in another image. Only the drawn pixels differ, so a decoder that ignores its condition, or
knows of it no more than the place, shows no difference.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import ttest_1samp
from torch import Tensor

from ijepa.config import Config, Runtime
from ijepa.data.loader import ChosenImages, ViewBatches, ViewPlan, batches
from ijepa.data.shards import SplitReader
from ijepa.decoder.block_pixels import block_boxes, cut_blocks, draw_blocks, paste_blocks
from ijepa.decoder.model import (
    Decoded,
    TrainedDecoder,
    predicted_condition,
    sample_blocks,
    target_condition,
)
from ijepa.distributed import pick_device
from ijepa.errors import IjepaError
from ijepa.jepa.augment import normalise
from ijepa.jepa.masks import Masks
from ijepa.jepa.rng import MASKS, NOISE, SHUFFLE, stream
from ijepa.progress import Progress

AT_ONCE = 32
HELD_OUT = 2**31  # number of the streams of evaluation; training has fewer steps


class Honesty(Config):
    """Cosine distances to the target's embedding, means over held-out images, one block each.

    Attributes:
        images: how many.
        true: of samples of the true embedding.
        shuffled: of samples of the embedding of the same place in another image.
        predicted: of samples of what the predictor says.
        resized: of the true pixels at the decoder's resolution: no sample can do better.
        gain: shuffled less true, with its 95% interval over images (paired t) in `gain_interval`.
        closer: share of images whose true sample is closer than the shuffled one.
    """

    images: int
    true: float
    shuffled: float
    predicted: float
    resized: float
    gain: float
    gain_interval: tuple[float, float]
    closer: float


class Held(NamedTuple):
    """Evaluation views of held-out images, and one target block of each.

    Attributes:
        keys: of the images.
        images: (n, 3, H, W) uint8, on the device.
        masks: with one target block.
        boxes: (n, 4) the blocks' boxes in pixels.
    """

    keys: list[str]
    images: Tensor
    masks: Masks
    boxes: Tensor

    def parts(self) -> Iterator[slice]:
        """Some images at a time."""
        for start in range(0, len(self.images), AT_ONCE):
            yield slice(start, start + AT_ONCE)


def hold(source: Decoded, images: SplitReader, count: int, seed: int, device: torch.device) -> Held:
    """Draw images of a split, and a block of each by the run's own masks.

    Raises:
        IjepaError: fewer than two images, or blocks that are no rectangles.
    """
    run, count = source.config, min(count, len(images))
    if count < 2:
        raise IjepaError(f"{images.name} holds {len(images)} images; two are needed at least.")
    order = stream(seed, SHUFFLE, HELD_OUT).permutation(len(images))[:count].tolist()
    plan = ViewPlan(run.data.image_px, run.data.eval_crop_fraction)
    views = ViewBatches(ChosenImages(images, order), plan, AT_ONCE)
    made = batches(views, range(len(views)), workers=0)
    masks = draw_blocks(run, count, stream(seed, MASKS, HELD_OUT)).to(device)
    return Held(
        keys=images.keys(order),
        images=torch.cat([batch.images for batch in made]).to(device),
        masks=masks,
        boxes=block_boxes(masks.targets[0], run.grid, run.encoder.patch_px),
    )


def embed(source: Decoded, images: Tensor, masks: Masks, *, predicted: bool = False) -> Tensor:
    """(n, dim) average embeddings of one block each: the target's, or the predicted one.

    Args:
        source: frozen, on the images' device.
        images: (n, 3, H, W) uint8.
        masks: of these images.
        predicted: from the context alone.
    """
    data = source.config.data
    condition = predicted_condition if predicted else target_condition
    return condition(source.jepa, normalise(images, data.mean, data.std), masks).float()


def noise_of(number: int, count: int, image_px: int, seed: int) -> Tensor:
    """(count, 3, px, px) noise of sample `number` of each of `count` images."""
    drawn = int(stream(seed, NOISE, HELD_OUT + number).integers(2**62))
    generator = torch.Generator().manual_seed(drawn)
    return torch.randn(count, 3, image_px, image_px, generator=generator)


def measure_honesty(
    source: Decoded,
    made: TrainedDecoder,
    images: SplitReader,
    runtime: Runtime,
    progress: Progress,
) -> Honesty:
    """Measure a decoder on `config.evaluated_images` images that it has not seen.

    Raises:
        IjepaError: see `hold`.
    """
    config, device = made.config, pick_device(runtime.device)
    made.decoder.to(device)
    source.jepa.to(device)
    held = hold(source, images, config.evaluated_images, config.seed, device)
    others = held.images.roll(1, dims=0)
    noise = noise_of(0, len(held.images), config.image_px, config.seed).to(device)
    found = []
    for part in held.parts():
        masks = held.masks.images(part)
        target = embed(source, held.images[part], masks)
        conditions = {
            "true": target,
            "shuffled": embed(source, others[part], masks),
            "predicted": embed(source, held.images[part], masks, predicted=True),
        }
        blocks = {
            name: sample_blocks(made.decoder, condition, noise[part], config.sampling_steps)
            for name, condition in conditions.items()
        }
        boxes = held.boxes[part]
        blocks["resized"] = cut_blocks(held.images[part], boxes, config.image_px)
        again = {
            name: embed(source, paste_blocks(held.images[part], boxes, drawn), masks)
            for name, drawn in blocks.items()
        }
        found.append({name: _distance(one, target) for name, one in again.items()})
        progress("measure decoder on images", min(part.stop, len(noise)), len(noise))
    return _summary({name: torch.cat([part[name] for part in found]) for name in found[0]})


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(one, other)).double().cpu()


def _summary(distances: dict[str, Tensor]) -> Honesty:
    gains = (distances["shuffled"] - distances["true"]).numpy()
    interval = ttest_1samp(gains, 0.0).confidence_interval(0.95)
    return Honesty(
        images=len(gains),
        gain=float(gains.mean()),
        gain_interval=(float(interval.low), float(interval.high)),
        closer=float((gains > 0).mean()),
        **{name: float(values.mean()) for name, values in distances.items()},
    )
