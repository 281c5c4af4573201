"""Encode the images of a split, batch by batch, into a feature file."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ijepa.arrays import Floats
from ijepa.compute import computing
from ijepa.config import ExtractConfig, Runtime
from ijepa.data.loader import Batch, ViewBatches, ViewPlan, batches
from ijepa.data.shards import ShardSet
from ijepa.distributed import (
    device_name,
    from_rank_0,
    moved,
    num_workers,
    pick_device,
    uses_bf16,
    wait_for_all,
)
from ijepa.encoders.spec import EncoderSpec
from ijepa.features.store import DenseMaps, FeatureHeader
from ijepa.features.write import FeatureWriter, create_features
from ijepa.jepa.augment import normalise
from ijepa.progress import Progress
from ijepa.stage import Work
from ijepa.world import World

BATCH_ROWS = 256  # fixed: a batch is what a kill loses at most, and where a resumed run starts

CPU_BATCH = 32  # activations of more images fall out of a CPU's caches
IN_FLIGHT = {"cuda": 1}  # batches begun before the last is fetched; a CPU's are done at once

log = logging.getLogger(__name__)


class Extraction:
    """One encoder, and the images of one split that it encodes."""

    def __init__(
        self,
        config: ExtractConfig,
        spec: EncoderSpec,
        data: ShardSet,
        runtime: Runtime,
    ) -> None:
        """Load the encoder onto the device."""
        self.config, self.data, self.runtime = config, data, runtime
        self.device = pick_device(runtime.device)
        self.images = data.split(config.split)
        encoder = spec._replace(pixels=data.pixels).load(self.device)
        self.encoder = encoder.fit_channels(data.pixels, data.folder)
        self.num_layers = min(config.layers, self.encoder.num_layers)
        fraction = self.encoder.data.eval_crop_fraction
        self.crop_fraction = None if config.crop == "squash" else fraction
        is_computed = self.encoder.network is not None  # raw pixels are not
        self.bf16 = is_computed and uses_bf16(config.precision, self.device)
        self.batch_size = max(1, BATCH_ROWS // (1 + config.views))  # images
        self.tokens = self.encoder.token_shape() if config.tokens else None
        self.dense = sorted(self.images.index.dense) if self.tokens else []
        if self.dense and config.views:
            log.warning("maps of dense labels are not stored with augmented views")
            self.dense = []
        self.shape = len(self.images) * (1 + config.views), self.num_layers, self.encoder.dim

    def encode(self, work: Work, progress: Progress, world: World) -> None:
        """Write this process's share of the batches that are not there yet; rank 0 publishes."""
        path = work.folder / work.plan.out.name
        total, size = len(self.images), self.batch_size
        if world.is_rank_0 and self.tokens:
            log.info("writing %s", self._size(*self.tokens))
        from_rank_0(world, lambda: self._create(path, work.plan.fingerprint))
        writer = FeatureWriter(path)
        missing = from_rank_0(world, lambda: writer.missing)
        done = total - sum(min(size, total - batch * size) for batch in missing)
        progress("extract images", done, total)
        linear = from_rank_0(world, lambda: self.encoder.pick_linear(self.device, CPU_BATCH))
        with computing(self.device, linear=linear):
            for batch, numbers in self.batches(missing[world.rank :: world.size]):
                ids = np.repeat(self.images.image_ids(batch.numbers.numpy()), 1 + self.config.views)
                maps = [one.numpy() for one in batch.maps]
                writer.write(batch.step, numbers[0], ids, numbers[1] if self.tokens else None, maps)
                done += len(batch.numbers) * world.size  # others are about as quick
                progress("extract images", min(done, total), total)
        wait_for_all(world)

        def publish() -> None:
            writer.finish()
            name = device_name(self.device, world, linear)
            work.publish({"device": name, "command": self.runtime.command})

        from_rank_0(world, publish)

    def _size(self, height: int, width: int, token_dim: int) -> str:
        """What the file takes on disk, in words."""
        rows, layers, dim = self.shape
        numbers = rows * (layers * dim + height * width * token_dim)
        mb = numbers * np.dtype(self.config.dtype).itemsize / 1e6
        said = f"{mb / 1e3:,.1f} GB" if mb >= 1e3 else f"{mb:.1f} MB"
        return f"{said} on disk with {height} x {width} patch tokens of {token_dim:,} numbers a row"

    def _create(self, path: Path, fingerprint: str) -> None:
        """Make the file that features are written into, with the keys and labels of all images."""
        encoder, config, view = self.encoder, self.config, self.encoder.data
        if self.num_layers < config.layers:
            layers = "1 layer" if self.num_layers == 1 else f"{self.num_layers} layers"
            log.info("%s has %s, all of which are stored", encoder.name, layers)
        numbers = np.repeat(np.arange(len(self.images)), 1 + config.views)
        header = FeatureHeader(
            encoder=encoder.name,
            weights_sha256=encoder.weights_sha256,
            which=encoder.which,
            layers=tuple(range(encoder.num_layers))[-self.num_layers :],
            pooling=encoder.pooling,
            image_px=view.image_px,
            transform=view.transform_text(config.interpolation, self.crop_fraction),
            data_fingerprint=self.data.fingerprint,
            split=config.split,
            class_names=self.images.label_names,
            fingerprint=fingerprint,
            source=self.data.source,
            provenance=encoder.provenance,
            num_views=config.views,
            augment=config.augment,
            precision="bf16" if self.bf16 else "fp32",
            interpolation=config.interpolation,
            crop_fraction=self.crop_fraction,
            tokens=self.tokens,
            dense={
                name: DenseMaps(
                    dtype=one.dtype, names=one.names, unit=one.unit if one.kind == "depth" else ""
                )
                for name, one in self.images.index.dense.items()
                if name in self.dense
            },
        )
        create_features(
            path,
            header,
            self.shape,
            config.dtype,
            keys=self.images.keys(numbers),
            labels={name: self.images.labels(name, numbers) for name in self.images.label_names},
            batch_rows=self.batch_size * (1 + config.views),
        )

    def batches(self, todo: Sequence[int]) -> Iterator[tuple[Batch, list[Floats]]]:
        """Encode some batches of images, in order: number n begins with image n * `batch_size`.

        A GPU computes a batch while the caller has the one before it.

        Yields:
            A batch of n images, and features of all their views (n * views, layers, dim) in
            `config.dtype`: those of the first image, then of the second, and so on; with
            `config.tokens` also their patch tokens (n * views, patches, dim).
        """
        config, view = self.config, self.encoder.data
        dtype = torch.float16 if config.dtype == "float16" else torch.float32
        how = config.views, config.augment, config.seed, config.interpolation
        plan = ViewPlan(view.image_px, self.crop_fraction, *how)
        views = ViewBatches(self.images, plan, self.batch_size, dense=self.dense)
        begun: deque[tuple[Batch, list[Callable[[], Floats]]]] = deque()
        workers, on_gpu = num_workers(self.runtime, self.device), self.device.type == "cuda"
        for batch in batches(views, todo, workers, pin_memory=on_gpu):
            pixels = normalise(moved(batch.images, self.device), view.mean, view.std)
            parts = torch.split(pixels, CPU_BATCH if self.device.type == "cpu" else len(pixels))
            found = [[one.to(dtype) for one in self._encoded(part)] for part in parts]
            begun.append((batch, [_fetched(torch.cat(kind)) for kind in zip(*found, strict=True)]))
            if len(begun) > IN_FLIGHT.get(self.device.type, 0):
                done, values = begun.popleft()
                yield done, [one() for one in values]
        for done, values in begun:
            yield done, [one() for one in values]

    def _encoded(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Features of normalised images, and their patch tokens where these are stored."""
        if self.tokens:
            return self.encoder.features_and_tokens(images, self.num_layers, bf16=self.bf16)
        return (self.encoder.features(images, self.num_layers, bf16=self.bf16),)


def _fetched(tensor: torch.Tensor) -> Callable[[], Floats]:
    """Begin to copy to the host, from a GPU without waiting; the call gives the values."""
    if not tensor.is_cuda:
        return tensor.cpu().numpy
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.current_stream(tensor.device).record_event()

    def values() -> Floats:
        arrived.synchronize()
        found: Floats = host.numpy()
        return found

    return values
