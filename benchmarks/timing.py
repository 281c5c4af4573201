"""Timing two ways of doing the same work in one run, and saying where it was measured."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ijepa.distributed import device_name

Work = Callable[[], object]


def medians(ours: Work, reference: Work, rounds: int = 7, warmup: int = 1) -> tuple[float, float]:
    """Seconds a call of each, interleaved so that a noisy machine hits both; warm-up dropped."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(warmup + rounds):
        for work, taken in zip((ours, reference), seconds, strict=True):
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warmup:
                taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def emit(benchmark: str, **values: float | str) -> None:
    """Print one JSON line: the numbers, the device, the commit."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps({"benchmark": benchmark, **rounded, "device": _device(), "commit": _commit()}))
    sys.stdout.flush()


def _device() -> str:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return f"{device_name(device)}, torch {torch.__version__}"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
