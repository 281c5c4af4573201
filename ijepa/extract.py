"""Frozen features of every image of a split, in an HDF5 feature store."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ijepa.config import RUNTIME, Config, ExtractConfig, Runtime
from ijepa.encoders.identity import encoder_fingerprint
from ijepa.progress import Progress, silent
from ijepa.stores.feature_writer import FeatureWriter
from ijepa.stores.features import FeatureHeader, open_features
from ijepa.stores.shards import SplitReader, open_shards
from ijepa.stores.stage import StagePlan, Work, exclusive_work

if TYPE_CHECKING:
    from ijepa.encoders.frozen import FrozenEncoder

VERSION = 2
BATCH_ROWS = 256  # fixed: a batch is what a kill loses at most, and where a resumed run starts

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
    shards: Path,
    out: Path,
    config: ExtractConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> ExtractResult:
    """Write average-pooled features of the last layers of `config.encoder` to `out`.

    Killed and started again, it goes on after the last whole batch.

    Raises:
        IjepaError: the encoder does not load, the split is not there, an image does not decode.
    """
    data = open_shards(shards)
    images = data.split(config.split)
    inputs = {"data": data.fingerprint, "encoder": encoder_fingerprint(config)}
    plan = StagePlan("extract", VERSION, config, inputs, out)
    with exclusive_work(plan, force=runtime.force) as work:
        if not work.cached:
            device = _write(work, config, images, data.fingerprint, runtime, progress)
            work.publish_file({"device": device})
        return _result(out, work.cached)


def _write(
    work: Work,
    config: ExtractConfig,
    images: SplitReader,
    data_fingerprint: str,
    runtime: Runtime,
    progress: Progress,
) -> str:
    """Fill the work folder's feature file; returns what computed."""
    # Here, so that a cached answer does not wait for torch.
    from ijepa.distributed import device_name, pick_device
    from ijepa.encoders.load import load_encoder
    from ijepa.encoders.stream import feature_batches

    device = pick_device(runtime.device)
    encoder = load_encoder(
        config.encoder,
        which=config.which,
        image_px=config.image_px,
        seed=config.seed,
        device=device,
    )
    header = _header(work.plan, config, encoder, data_fingerprint, images)
    writer = FeatureWriter(work.folder / work.plan.out.name, header, config.dtype)
    num_views = 1 + config.views
    for numbers, features in feature_batches(
        encoder,
        images,
        config,
        runtime,
        first=writer.rows_done // num_views,
        batch_size=max(1, BATCH_ROWS // num_views),
    ):
        samples = [images.read_sample(number) for number in numbers]
        labels = {
            name: np.repeat([sample.labels[name] for sample in samples], num_views)
            for name in images.label_names
        }
        keys = [sample.key for sample in samples for _ in range(num_views)]
        views = np.tile(np.arange(num_views), len(numbers)) if config.views else None
        writer.append(features, labels, keys, views)
        progress("extract images", writer.rows_done // num_views, len(images))
    writer.finish()
    return device_name(device)


def _header(
    plan: StagePlan,
    config: ExtractConfig,
    encoder: "FrozenEncoder",
    data_fingerprint: str,
    images: SplitReader,
) -> FeatureHeader:
    num_layers = min(config.layers, encoder.num_layers)
    if num_layers < config.layers:
        log.info("%s has no more layers to store than %d", encoder.name, num_layers)
    crop = "squash" if config.crop == "squash" else f"center-crop {encoder.crop_fraction:.4g}"
    return FeatureHeader(
        encoder=encoder.name,
        weights_sha256=encoder.weights_sha256,
        which=config.which,
        layers=tuple(range(encoder.num_layers - num_layers, encoder.num_layers)),
        pooling="average of patch tokens after the final norm",
        image_px=encoder.image_px,
        transform=f"{crop}, bilinear to {encoder.image_px}, mean {encoder.mean}, std {encoder.std}",
        data_fingerprint=data_fingerprint,
        split=config.split,
        class_names=images.label_names,
        fingerprint=plan.fingerprint,
        num_views=config.views,
        augment=config.augment,
    )


def _result(out: Path, cached: bool) -> ExtractResult:
    store = open_features(out)
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
