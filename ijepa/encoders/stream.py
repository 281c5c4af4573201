"""Features of a split, batch by batch."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ijepa.config import ExtractConfig, Runtime
from ijepa.distributed import pick_device
from ijepa.encoders.frozen import FrozenEncoder
from ijepa.method.augment import normalise
from ijepa.stores.loader import Images, ViewBatches, ViewPlan, batches

CPU_BATCH = 32  # activations of more images fall out of a CPU's caches

Features = np.ndarray[tuple[int, ...], np.dtype[np.floating]]


def feature_batches(
    encoder: FrozenEncoder,
    images: Images,
    config: ExtractConfig,
    runtime: Runtime,
    *,
    todo: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[list[int], Features]]:
    """Encode some batches of images, in order: number n begins with image n * `batch_size`.

    Yields:
        Numbers of n images, and features of all their views (n * views, layers, dim) in
        `config.dtype`: those of the first image, then of the second, and so on.
    """
    device = pick_device(runtime.device)
    dtype = torch.float16 if config.dtype == "float16" else torch.float32
    crop_fraction = None if config.crop == "squash" else encoder.crop_fraction
    plan = ViewPlan(encoder.image_px, crop_fraction, config.views, config.augment, config.seed)
    views = ViewBatches(images, plan, batch_size)
    num_layers = min(config.layers, encoder.num_layers)
    for batch in batches(views, todo, runtime.workers):
        pixels = normalise(batch.images.to(device, non_blocking=True), encoder.mean, encoder.std)
        parts = torch.split(pixels, CPU_BATCH if device.type == "cpu" else len(pixels))
        features = torch.cat([encoder.features(part, num_layers) for part in parts])
        yield batch.numbers.tolist(), features.to(dtype).cpu().numpy()
