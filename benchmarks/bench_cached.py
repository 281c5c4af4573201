"""CPU seconds that each stage takes to find its output finished: the cached answer.

    OMP_NUM_THREADS=1 python benchmarks/bench_cached.py [--images 500]

Every stage runs once on rendered scenes, then answers from its record, as a process of its own.
CPU time of user and system, the median of five; the reference is `ijepa --help`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile

from timing import emit

ROUNDS = 5
TINY = (
    "encoder.arch=32x2x2", "predictor.dim=16", "predictor.depth=1", "optimization.epochs=1",
    "optimization.warmup_epochs=0.1", "watch.num_images=32",
)  # fmt: skip


def main() -> None:
    """Make everything once, then ask for it again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=500)
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        bare = statistics.median([cpu_seconds(["--help"], folder) for _ in range(ROUNDS)])
        for stage, words in commands(images).items():
            cpu_seconds(words, folder)
            taken = [cpu_seconds([*words, "--json"], folder, cached=True) for _ in range(ROUNDS)]
            seconds = statistics.median(taken)
            emit(
                "cached", stage=stage, images=images, cpu_seconds=seconds, over_help=seconds - bare
            )


def commands(images: int) -> dict[str, list[str]]:
    """The words of each stage, in their order; all outputs are relative."""
    sets = [word for one in TINY for word in ("--set", one)]
    cpu, data = ["--device", "cpu"], ["--data", "set"]
    frozen = ["--encoder", "run", *data, *cpu]
    pair = ["--train", "train.h5", "--test", "val.h5", "--label", "class", *cpu]
    short = ["--set", "epochs=1", "--set", "warmup_epochs=0.5"]
    few = ["--set", "steps=20", "--set", "evaluated_images=16", "--set", "sampling_steps=2"]
    return {
        "shard": ["shard", f"scenes:train={images},val=200", "set"],
        "pretrain": ["pretrain", "--recipe", "scenes-mini", *data, "--out", "run", *sets, *cpu],
        "extract train": ["extract", *frozen, "--split", "train", "--out", "train.h5"],
        "extract val": ["extract", *frozen, "--split", "val", "--out", "val.h5"],
        "probe knn": ["probe", "knn", *pair, "--out", "knn.json"],
        "probe logistic": ["probe", "logistic", *pair, "--out", "logistic.json"],
        "finetune": ["finetune", *frozen, "--label", "class", "--out", "tuned", *short],
        "train-decoder": ["train-decoder", *frozen, "--out", "decoder", *few],
        "report": ["report", "knn.json", "run", "--out", "page.html"],
        "convert": ["convert", "run", "run.pth.tar", "--to", "published"],
        "visualize masks": ["visualize", "masks", "--recipe", "scenes-mini", "--out", "m.png"],
        "visualize pca": ["visualize", "pca", *frozen, "--images", "4", "--out", "pca.png"],
    }


def cpu_seconds(words: list[str], folder: str, *, cached: bool = False) -> float:
    """User and system time of one command, which must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "ijepa_cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode or (cached and not json.loads(done.stdout)["cached"]):
        sys.exit(f"{' '.join(words)}: {done.stderr or done.stdout}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
