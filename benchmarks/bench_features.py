"""The feature store against plain files of the same bytes: writing, reading in order and shuffled.

    python benchmarks/bench_features.py [--rows 100000] [--folder DIR]

The plain side writes and reads one file of raw numbers, and syncs it as the store does. Files stand
in the page cache when they are read, so that the store's own work is what is compared.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from timing import emit

from ijepa.features.store import FeatureHeader, open_features
from ijepa.features.write import FeatureWriter, create_features

LAYERS, DIM, BATCH = 4, 768, 256
ROUNDS = 5
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
        keys = [f"{row:08d}" for row in range(rows)]
        _compare(
            "write",
            rows,
            lambda: _write(store, keys, block),
            lambda: _plain(plain, rows, block),
            written=(store, plain),
        )
        _plain(plain, rows, block)
        opened = open_features(store, check_numbers=False)
        raw = np.memmap(plain, np.float16, "r", shape=(rows, LAYERS, DIM))
        order = np.random.default_rng(0).permutation(rows)
        for how, places in (("in order", np.arange(rows)), ("shuffled", order)):
            batches = np.array_split(places, rows // BATCH)
            _compare(
                f"read {how}",
                rows,
                lambda batches=batches: [opened.values[some] for some in batches],
                lambda batches=batches: [raw[some] for some in batches],
            )


def _compare(
    what: str,
    rows: int,
    ours: Callable[[], object],
    plain: Callable[[], object],
    written: Sequence[Path] = (),
) -> None:
    """Time both in turn, and take the best of each; what they write is removed before each turn."""
    taken: dict[Callable[[], object], list[float]] = {plain: [], ours: []}
    for _, work in itertools.product(range(ROUNDS), taken):
        for path in written:
            path.unlink(missing_ok=True)
        os.sync()
        start = time.perf_counter()
        work()
        taken[work].append(time.perf_counter() - start)
    seconds, reference = min(taken[ours]), min(taken[plain])
    megabytes = rows * ROW_BYTES / 1e6
    emit(
        "features",
        what=what,
        mb_per_second=megabytes / seconds,
        plain_mb_per_second=megabytes / reference,
        ratio=reference / seconds,
    )


def _write(path: Path, keys: list[str], block: Array) -> None:
    header = FeatureHeader(
        encoder="noise", weights_sha256="", which="target", layers=tuple(range(LAYERS)),
        pooling="", image_px=224, transform="", data_fingerprint="", split="train",
        class_names={}, fingerprint="",
    )  # fmt: skip
    shape = (len(keys), *block.shape[1:])
    create_features(path, header, shape, "float16", keys=keys, labels={}, batch_rows=BATCH)
    writer = FeatureWriter(path)
    for batch, first in enumerate(range(0, len(keys), BATCH)):
        ids = np.arange(first, min(first + BATCH, len(keys)), dtype=np.uint64)
        writer.write(batch, block[: len(ids)], ids)
    writer.finish()
    with path.open("rb") as file:  # as the stage does when it publishes
        os.fsync(file.fileno())


def _plain(path: Path, rows: int, block: Array) -> None:
    with path.open("wb") as file:
        for first in range(0, rows, BATCH):
            file.write(block[: min(BATCH, rows - first)].data)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
