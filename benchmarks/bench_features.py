"""The feature store against plain files of the same bytes: writing, reading in order and shuffled.

    python benchmarks/bench_features.py [--rows 100000] [--folder DIR]

The plain side writes and reads one file of raw numbers, and syncs it as the store does. Files stand
in the page cache when they are read, so that the store's own work is what is compared.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from timing import emit

from ijepa.stores.feature_writer import FeatureWriter
from ijepa.stores.features import FeatureHeader, open_features

LAYERS, DIM, BATCH = 4, 768, 256
ROW_BYTES = LAYERS * DIM * 2
Array = np.ndarray[tuple[int, ...], np.dtype[np.float16]]


def main() -> None:
    """Write both, read both, print three lines."""
    parser = argparse.ArgumentParser(description="The feature store against plain files.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    rows = arguments.rows
    block = np.random.default_rng(0).standard_normal((BATCH, LAYERS, DIM)).astype(np.float16)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        store, plain = Path(name, "f.h5"), Path(name, "f.bin")
        _compare(
            "write", rows, lambda: _write(store, rows, block), lambda: _plain(plain, rows, block)
        )
        opened = open_features(store, check_numbers=False)
        raw = np.memmap(plain, np.float16, "r", shape=(rows, LAYERS, DIM))
        order = np.random.default_rng(0).permutation(rows)
        for how, places in (("in order", np.arange(rows)), ("shuffled", order)):
            batches = np.array_split(places, rows // BATCH)
            _compare(
                f"read {how}",
                rows,
                lambda batches=batches: [opened.read(some, LAYERS) for some in batches],
                lambda batches=batches: [raw[some] for some in batches],
            )


def _compare(what: str, rows: int, ours: Callable[[], object], plain: Callable[[], object]) -> None:
    taken = []
    for work in (plain, ours, plain, ours):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    seconds, reference = min(taken[1], taken[3]), min(taken[0], taken[2])
    megabytes = rows * ROW_BYTES / 1e6
    emit(
        "features",
        what=what,
        mb_per_second=megabytes / seconds,
        plain_mb_per_second=megabytes / reference,
        ratio=reference / seconds,
    )


def _write(path: Path, rows: int, block: Array) -> None:
    path.unlink(missing_ok=True)
    header = FeatureHeader(
        encoder="noise", weights_sha256="", which="target", layers=tuple(range(LAYERS)),
        pooling="", image_px=224, transform="", data_fingerprint="", split="train",
        class_names={}, fingerprint="",
    )  # fmt: skip
    writer = FeatureWriter(path, header, "float16")
    for first in range(0, rows, BATCH):
        count = min(BATCH, rows - first)
        writer.append(block[:count], {}, [f"{first + n:08d}" for n in range(count)])
    writer.finish()


def _plain(path: Path, rows: int, block: Array) -> None:
    with path.open("wb") as file:
        for first in range(0, rows, BATCH):
            file.write(block[: min(BATCH, rows - first)].tobytes())
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
