"""Loader: shards to crops against ImageFolder + Pillow + ToTensor, on one core.

    python benchmarks/bench_loader.py --data FOLDER [--image-px 224] [--resize-px 256]

FOLDER holds images, in class folders or not. Without it, scenes are rendered for the purpose.
Both sides read the same images and cut the same crops; PSNR compares the pixels that come out.
Ours hands over uint8 batches, which are normalised on the device that trains; `ratio_float` counts
that too. `ratio_cached` is for images decoded beforehand (`--cache decoded`).
"""

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import emit, medians
from torchvision.transforms.functional import to_tensor

from ijepa.config import DataConfig, Runtime, ShardConfig
from ijepa.data.loader import CachedCropBatches, RandomCropBatches, StepPlan
from ijepa.data.shards import SplitReader, open_shards
from ijepa.jepa.augment import CropDraws, draw_crops, fit_box, normalise
from ijepa.jepa.rng import CROPS, stream
from ijepa.shard import shard

BATCH = 64
MOST = 512  # images in a round


def main() -> None:
    """Shard, time, compare, print one line."""
    arguments = _arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = _sharded(arguments.data, folder / "set", None)
        images = originals
        if arguments.resize_px:
            images = _sharded(arguments.data, folder / "resized", arguments.resize_px)
        files = _as_files(originals, folder / "files")
        _compare(images, files, arguments)


def _sharded(data: str, out: Path, resize_px: int | None) -> SplitReader:
    shard(data, out, ShardConfig(resize_px=resize_px, max_bad=1000), Runtime(workers=2))
    opened = open_shards(out)
    return opened.split(max(opened.splits))  # `val` after `train`: the smaller


def _compare(images: SplitReader, files: list[Path], arguments: argparse.Namespace) -> None:
    batch_size = min(BATCH, len(images))
    config = DataConfig(image_px=arguments.image_px, batch_size=batch_size)
    plan = StepPlan(len(images), config, seed=0)
    batches = RandomCropBatches(images, plan)
    cached = CachedCropBatches(images, plan, torch.device("cpu"), workers=2)
    steps = range(max(1, min(MOST, len(images)) // batch_size))
    numbers = [batches[step].numbers.tolist() for step in steps]
    ours, plain = medians(
        lambda: [batches[step] for step in steps],
        lambda: [_plain(files, numbers[step], step, config) for step in steps],
        rounds=5,
    )
    with_float, _ = medians(
        lambda: [normalise(batches[step].images, config.mean, config.std) for step in steps],
        lambda: None,
        rounds=5,
    )
    with_cache, _ = medians(
        lambda: [cached[step] for step in steps],
        lambda: None,
        rounds=5,
    )
    count = len(steps) * batch_size
    emit(
        "loader",
        data=Path(arguments.data).name,
        image_px=arguments.image_px,
        resize_px=arguments.resize_px or "none",
        images_per_second=count / ours,
        plain_images_per_second=count / plain,
        ratio=plain / ours,
        ratio_float=plain / with_float,
        ratio_cached=plain / with_cache,
        median_psnr_db=_psnr(batches, images, config),
    )


def _plain(files: list[Path], numbers: list[int], step: int, config: DataConfig) -> torch.Tensor:
    """What ImageFolder, RandomResizedCrop and ToTensor do, with our crops."""
    draws = draw_crops(len(numbers), config, stream(0, CROPS, step))
    crops = [
        to_tensor(_plain_crop(files[number].read_bytes(), draws, place, config.image_px))
        for place, number in enumerate(numbers)
    ]
    return torch.stack(crops)


def _plain_crop(content: bytes, draws: CropDraws, place: int, image_px: int) -> Image.Image:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    top, left, height, width = fit_box(draws, place, image.height, image.width)
    cut = image.crop((left, top, left + width, top + height))
    return cut.resize((image_px, image_px), Image.Resampling.BILINEAR)


def _as_files(images: SplitReader, folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number:06d}" for number in range(len(images))]
    for number, path in enumerate(paths):
        path.write_bytes(images.read_image(number))
    return paths


def _psnr(batches: RandomCropBatches, images: SplitReader, config: DataConfig) -> float:
    """Against Pillow's crops of the very bytes that were read; identical pixels count as 100 dB."""
    batch = batches[0]
    draws = draw_crops(len(batch.numbers), config, stream(0, CROPS, 0))
    ratios = []
    for place, number in enumerate(batch.numbers.tolist()):
        content = images.read_image(number)
        theirs = np.asarray(_plain_crop(content, draws, place, config.image_px))
        ours = batch.images[place].permute(1, 2, 0).numpy()
        error = np.mean((theirs.astype(float) - ours) ** 2)
        ratios.append(10 * np.log10(255**2 / max(error, 255**2 / 1e10)))
    return float(np.median(ratios))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="scenes:train=64,val=512,px=128")
    parser.add_argument("--image-px", type=int, default=128)
    parser.add_argument("--resize-px", type=int, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
