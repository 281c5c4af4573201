"""Pretraining on images alone: the shard set is made, and the recipe is chosen."""

import json
import re
import shlex

import pytest
from gratings import write_gratings
from PIL import Image
from runs import CPU
from typer.testing import CliRunner

from ijepa.config import ShardConfig
from ijepa.pretrain import auto_recipe, pretrain
from ijepa.recipes import dump_yaml, load_recipe
from ijepa.records import read_record
from ijepa.shard import shard
from ijepa_cli.main import app

SMALL = ("encoder.arch=32x2x2", "predictor.dim=16", "predictor.depth=1", "optimization.epochs=1")


@pytest.fixture
def from_images(tmp_path):
    """Images without splits, and `ijepa pretrain` on them alone: exit code, stdout, stderr."""
    write_gratings(tmp_path, "images", 96, seed=0)

    def call(*more, out="run"):
        words = ["pretrain", "--data", tmp_path / "images", "--out", tmp_path / out, *more]
        words += ["--device", "cpu", "--workers", "0"]
        words += [word for setting in SMALL for word in ("--set", setting)]
        return CliRunner().invoke(app, list(map(str, words)))

    return call


def test_a_folder_of_images_is_enough_to_pretrain_and_answers_cached(from_images, tmp_path):
    first = from_images()
    assert first.exit_code == 0, first.output
    assert re.search(r"run\.shards made of .*images: train \d+, val \d+\n", first.stderr)
    assert (
        "recipe cifar10: images are 32 px (median short side), no GPU; 1 epoch in" in first.stderr
    )
    assert "--recipe cifar10 --set" in read_record(tmp_path / "run")["command"]
    again = from_images("--json")
    assert json.loads(again.stdout)["cached"] is True
    assert "run.shards holds the images" in again.stderr
    config = ShardConfig(val_fraction=0.1, resize_px=512)
    assert shard(tmp_path / "images", tmp_path / "run.shards", config).cached
    recipe = load_recipe("cifar10", [*SMALL, "optimization.warmup_epochs=0.0833"])
    assert pretrain(tmp_path / "run.shards", tmp_path / "run", recipe, CPU).cached


def test_a_name_with_dashes_is_no_option_to_give(tmp_path):
    data = tmp_path / "my--photos.tar"
    data.write_text("no archive")
    words = ["pretrain", "--data", data, "--out", tmp_path / "run"]
    told = str(CliRunner().invoke(app, list(map(str, words))).exception)
    assert "my--photos.tar is not a whole archive" in told
    assert "Give that option" not in told


def test_a_dry_run_on_images_names_both_outputs_and_then_the_cost(from_images, tmp_path):
    found = json.loads(from_images("--dry-run", "--json").stdout)
    assert [one["stage"] for one in found["runs"]] == ["shard", "pretrain"]
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    from_images()
    found = json.loads(from_images("--dry-run", "--json").stdout)
    assert (found["state"], found["steps"]) == ("cached", 2)


def test_images_that_change_never_replace_those_that_a_run_has_seen(from_images, tmp_path):
    from_images()
    before = (tmp_path / "run.shards" / "index.json").read_bytes()
    next((tmp_path / "images").rglob("*.png")).unlink()
    refused = str(from_images().exception)
    assert "is not as it was when" in refused
    assert "--replace" in refused
    assert (tmp_path / "run.shards" / "index.json").read_bytes() == before
    assert from_images("--replace").exit_code == 0
    assert (tmp_path / "run.shards" / "index.json").read_bytes() != before


@pytest.mark.parametrize("out", ["images/run", "images"])
def test_a_run_is_never_put_among_its_images(from_images, tmp_path, out):
    assert "choose another" in str(from_images(out=out).exception)
    assert not list(tmp_path.rglob("*.shards"))


def test_an_image_that_does_not_decode_is_refused_with_the_command_that_leaves_it_out(
    from_images, tmp_path
):
    (tmp_path / "images" / "orientation0" / "bad.png").write_bytes(b"x")
    refused = str(from_images().exception)
    assert "--max-bad" in refused
    command = re.search(r"`ijepa (shard .*)`", refused)[1]
    assert CliRunner().invoke(app, [*shlex.split(command), "--max-bad", "1"]).exit_code == 0
    assert from_images().exit_code == 0


def test_a_run_keeps_the_recipe_that_it_was_begun_with_on_another_device(tmp_path):
    (tmp_path / "own").mkdir()
    for number in range(40):
        Image.new("RGB", (160, 200), (number, 0, 0)).save(tmp_path / "own" / f"{number}.png")
    shard(tmp_path / "own", tmp_path / "shards")
    asked = tmp_path / "shards", tmp_path / "run", SMALL[3:]
    (for_gpu, large, *_), (for_cpu, small, *_) = (
        auto_recipe(*asked, has_gpu) for has_gpu in (lambda: True, lambda: False)
    )
    assert (for_gpu, for_cpu) == ("own-224", "own-64")
    assert large.data.batch_size == small.data.batch_size == 32
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "work.json").write_text('{"stage": "pretrain"}')
    (tmp_path / "run.partial" / "config.yaml").write_text(dump_yaml(small))
    again, *_, why = auto_recipe(*asked, lambda: True)
    assert again == "own-64"
    assert "160 px" in why
