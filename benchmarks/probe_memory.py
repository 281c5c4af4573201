"""Peak memory of `ijepa probe linear` on features five times larger than a limit.

    python benchmarks/probe_memory.py [--limit-mb 1500]

Writes noise of 4 x 768 float16 numbers a row, ten classes, and lets the command fit the heads of
dinov2-linear on it; prints the peak of its resident memory beside the limit and the file's size.
More than half of the default limit is taken by the libraries, before there is any feature.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from timing import emit

from ijepa.features.store import FeatureHeader
from ijepa.features.write import FeatureWriter, create_features

LAYERS, DIM, CLASSES = 4, 768, 10
ROW_BYTES = LAYERS * DIM * 2


def main() -> None:
    """Write, probe, print one line."""
    parser = argparse.ArgumentParser(description="Peak memory of a probe on a large store.")
    parser.add_argument("--limit-mb", type=int, default=1500)
    limit_mb = parser.parse_args().limit_mb
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = _store(folder / "train.h5", 5 * limit_mb * 10**6 // ROW_BYTES)
        test = _store(folder / "test.h5", 1000)
        words = ["probe", "linear", "--protocol", "dinov2-linear", "--device", "cpu"]
        words += ["--train", str(train), "--test", str(test), "--out", str(folder / "r.json")]
        command = [sys.executable, "-m", "ijepa_cli", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        peak_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # kilobytes on Linux
        emit(
            "probe_memory",
            store_mb=train.stat().st_size / 1e6,
            limit_mb=float(limit_mb),
            peak_mb=peak_kb * 1024 / 1e6,
            ratio=peak_kb * 1024 / 1e6 / limit_mb,
        )


def _store(path: Path, rows: int) -> Path:
    header = FeatureHeader(
        encoder="noise", weights_sha256="", which="target", layers=tuple(range(LAYERS)),
        pooling="", image_px=224, transform="", data_fingerprint=path.stem, split=path.stem,
        class_names={"class": None}, fingerprint=path.stem,
    )  # fmt: skip
    rng, keys = np.random.default_rng(0), [f"{path.stem}/{number:08d}" for number in range(rows)]
    labels = {"class": np.arange(rows) % CLASSES}
    ids = np.arange(rows, dtype=np.uint64) + np.uint64(zlib.crc32(path.stem.encode()) << 32)
    create_features(
        path, header, (rows, LAYERS, DIM), "float16", keys=keys, labels=labels, batch_rows=4096
    )
    writer = FeatureWriter(path)
    for batch, first in enumerate(range(0, rows, 4096)):
        some = ids[first : first + 4096]
        values = rng.standard_normal((len(some), LAYERS, DIM), dtype=np.float32)
        writer.write(batch, values, some)
    writer.finish()
    return path


if __name__ == "__main__":
    main()
