"""Seconds and memory of the nearest-neighbour probe as the training set grows.

    OMP_NUM_THREADS=1 python benchmarks/bench_knn.py [--rows 10000 30000 100000]

Features are noise of 768 float16 numbers a row, 100 classes; the test set has 2,000 rows. Each size
is a process of its own, so that its peak memory is its own.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np
from timing import emit

from ijepa.config import ProbeConfig
from ijepa.probes.arrays import LabelledRows, ProbeRequest

DIM, CLASSES, TEST_ROWS = 768, 100, 2000


def main() -> None:
    """One line a size."""
    parser = argparse.ArgumentParser(description="The nearest-neighbour probe as train grows.")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    sizes = parser.parse_args().rows
    if len(sizes) == 1:
        return measure(sizes[0])
    for size in sizes:
        subprocess.run([sys.executable, __file__, "--rows", str(size)], check=True)
    return None


def measure(rows: int) -> None:
    """Fit once."""
    from ijepa.probes.knn import knn

    train, test = (_labelled(count) for count in (rows, TEST_ROWS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    knn(train, test, ProbeRequest(ProbeConfig(name="knn")))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    emit(
        "probe_knn",
        rows=rows,
        seconds=seconds,
        microseconds_a_row=1e6 * seconds / rows,
        peak_mb=peak,
        copies=peak / (rows * DIM * 4 / 2**20),
    )


def _labelled(rows: int) -> LabelledRows:
    noise = np.random.default_rng(rows).standard_normal(rows + DIM, np.float32).astype(np.float16)
    shifted = np.lib.stride_tricks.sliding_window_view(noise, DIM)  # which takes no memory
    values = shifted[:rows, np.newaxis]
    return LabelledRows(values, np.arange(rows) % CLASSES, np.arange(rows)[:, np.newaxis])


if __name__ == "__main__":
    main()
