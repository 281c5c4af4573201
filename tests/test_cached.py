"""A cached answer needs neither torch nor the numbers of a file."""

import json
import subprocess
import sys

import pytest
from runs import CPU
from typer.testing import CliRunner

from ijepa.config import ConvertConfig, ExtractConfig, MasksConfig, ProbeConfig
from ijepa.convert import convert
from ijepa.extract import extract
from ijepa.features import store as features
from ijepa.probe import probe
from ijepa.recipes import load_recipe
from ijepa.report import report
from ijepa.visualize import visualize
from ijepa_cli.main import app

SLOW_TO_IMPORT = ("torch", "scipy", "sklearn", "timm", "pandas", "matplotlib", "transformers")


@pytest.fixture(scope="module")
def made(run, shards, tmp_path_factory):
    """One finished output of each stage, and the arguments that answer it from the cache."""
    folder = tmp_path_factory.mktemp("made")
    common = ["--device", "cpu"]
    for split in ("train", "val"):
        config = ExtractConfig(encoder=str(run), split=split)
        extract(shards, folder / f"{split}.h5", config, CPU)
    train, val = folder / "train.h5", folder / "val.h5"
    probe((train, val), [], folder / "r.json", ProbeConfig(name="knn"), CPU)
    report([folder / "r.json", run], folder / "r.html", runtime=CPU)
    convert(run, folder / "c.pth.tar", ConvertConfig(to="published"), CPU)
    visualize(folder / "m.png", MasksConfig(recipe=load_recipe("cifar10")))
    small = ("encoder.arch=32x2x2", "predictor.dim=16", "predictor.depth=1")
    small += ("optimization.epochs=1",)
    images = ["pretrain", "--data", str(shards.parent / "images"), "--out", str(folder / "own")]
    images += [*common, *(word for setting in small for word in ("--set", setting))]
    assert CliRunner().invoke(app, images).exit_code == 0
    features = ["--train", str(train), "--test", str(val)]
    where = ["--encoder", str(run), "--data", str(shards), "--split", "val"]
    recipe = ["--recipe", str(run / "config.yaml"), "--data", str(shards)]
    return folder, {
        "shard": ["shard", str(shards.parent / "images"), str(shards)],
        "pretrain": ["pretrain", *recipe, "--out", str(run), *common],
        "images": images,
        "extract": ["extract", *where, "--out", str(val), *common],
        "probe": ["probe", "knn", *features, "--out", str(folder / "r.json"), *common],
        "report": ["report", str(folder / "r.json"), str(run), "--out", str(folder / "r.html")],
        "convert": ["convert", str(run), str(folder / "c.pth.tar"), "--to", "published"],
        "masks": ["visualize", "masks", "--recipe", "cifar10", "--out", str(folder / "m.png")],
    }


@pytest.mark.parametrize(
    "stage", ["shard", "pretrain", "images", "extract", "probe", "report", "convert", "masks"]
)
def test_a_cached_answer_imports_nothing_that_is_slow(made, stage):
    script = (
        "import sys; from ijepa_cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        f"finally: print(*(name for name in {SLOW_TO_IMPORT} if name in sys.modules), "
        "file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, *made[1][stage], "--json"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["cached"] is True
    assert not set(found.stderr.split()) & set(SLOW_TO_IMPORT)


def test_a_cached_probe_reads_no_numbers(made, monkeypatch):
    folder, _ = made
    unread = property(lambda _: pytest.fail("numbers were read"))
    monkeypatch.setattr(features.Features, "values", unread)
    pair = (folder / "train.h5", folder / "val.h5")
    assert probe(pair, [], folder / "r.json", ProbeConfig(name="knn"), CPU).cached


def test_pretraining_starts_without_libraries_that_it_does_not_use():
    script = "import sys, ijepa.train.pretraining; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not set(found.stdout.split()) & {*SLOW_TO_IMPORT, "torchvision"} - {"torch"}
