"""Frozen features of every image of a split, in an HDF5 feature store."""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ijepa.config import RUNTIME, Config, ExtractConfig, Runtime, StrPath
from ijepa.data.shards import ShardSet, SplitReader, check_shards, open_shards
from ijepa.encoders.identity import encoder_fingerprint
from ijepa.errors import IjepaError
from ijepa.features.store import FeatureHeader, open_features, read_header
from ijepa.features.writer import FeatureWriter
from ijepa.progress import Progress, silent
from ijepa.stage import StagePlan, Work, exclusive_work
from ijepa.world import is_one_of_many

if TYPE_CHECKING:
    import torch

    from ijepa.compute import LinearKernel
    from ijepa.data.loader import Batch
    from ijepa.encoders.frozen import FrozenEncoder
    from ijepa.world import World

VERSION = 10
BATCH_ROWS = 256  # fixed: a batch is what a kill loses at most, and where a resumed run starts

CPU_BATCH = 32  # activations of more images fall out of a CPU's caches
IN_FLIGHT = {"cuda": 1}  # batches begun before the last is fetched; a CPU's are done at once

Floats = np.ndarray[tuple[int, ...], np.dtype[np.floating]]

log = logging.getLogger(__name__)


class ExtractResult(Config):
    """A finished feature file and what is in it."""

    out: Path
    cached: bool
    encoder: str
    images: int
    views: int
    layers: int
    dim: int
    labels: tuple[str, ...]


def extract(
    shards: StrPath,
    out: StrPath,
    config: ExtractConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> ExtractResult:
    """Write pooled features of the last layers of `config.encoder` to `out`.

    Killed and started again, it goes on after the last whole batch.

    Raises:
        IjepaError: the encoder does not load, the split is not there, an image does not decode.
    """
    shards, out = Path(shards), Path(out)
    data = open_shards(shards)
    config = config.model_copy(update={"split": data.named_split(config.split)})
    images = data.split(config.split)
    inputs = {"data": data.fingerprint, "encoder": encoder_fingerprint(config)}
    plan = StagePlan("extract", VERSION, config, inputs, out)
    job = _Job(plan, config, data, images, runtime, progress)
    if is_one_of_many():
        return _extract_together(job)
    with exclusive_work(plan, runtime) as work:
        if not work.cached:
            from ijepa.world import World  # here, so that a cached answer is quick

            writer, device = _encode(job, work, World())
            writer.finish()
            work.publish_file({"device": device, "command": runtime.command})
        return _result(out, work.cached)


def check_data(path: StrPath, shards: StrPath, progress: Progress = silent) -> None:
    """See that a feature file was made from this shard set, and that the set is undamaged.

    Args:
        path: of `ijepa extract`.
        shards: of `ijepa shard`.
        progress: hears of the files read.

    Raises:
        IjepaError: it was made from other images, or files of the set are damaged.
    """
    path, shards = Path(path), Path(shards)
    if read_header(path).data_fingerprint != open_shards(shards).fingerprint:
        raise IjepaError(f"{path} was made from other images than those of {shards}.")
    check_shards(shards, progress)


class _Job(NamedTuple):
    """What one call is about."""

    plan: StagePlan
    config: ExtractConfig
    data: ShardSet
    images: SplitReader
    runtime: Runtime
    progress: Progress


def _extract_together(job: _Job) -> ExtractResult:
    """The same with other processes: each encodes its share, rank 0 puts all into one file."""
    from ijepa.distributed import from_rank_0, joined, pick_device, wait_for_all

    with joined(pick_device(job.runtime.device)) as world, contextlib.ExitStack() as held:
        work = from_rank_0(world, lambda: held.enter_context(exclusive_work(job.plan, job.runtime)))
        if not work.cached:
            writer, device = _encode(job, work, world)
            writer.flush()
            wait_for_all(world)
            facts = {"device": device, "command": job.runtime.command}
            from_rank_0(world, lambda: _finish_together(writer, work, facts))
        wait_for_all(world)
        return _result(job.plan.out, work.cached)


def _finish_together(writer: FeatureWriter, work: Work, facts: dict[str, str]) -> None:
    FeatureWriter(
        writer.path, writer.header, writer.dtype.name
    ).finish()  # with all that others did
    work.publish_file(facts)


def _encode(job: _Job, work: Work, world: "World") -> tuple[FeatureWriter, str]:
    """Write this process's share of the rows that are not there yet, and say what computed."""
    from ijepa.compute import computing, linear_name
    from ijepa.distributed import device_name, from_rank_0, pick_device
    from ijepa.encoders.load import load_encoder

    config, images, device = job.config, job.images, pick_device(job.runtime.device)
    encoder = load_encoder(
        config.encoder,
        which=config.which,
        image_px=config.image_px,
        seed=config.seed,
        device=device,
    )
    precision = "bf16" if encoder.uses_bf16(config.precision, device) else "fp32"
    header = _header(job, encoder, precision)
    writer = FeatureWriter(work.folder / job.plan.out.name, header, config.dtype)
    num_views = 1 + config.views
    batch_size = max(1, BATCH_ROWS // num_views)
    starts = range(0, len(images), batch_size)
    todo = from_rank_0(
        world, lambda: [n for n, i in enumerate(starts) if not writer.holds(i * num_views)]
    )
    mine, before = todo[world.rank :: world.size], writer.rows_done
    linear = _linear_kernel(encoder, device)
    with computing(device, linear=linear):
        for batch, features in _feature_batches(
            encoder, images, config, job.runtime, todo=mine, batch_size=batch_size
        ):
            _add(writer, images, batch, features, num_views)
            done = before + (writer.rows_done - before) * world.size  # others are about as quick
            if world.is_rank_0:
                job.progress("extract images", min(done // num_views, len(images)), len(images))
    return writer, device_name(device, world) + linear_name(linear)


def _feature_batches(
    encoder: "FrozenEncoder",
    images: SplitReader,
    config: ExtractConfig,
    runtime: Runtime,
    *,
    todo: Sequence[int],
    batch_size: int,
) -> "Iterator[tuple[Batch, Floats]]":
    """Encode some batches of images, in order: number n begins with image n * `batch_size`.

    A GPU computes a batch while the caller has the one before it.

    Yields:
        n images with their ids, and features of all their views (n * views, layers, dim) in
        `config.dtype`: those of the first image, then of the second, and so on.
    """
    import torch

    from ijepa.data.loader import ViewBatches, ViewPlan, batches
    from ijepa.distributed import num_workers, pick_device
    from ijepa.jepa.augment import normalise

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
    begun: deque[tuple[Batch, Callable[[], Floats]]] = deque()
    workers, on_gpu = num_workers(runtime, device), device.type == "cuda"
    for batch in batches(views, todo, workers, pin_memory=on_gpu):
        sent = batch.images.to(device, non_blocking=True)
        pixels = normalise(sent, encoder.mean, encoder.std)
        parts = torch.split(pixels, CPU_BATCH if device.type == "cpu" else len(pixels))
        features = torch.cat([encoder.features(part, num_layers, bf16=bf16) for part in parts])
        begun.append((batch, _fetched(features.to(dtype))))
        if len(begun) > IN_FLIGHT.get(device.type, 0):
            done, numpy = begun.popleft()
            yield done, numpy()
    for done, numpy in begun:
        yield done, numpy()


def _linear_kernel(encoder: "FrozenEncoder", device: "torch.device") -> "LinearKernel":
    """The faster one for this encoder's batches; for a ViT-B/16's where it is no ViT of timm's."""
    from ijepa.compute import pick_linear
    from ijepa.encoders.frozen import NOTHING

    if encoder.pooling == NOTHING:
        return "torch"
    patches, dim = 196, 768
    if encoder.network is not None:
        patches, dim = encoder.network.patch_embed.num_patches, encoder.network.embed_dim
    return pick_linear(device, CPU_BATCH * patches, dim)


def _fetched(tensor: "torch.Tensor") -> "Callable[[], Floats]":
    """Begin to copy a tensor to the host, from a GPU without waiting; the call gives its values."""
    import torch

    if tensor.device.type != "cuda":
        return tensor.numpy
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.current_stream(tensor.device).record_event()

    def values() -> Floats:
        arrived.synchronize()
        found: Floats = host.numpy()
        return found

    return values


def _add(
    writer: FeatureWriter, images: SplitReader, batch: "Batch", features: "Floats", num_views: int
) -> None:
    """Write the features of all views of some images, with what the shards say of these images."""
    assert batch.image_ids is not None  # as `ViewBatches` makes them
    numbers = np.repeat(batch.numbers.numpy(), num_views)
    labels = {name: images.labels(name, numbers) for name in images.label_names}
    ids = np.repeat(batch.image_ids.numpy(), num_views)
    views = np.tile(np.arange(num_views), len(batch.numbers)) if num_views > 1 else None
    first = int(numbers[0]) * num_views
    writer.append(features, labels, images.keys(numbers), ids, views, first=first)


def _header(job: _Job, encoder: "FrozenEncoder", precision: str) -> FeatureHeader:
    config = job.config
    num_layers = min(config.layers, encoder.num_layers)
    if num_layers < config.layers:
        log.info("%s has no more layers to store than %d", encoder.name, num_layers)
    crop = "squash" if config.crop == "squash" else f"center-crop {encoder.crop_fraction:.4g}"
    return FeatureHeader(
        encoder=encoder.name,
        weights_sha256=encoder.weights_sha256,
        which=encoder.which,
        layers=tuple(range(encoder.num_layers - num_layers, encoder.num_layers)),
        pooling=encoder.pooling,
        image_px=encoder.image_px,
        transform=(
            f"{crop}, {config.interpolation} to {encoder.image_px}, mean {encoder.mean}, "
            f"std {encoder.std}"
        ),
        data_fingerprint=job.data.fingerprint,
        split=config.split,
        class_names=job.images.label_names,
        fingerprint=job.plan.fingerprint,
        source=job.data.source,
        provenance=encoder.provenance,
        num_views=config.views,
        augment=config.augment,
        precision=precision,
        interpolation=config.interpolation,
        crop_fraction=None if config.crop == "squash" else encoder.crop_fraction,
    )


def _result(out: Path, cached: bool) -> ExtractResult:
    store = open_features(out, check_numbers=False)  # its record has the digest of the file
    rows, layers, dim = store.shape
    num_views = 1 + store.header.num_views
    return ExtractResult(
        out=out,
        cached=cached,
        encoder=store.header.encoder,
        images=rows // num_views,
        views=num_views,
        layers=layers,
        dim=dim,
        labels=tuple(store.labels),
    )
