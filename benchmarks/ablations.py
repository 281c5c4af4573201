"""Ablations at small scale: what a choice of the method is worth, all else and the budget equal.

    python benchmarks/ablations.py TABLE --data shards/scenes --out runs/ablations [--seeds 3]

TABLE is one of `TABLES`; `make shard` makes the default data. Each row is pretrained, extracted and
probed once a seed by the command line, --jobs at a time with one thread each, and prints mean and
standard deviation over seeds of the logistic probe's accuracy. Everything is cached: stopped and
started again, it goes on; seeds may be added later.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LABELS = ("class", "count")

# Row -> settings on top of the recipe and of COMMON.
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "masks": {
        "multiblock, embeddings": (),
        "rasterized": ("masks.kind=rasterized", "masks.min_keep=10"),
        "block": ("masks.kind=block", "masks.min_keep=10"),
        "random": ("masks.kind=random", "masks.min_keep=10"),
    },
    "targets": {
        "multiblock, embeddings": (),
        "pixels": ("targets.space=pixels",),
        "normalised pixels": ("targets.space=normalised-pixels",),
        "input masked": ("targets.masked=input",),
    },
    "groups": {
        f"{draw}, group of {size}": (f"masks.draw={draw}", f"masks.group_size={size}")
        for draw, size in itertools.product(("published", "symmetric"), (1, 8, 64))
    },
    "large-groups": {
        f"{draw}, group of {size}": (f"masks.draw={draw}", f"masks.group_size={size}")
        for draw, size in itertools.product(("published", "symmetric"), (1, 8, 64, 256))
    },
}
# A group of 64 needs a batch of 64. Published draws hold targets too to `min_keep`: of 64 patches
# 9 may be the least, and contexts may then be as small, which lets large groups cut deep.
COMMON: dict[str, tuple[str, ...]] = {
    "masks": (),
    "targets": (),
    "groups": ("data.batch_size=64", "masks.min_keep=8"),
    "large-groups": ("data.batch_size=256", "masks.min_keep=8", "optimization.lr=2e-3"),
}


def main() -> None:
    """Run what is missing, then print the table."""
    arguments = _arguments()
    rows = tuple(TABLES[arguments.table])
    seeds = range(arguments.seeds)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        trained = pool.map(lambda cell: _trained(arguments, cell), itertools.product(seeds, rows))
        scores = dict(zip(itertools.product(seeds, rows), trained, strict=True))
        random = list(pool.map(lambda seed: _untrained(arguments, rows[0], seed), seeds))
    print(f"\n| {arguments.table} | context patches | {' | '.join(LABELS)} |")
    print("|---" * (2 + len(LABELS)) + "|")
    print(_line("random init", random))
    for row in rows:
        print(_line(row, [scores[seed, row] for seed in seeds]))


def _trained(arguments: argparse.Namespace, cell: tuple[int, str]) -> list[float]:
    """Mean context patches of one run, and percent of its probes."""
    seed, row = cell
    run = _folder(arguments, row, seed) / "run"
    settings = [f"optimization.epochs={arguments.epochs}", f"seed={seed}"]
    settings.append(f"optimization.warmup_epochs={0.08 * arguments.epochs}")
    settings += [*COMMON[arguments.table], *TABLES[arguments.table][row]]
    _ijepa(
        "pretrain", "--recipe", arguments.recipe, "--data", arguments.data, "--out", run,
        "--workers", 0, *itertools.chain(*(("--set", setting) for setting in settings)),
    )  # fmt: skip
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[1:]]
    patches = statistics.mean(step["context_patches"] for step in steps)
    return [patches, *_probed(arguments, str(run), run.parent, seed)]


def _untrained(arguments: argparse.Namespace, row: str, seed: int) -> list[float]:
    """The same for an encoder like that of a row's first run, at its initialisation."""
    run = _folder(arguments, row, 0) / "run"
    return [math.nan, *_probed(arguments, f"random:{run}", run.parent / f"random-{seed}", seed)]


def _probed(arguments: argparse.Namespace, encoder: str, folder: Path, seed: int) -> list[float]:
    for part, split in (("train", "train"), ("test", "val")):
        _ijepa(
            "extract", "--encoder", encoder, "--data", arguments.data, "--split", split,
            "--out", folder / f"{part}.h5", "--seed", seed, "--workers", 0,
        )  # fmt: skip
    scores = []
    for label in LABELS:
        out = folder / f"{label}.json"
        _ijepa(
            "probe", "logistic", "--label", label, "--seed", seed, "--out", out,
            "--train", folder / "train.h5", "--test", folder / "test.h5",
        )  # fmt: skip
        scores.append(100 * json.loads(out.read_text())["scores"][0]["top1"])
    return scores


def _folder(arguments: argparse.Namespace, row: str, seed: int) -> Path:
    name = row.replace(",", "").replace(" ", "-")
    return Path(arguments.out, name, str(seed))


def _ijepa(*words: object) -> None:
    command = [sys.executable, "-m", "ijepa_cli", *map(str, words)]
    threads = {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=os.environ | threads, stdout=subprocess.DEVNULL)


def _line(row: str, scores: list[list[float]]) -> str:
    patches, *accuracies = zip(*scores, strict=True)
    cells = [f"{statistics.mean(patches):.1f}", *map(_spread, accuracies)]
    return f"| {row} | {' | '.join(cells)} |"


def _spread(values: tuple[float, ...]) -> str:
    """Mean and standard deviation, and the values themselves."""
    each = ", ".join(f"{value:.1f}" for value in values)
    if len(values) == 1:
        return each
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({each})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("table", choices=tuple(TABLES))
    parser.add_argument("--data", type=Path, default=Path("shards/scenes"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--recipe", default="scenes-mini")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
