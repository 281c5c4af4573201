"""Do a decoder's samples depend on its condition? They are encoded again, and compared.

A block is drawn from the embedding of its true pixels, put back into its image, and encoded by the
frozen target encoder. The same is done with a block drawn, with the same noise, from the embedding
of this place in another image. Only the drawn pixels differ, so a decoder that ignores its
condition, or uses only the place in it, shows no difference.
"""

from collections import defaultdict

import torch
import torch.nn.functional as F
from scipy.stats import ttest_1samp
from torch import Tensor

from ijepa.config import PretrainConfig
from ijepa.decoder.model import (
    Decoder,
    block_boxes,
    cut_blocks,
    draw_blocks,
    draw_flow,
    embed,
    paste_blocks,
    sample_blocks,
)
from ijepa.errors import IjepaError
from ijepa.jepa.masks import Masks
from ijepa.jepa.model import IJepa
from ijepa.jepa.rng import MASKS, NOISE, SHUFFLE, stream
from ijepa.progress import Progress

AT_ONCE = 32
HELD_OUT = 2**31  # number of the streams of evaluation; training has fewer steps


def held_numbers(num_images: int, count: int, seed: int) -> list[int]:
    """Numbers of `count` images of a split, or of all if there are fewer, in random order."""
    if min(num_images, count) < 2:
        raise IjepaError(f"The split holds {num_images} images; two are needed at least.")
    numbers: list[int] = stream(seed, SHUFFLE, HELD_OUT).permutation(num_images)[:count].tolist()
    return numbers


def hold(run: PretrainConfig, images: Tensor, seed: int) -> tuple[Masks, Tensor]:
    """Draw one target block for each held-out image by the run's own masks.

    Returns masks on the images' device, and the blocks' boxes (n, 4); raises as `block_boxes`.
    """
    masks = draw_blocks(run, len(images), stream(seed, MASKS, HELD_OUT)).to(images.device)
    return masks, block_boxes(masks.targets[0], run.grid, run.encoder.patch_px)


def noise_of(number: int, count: int, image_px: int, seed: int) -> Tensor:
    """(count, 3, px, px) noise of sample `number` of each of `count` images."""
    drawn = int(stream(seed, NOISE, HELD_OUT + number).integers(2**62))
    return draw_flow(count, image_px, drawn)[0]


def evaluate_decoder(
    decoder: Decoder, jepa: IJepa, run: PretrainConfig, images: Tensor, progress: Progress
) -> dict[str, float | tuple[float, float]]:
    """Cosine distances to the target's embedding, means over held-out images.

    `images` (n, 3, H, W) uint8, at least two, `decoder` and the frozen `jepa` of configuration
    `run` are on one device. Returns fields of `ijepa.train_decoder.DecoderResult`.
    """
    config, distances = decoder.config, defaultdict(list)
    masks, boxes = hold(run, images, config.seed)
    noise = noise_of(0, len(images), config.image_px, config.seed).to(images.device)
    others = images.roll(1, dims=0)
    progress("evaluate decoder images", 0, len(images))
    for start in range(0, len(images), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        seen, hidden = images[part], masks.images(part)
        target = embed(jepa, run.data, seen, hidden)
        conditions = {
            "true": target,
            "shuffled": embed(jepa, run.data, others[part], hidden),
            "predicted": embed(jepa, run.data, seen, hidden, "predictions"),
        }
        blocks = {
            name: sample_blocks(decoder, condition, noise[part], config.sampling_steps)
            for name, condition in conditions.items()
        }
        blocks["resized"] = cut_blocks(seen, boxes[part], config.image_px)
        for name, drawn in blocks.items():
            again = embed(jepa, run.data, paste_blocks(seen, boxes[part], drawn), hidden)
            distances[name].append((1 - F.cosine_similarity(again, target)).cpu().double())
        progress("evaluate decoder images", min(part.stop, len(images)), len(images))
    joined = {name: torch.cat(parts) for name, parts in distances.items()}
    gains = (joined["shuffled"] - joined["true"]).numpy()
    interval = ttest_1samp(gains, 0.0).confidence_interval(0.95)
    return {
        "images": len(gains),
        "gain": float(gains.mean()),
        "gain_interval": (float(interval.low), float(interval.high)),
        "closer": float((gains > 0).mean()),
        **{name: float(values.mean()) for name, values in joined.items()},
    }
