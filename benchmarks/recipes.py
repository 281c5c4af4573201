"""Which settings learn most? Variants of a recipe at equal images or equal cost, several seeds.

    python benchmarks/recipes.py levers --data shards/cifar10 --images 300000 [--seeds 3]

STUDY is one of `STUDIES`. Each variant is pretrained once a seed by the command line, --jobs at a
time with one thread each, seed by seed, so that all variants meet the same load. At --points kept
checkpoints its features are probed. `table.md` and `curve.svg` beside the runs have the health
check's kNN on training images, by which variants are to be chosen, and the probes' accuracy on the
test split. All stages are cached: stopped and started again, a study goes on; variants, seeds and
points may be added later.
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
from typing import Any

from ijepa.data.shards import open_shards
from ijepa.files import write_bytes
from ijepa.recipes import load_recipe

# Variant -> settings on top of the recipe.
STUDIES: dict[str, dict[str, tuple[str, ...]]] = {
    "levers": {
        "the recipe": (),
        "targets of all layers": ("targets.layers=[1,2,3,4]",),
        "EMA held at 0.996": ("optimization.ema=[0.996,0.996]",),
        "EMA held at 0.99": ("optimization.ema=[0.99,0.99]",),
        "hold, then cool": ("optimization.schedule=hold-then-cool",),
        "learning rate 2e-3": ("optimization.lr=2e-3",),
        "batches of 128, learning rate 2e-3": ("data.batch_size=128", "optimization.lr=2e-3"),
        "contexts of 28 patches": ("masks.context_patches=28",),
        "four draws an image": ("masks.draws_per_image=4",),
        "tanh for the targets' layer norm": ("targets.norm=dyntanh",),
    },
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
    # A group of 64 needs a batch of 64. Published draws hold targets too to `min_keep`: of 64
    # patches 9 may be the least, and contexts may then be as small, so large groups cut deep.
    "groups": {
        f"{draw}, group of {size}": (
            f"masks.draw={draw}",
            f"masks.group_size={size}",
            "data.batch_size=64",
            "masks.min_keep=8",
        )
        for draw, size in itertools.product(("published", "symmetric"), (1, 8, 64))
    },
}
RANDOM = "random initialisation"


class Study:
    """The runs of one study, and what was measured of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._given = arguments
        self._folder = Path(arguments.out, arguments.study)
        self._images = len(open_shards(arguments.data).split("train"))
        self._recipe = load_recipe(arguments.recipe)
        self.variants = dict(STUDIES[arguments.study])
        if arguments.only:
            self.variants = {name: self.variants[name] for name in arguments.only}
        for one in arguments.variant:
            name, _, settings = one.partition(":")
            self.variants[name] = tuple(settings.split())
        self._gflops: dict[str, float] = {}

    def run(self) -> list[dict[str, Any]]:
        """Pretrain and probe what is missing; one record for each variant, seed and point."""
        given = self._given
        # Settings that do not fit are told at once, not when all other variants are trained.
        planned = {name: self._planned(name) for name in self.variants}
        if given.equal == "cost":
            self._gflops = planned
        cells = [(variant, seed) for seed in range(given.seeds) for variant in self.variants]
        with ThreadPoolExecutor(given.jobs) as pool:
            found = list(pool.map(lambda cell: self._measured(*cell), cells))
            found += pool.map(self._untrained, range(given.seeds))
        return list(itertools.chain(*found))

    def settings(self, variant: str, seed: int) -> list[str]:
        """All settings of a run, as options of the command."""
        given, images = self._given, self._given.images
        if self._gflops and variant in self._gflops:
            images *= self._gflops[next(iter(self.variants))] / self._gflops[variant]
        # The last checkpoint that is probed is the run's end.
        epochs = max(1, round(images / self._images / given.points)) * given.points
        share = self._recipe.optimization.warmup_epochs / self._recipe.optimization.epochs
        kept = epochs // given.points
        own = [
            f"optimization.epochs={epochs}",
            f"optimization.warmup_epochs={share * epochs:.4f}",
            f"checkpoint_epochs={kept}",
            f"watch.num_images={given.watched}",
            f"seed={seed}",
            *self.variants.get(variant, ()),
        ]
        return [*itertools.chain(*(("--set", setting) for setting in own))]

    def _planned(self, variant: str) -> float:
        text = ijepa(*self._pretrain(variant, 0, self._folder / "plan"), "--dry-run", "--json")
        return float(json.loads(text)["gflops_per_image"])

    def _pretrain(self, variant: str, seed: int, out: Path) -> list[object]:
        given = self._given
        words = ["pretrain", "--recipe", given.recipe, "--data", given.data, "--out", out]
        return [*words, "--workers", 0, "--cache", "decoded", *self.settings(variant, seed)]

    def _home(self, variant: str, seed: int) -> Path:
        return self._folder / "".join(c if c.isalnum() else "-" for c in variant) / str(seed)

    def _untrained(self, seed: int) -> list[dict[str, Any]]:
        """What the first variant's runs started from."""
        run = self._home(next(iter(self.variants)), seed) / "run"
        scores = self._probed(RANDOM, seed, f"random:{run}", self._home(RANDOM, seed))
        return [scores | {"images": 0}]

    def _measured(self, variant: str, seed: int) -> list[dict[str, Any]]:
        folder = self._home(variant, seed)
        run = folder / "run"
        ijepa(*self._pretrain(variant, seed, run))
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        steps = [line for line in lines if "neighbour_accuracy" in line]
        found = []
        for checkpoint in sorted((run / "checkpoints").glob("epoch-*.pt")):
            epoch = int(checkpoint.stem.removeprefix("epoch-"))
            near = min(steps, key=lambda line: abs(line.get("epoch", 0) - epoch))
            scores = self._probed(variant, seed, str(checkpoint), folder / checkpoint.stem)
            scores["health kNN"] = 100 * near["neighbour_accuracy"]
            found.append(scores | {"images": epoch * self._images})
        curve = [(line.get("images", 0), 100 * line["neighbour_accuracy"]) for line in steps]
        return [*found[:-1], found[-1] | {"curve": curve} | misses(steps[1:])]

    def _probed(self, variant: str, seed: int, encoder: str, folder: Path) -> dict[str, Any]:
        given = self._given
        for part, split in (("train", "train"), ("test", given.test)):
            ijepa(
                "extract", "--encoder", encoder, "--data", given.data, "--split", split,
                "--out", folder / f"{part}.h5", "--seed", seed, "--workers", 0,
            )  # fmt: skip
        scores: dict[str, Any] = {"variant": variant, "seed": seed}
        for probe, label in itertools.product(given.probes, given.labels):
            out = folder / f"{probe}.{label}.json"
            ijepa(
                "probe", probe, "--label", label, "--seed", seed, "--out", out,
                "--train", folder / "train.h5", "--test", folder / "test.h5",
            )  # fmt: skip
            scores[f"{probe} {label}"] = 100 * json.loads(out.read_text())[0]["top1"]
        return scores


def misses(checks: list[dict[str, float]]) -> dict[str, float]:
    """By how many points of kNN other ways to choose a health check miss the best one.

    Each takes the check at which its number is best: the largest RankMe, the lowest loss, the last.
    """
    accuracy = [100 * check["neighbour_accuracy"] for check in checks]
    chosen = {
        "RankMe": max(range(len(checks)), key=lambda n: checks[n]["rankme"]),
        "loss": min(range(len(checks)), key=lambda n: checks[n]["loss"]),
        "last": len(checks) - 1,
    }
    return {f"missed by {name}": max(accuracy) - accuracy[n] for name, n in chosen.items()}


def ijepa(*words: object) -> str:
    """Run one stage with one thread; its standard output."""
    command = [sys.executable, "-m", "ijepa_cli", *map(str, words)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-1000:]}")
    return done.stdout


def table(records: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds at the last point of each variant, in percent."""
    columns = [*dict.fromkeys(name for record in records for name in record)]
    columns = [name for name in columns if name not in ("variant", "seed", "images", "curve")]
    lines = [f"| variant | images | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for variant in dict.fromkeys(record["variant"] for record in records):
        mine = [record for record in records if record["variant"] == variant]
        last = [r for r in mine if r["images"] == max(r["images"] for r in mine)]
        cells = [spread([record.get(column, math.nan) for record in last]) for column in columns]
        lines.append(f"| {variant} | {last[0]['images']:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Mean ± standard deviation, and the values themselves."""
    if any(map(math.isnan, values)):
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    each = ", ".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({each})"


def draw(records: list[dict[str, Any]], probe: str, path: Path) -> None:
    """Health kNN and a probe against images seen: lines are means over seeds, dots are seeds."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for number, variant in enumerate(dict.fromkeys(r["variant"] for r in records)):
        mine = [record for record in records if record["variant"] == variant]
        points = [(r["images"], r[probe]) for r in mine if probe in r]
        curves = [point for record in mine for point in record.get("curve", ())]
        for axis, dots in zip(axes, (curves, points), strict=True):
            by_images: dict[int, list[float]] = {}
            for images, score in dots:
                by_images.setdefault(images, []).append(score)
            means = [(images, statistics.mean(scores)) for images, scores in by_images.items()]
            if means:
                axis.plot(*zip(*sorted(means), strict=True), color=f"C{number}", label=variant)
                axis.plot(*zip(*dots, strict=True), ".", color=f"C{number}")
    names = "kNN of the health check, training images", f"{probe}, test images"
    for axis, name in zip(axes, names, strict=True):
        axis.set(xlabel="images seen", ylabel=f"{name} (%)")
    axes[1].legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", choices=tuple(STUDIES))
    parser.add_argument("--only", nargs="*", help="variants to run, instead of all")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME:SETTING SETTING ..."
    )
    parser.add_argument("--data", type=Path, default=Path("shards/cifar10"))
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--images", type=int, default=300_000, help="seen by the first variant")
    parser.add_argument("--equal", choices=("images", "cost"), default="images")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--points", type=int, default=1, help="kept checkpoints that are probed")
    parser.add_argument("--watched", type=int, default=5_000, help="images of the health check")
    parser.add_argument("--test", default="test", help="split to score on")
    parser.add_argument("--probes", nargs="+", default=["linear"])
    parser.add_argument("--labels", nargs="+", default=["class"])
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    study = Study(given)
    records = study.run()
    found, folder = table(records), given.out / given.study
    write_bytes(folder / "records.json", json.dumps(records, indent=1).encode())
    write_bytes(folder / "table.md", found.encode())
    draw(records, f"{given.probes[0]} {given.labels[0]}", folder / "curve.svg")
    print(found)


if __name__ == "__main__":
    main()
