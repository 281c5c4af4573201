"""Extraction: shards to a feature store against ImageFolder, timm and h5py, plainly put together.

    python benchmarks/bench_extract.py [--data SOURCE] [--arch vit_tiny/16@224]

Both sides run the same weights over the same images and store the same pooled last layer.
"""

import argparse
import io
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from timing import emit, medians
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from ijepa.config import IMAGENET_MEAN, IMAGENET_STD, ExtractConfig, Runtime
from ijepa.encoders.load import load_encoder
from ijepa.extract import extract
from ijepa.shard import shard
from ijepa.stores.shards import SplitReader, open_shards

BATCH = 32


def main() -> None:
    """Shard, extract both ways, compare, print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="scenes:train=0,val=256,px=224")
    parser.add_argument("--split", default="val")
    parser.add_argument("--arch", default="vit_tiny/16@224")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard(arguments.data, folder / "set", runtime=Runtime(workers=2))
        images = open_shards(folder / "set").split(arguments.split)
        files = [images.read_image(number) for number in range(len(images))]
        config = ExtractConfig(
            encoder=f"random:{arguments.arch}", split=arguments.split, layers=1, dtype="float32"
        )
        runtime = Runtime(workers=0, force=True)
        ours, plain = medians(
            lambda: extract(folder / "set", folder / "ours.h5", config, runtime),
            lambda: _plain(files, config.encoder, folder / "plain.h5"),
            rounds=3,
        )
        emit(
            "extract",
            arch=arguments.arch,
            images_per_second=len(images) / ours,
            plain_images_per_second=len(images) / plain,
            ratio=plain / ours,
            largest_difference=_difference(folder, images),
        )


def _plain(files: list[bytes], encoder_name: str, out: Path) -> None:
    """One image after another through Pillow, batches through the model, rows into HDF5."""
    encoder = load_encoder(encoder_name)
    side_px = round(encoder.image_px / encoder.crop_fraction)
    view = Compose(
        [
            Resize(side_px),
            CenterCrop(encoder.image_px),
            ToTensor(),
            Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    with h5py.File(out, "w") as store, torch.no_grad():
        rows = None
        for first in range(0, len(files), BATCH):
            opened = [Image.open(io.BytesIO(file)) for file in files[first : first + BATCH]]
            batch = torch.stack([view(image.convert("RGB")) for image in opened])
            features = encoder.pool(batch, 1)[:, 0].numpy()
            if rows is None:
                shape = (0, features.shape[1])
                rows = store.create_dataset(
                    "features", shape, maxshape=(None, shape[1]), dtype="f4"
                )
            rows.resize(first + len(features), axis=0)
            rows[first:] = features


def _difference(folder: Path, images: SplitReader) -> float:
    """Between both sides' features; the crops differ by one resampling instead of two steps."""
    with h5py.File(folder / "ours.h5") as ours, h5py.File(folder / "plain.h5") as plain:
        assert len(ours["features"]) == len(plain["features"]) == len(images)
        return float(np.abs(ours["features"][:, 0] - plain["features"][:]).max())


if __name__ == "__main__":
    main()
