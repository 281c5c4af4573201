"""Features of a split, batch by batch."""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ijepa.compute import LinearKernel, pick_linear
from ijepa.config import ExtractConfig, Runtime
from ijepa.data.loader import Batch, ViewBatches, ViewPlan, batches
from ijepa.data.shards import SplitReader
from ijepa.distributed import num_workers, pick_device
from ijepa.encoders.frozen import NOTHING, FrozenEncoder
from ijepa.jepa.augment import normalise

CPU_BATCH = 32  # activations of more images fall out of a CPU's caches
IN_FLIGHT = {"cuda": 1}  # batches begun before the last is fetched; a CPU's are done at once

Features = np.ndarray[tuple[int, ...], np.dtype[np.floating]]


def feature_batches(
    encoder: FrozenEncoder,
    images: SplitReader,
    config: ExtractConfig,
    runtime: Runtime,
    *,
    todo: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[Batch, Features]]:
    """Encode some batches of images, in order: number n begins with image n * `batch_size`.

    A GPU computes a batch while the caller has the one before it.

    Yields:
        n images with their keys, labels and ids, and features of all their views
        (n * views, layers, dim) in `config.dtype`: those of the first image, then of the second,
        and so on.
    """
    device = pick_device(runtime.device)
    dtype = torch.float16 if config.dtype == "float16" else torch.float32
    crop_fraction = None if config.crop == "squash" else encoder.crop_fraction
    plan = ViewPlan(
        encoder.image_px,
        crop_fraction,
        config.views,
        config.augment,
        config.seed,
        config.interpolation,
    )
    views = ViewBatches(images, plan, batch_size)
    num_layers = min(config.layers, encoder.num_layers)
    bf16 = encoder.uses_bf16(config.precision, device)
    begun: deque[tuple[Batch, _Fetched]] = deque()
    workers, on_gpu = num_workers(runtime, device), device.type == "cuda"
    for batch in batches(views, todo, workers, pin_memory=on_gpu):
        sent = batch.images.to(device, non_blocking=True)
        pixels = normalise(sent, encoder.mean, encoder.std)
        parts = torch.split(pixels, CPU_BATCH if device.type == "cpu" else len(pixels))
        features = torch.cat([encoder.features(part, num_layers, bf16=bf16) for part in parts])
        begun.append((batch, _Fetched(features.to(dtype))))
        if len(begun) > IN_FLIGHT.get(device.type, 0):
            done, fetched = begun.popleft()
            yield done, fetched.numpy()
    for done, fetched in begun:
        yield done, fetched.numpy()


def linear_kernel(encoder: FrozenEncoder, device: torch.device) -> LinearKernel:
    """The faster one for this encoder's batches; for a ViT-B/16's where it is no ViT of timm's."""
    if encoder.pooling == NOTHING:
        return "torch"
    patches, dim = 196, 768
    if encoder.network is not None:
        patches, dim = encoder.network.patch_embed.num_patches, encoder.network.embed_dim
    return pick_linear(device, CPU_BATCH * patches, dim)


class _Fetched:
    """A tensor on its way to the host; from a GPU it is copied without waiting for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.current_stream(tensor.device).record_event()

    _arrived: torch.cuda.Event | None

    def numpy(self) -> Features:
        """The values, as soon as they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: Features = self._host.numpy()
        return values
