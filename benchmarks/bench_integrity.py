"""What checks cost: SHA-256 of samples beside decoding, CRC-32 of checkpoints beside loading.

    python benchmarks/bench_integrity.py [--data FOLDER_OR_TAR]

Data holds images, in class folders or not; without it, scenes are rendered. Costs are fractions of
what the same takes without a check: of an epoch of decoded crops, and of reading bytes alone. Files
are in the page cache; from a disk, checking weighs less.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from timing import emit, medians

from ijepa.config import DataConfig, Runtime, ShardConfig
from ijepa.data.index import check_shards
from ijepa.data.loader import RandomCropBatches, StepPlan
from ijepa.data.shards import SplitReader, open_shards
from ijepa.shard import shard
from ijepa.weights import read_weights

BATCH = 64
CHECKPOINT_VALUES = 2**28  # 1 GiB of float32


class Unchecked(SplitReader):
    """Believes whatever it reads."""

    def __init__(self, *parts: object) -> None:
        """Take every image for checked."""
        super().__init__(*parts)
        self._checked = bytearray(b"\1") * len(self)


def main() -> None:
    """Time reading with and without checks, print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="scenes:train=300,val=10")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard(arguments.data, folder / "set", ShardConfig(max_bad=1000), Runtime(workers=2))
        found = open_shards(folder / "set")
        split = max(found.splits, key=lambda one: found.splits[one].samples)
        whole = found.split(split)
        bare = Unchecked(whole.folder, whole.name, whole.index)
        torch.save({"w": torch.rand(CHECKPOINT_VALUES)}, folder / "w.pt")
        _, crops = medians(lambda: _bytes(bare), lambda: _crops(bare))
        read = medians(lambda: _bytes(whole), lambda: _bytes(bare))
        weights = medians(
            lambda: _sum(read_weights(folder / "w.pt")),
            lambda: _sum(torch.load(folder / "w.pt", mmap=True, weights_only=True)),
        )
        all_of_it, _ = medians(lambda: check_shards(folder / "set"), lambda: None)
        size = check_shards(folder / "set").bytes
    emit(
        "integrity",
        images=len(whole),
        crops_cost=(read[0] - read[1]) / crops,
        read_cost=read[0] / read[1] - 1,
        checkpoint_seconds_per_gb=(weights[0] - weights[1]) / 1.074,
        check_gb_per_second=size / all_of_it / 1e9,
    )


def _crops(reader: SplitReader) -> None:
    """As an epoch of pretraining reads them; a reader begins anew."""
    fresh = type(reader)(reader.folder, reader.name, reader.index)
    data = DataConfig(batch_size=min(BATCH, len(fresh)))
    batches = RandomCropBatches(fresh, StepPlan(len(fresh), data, 0))
    for step in range(len(fresh) // data.batch_size):
        batches[step]


def _bytes(reader: SplitReader) -> None:
    fresh = type(reader)(reader.folder, reader.name, reader.index)
    for number in range(len(fresh)):
        fresh.read_image(number)


def _sum(weights: dict[str, torch.Tensor]) -> None:
    """Touch all of it."""
    weights["w"].sum()


if __name__ == "__main__":
    main()
