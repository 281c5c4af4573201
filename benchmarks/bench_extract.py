"""Extraction: shards to a feature store against a DataLoader, timm and h5py, plainly put together.

    python benchmarks/bench_extract.py [--data SOURCE] [--arch vit_tiny/16@224] [--precision bf16]
        [--against fp32]

Both sides run the same weights over the same images and store the same pooled last layer, on the
same device (a GPU if there is one), in the same precision, with as many workers. `--against fp32`
times our own extraction in fp32 in place of the plain one.
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
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from ijepa.config import IMAGENET_MEAN, IMAGENET_STD, ExtractConfig, Runtime
from ijepa.data.shards import SplitReader, open_shards
from ijepa.distributed import num_workers, pick_device, uses_bf16
from ijepa.encoders.spec import load_encoder
from ijepa.extract import extract
from ijepa.shard import shard

DEVICE = pick_device("auto")
BATCH = 256 if DEVICE.type == "cuda" else 32
RUNTIME = Runtime(workers=None if DEVICE.type == "cuda" else 0, force=True)


def main() -> None:
    """Shard, extract both ways, compare, print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="scenes:train=0,val=256,px=224")
    parser.add_argument("--split", default="val")
    parser.add_argument("--arch", default="vit_tiny/16@224")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--against", default="plain", choices=["plain", "fp32"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard(arguments.data, folder / "set", runtime=Runtime(workers=2))
        images = open_shards(folder / "set").split(arguments.split)
        files = [images.read_image(number) for number in range(len(images))]
        config = ExtractConfig(
            encoder=f"random:{arguments.arch}",
            split=arguments.split,
            layers=1,
            precision=arguments.precision,
            dtype="float32",
        )
        fp32 = config.model_copy(update={"precision": "fp32"})
        references = {
            "plain": lambda: _plain(files, config, folder / "reference.h5"),
            "fp32": lambda: extract(folder / "set", folder / "reference.h5", fp32, RUNTIME),
        }
        ours, reference = medians(
            lambda: extract(folder / "set", folder / "ours.h5", config, RUNTIME),
            references[arguments.against],
            rounds=3,
        )
        emit(
            "extract",
            arch=arguments.arch,
            precision="bf16" if uses_bf16(config.precision, DEVICE) else "fp32",
            images_per_second=len(images) / ours,
            **{f"{arguments.against}_images_per_second": len(images) / reference},
            ratio=reference / ours,
            **_likeness(folder, images),
        )


class _Files(Dataset[Tensor]):
    """Encoded images through Pillow and torchvision, one after another."""

    def __init__(self, files: list[bytes], image_px: int, crop_fraction: float) -> None:
        self._files = files
        self._view = Compose(
            [
                Resize(round(image_px / crop_fraction)),
                CenterCrop(image_px),
                ToTensor(),
                Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> Tensor:
        view: Tensor = self._view(Image.open(io.BytesIO(self._files[number])).convert("RGB"))
        return view


def _plain(files: list[bytes], config: ExtractConfig, out: Path) -> None:
    """Batches through the model, rows into HDF5."""
    encoder = load_encoder(config.encoder, device=DEVICE)
    views = _Files(files, encoder.data.image_px, encoder.data.eval_crop_fraction)
    workers = num_workers(RUNTIME, DEVICE)
    loader = DataLoader(
        views, batch_size=BATCH, num_workers=workers, pin_memory=DEVICE.type == "cuda"
    )
    bf16 = uses_bf16(config.precision, DEVICE)
    with h5py.File(out, "w") as store, torch.no_grad():
        rows = None
        for batch in loader:
            pooled = encoder.features(batch.to(DEVICE, non_blocking=True), 1, bf16=bf16)
            features = pooled[:, 0].float().cpu().numpy()
            if rows is None:
                shape = (0, features.shape[1])
                rows = store.create_dataset(
                    "features", shape, maxshape=(None, shape[1]), dtype="f4"
                )
            first = len(rows)
            rows.resize(first + len(features), axis=0)
            rows[first:] = features


def _likeness(folder: Path, images: SplitReader) -> dict[str, float]:
    """Of both sides' features; plain crops differ by one resampling instead of two steps."""
    with h5py.File(folder / "ours.h5") as ours, h5py.File(folder / "reference.h5") as reference:
        assert len(ours["features"]) == len(reference["features"]) == len(images)
        one, two = ours["features"][:, 0], reference["features"][:].reshape(len(images), -1)
    cosine = (one * two).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    return {
        "largest_difference": float(np.abs(one - two).max()),
        "smallest_cosine": float(cosine.min()),
    }


if __name__ == "__main__":
    main()
