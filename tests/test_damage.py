"""One flipped bit in anything that the stages keep is found by whoever reads it next."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import class_folders, write_files
from runs import CPU
from typer.testing import CliRunner

from ijepa.config import ExtractConfig, ShardConfig
from ijepa.data.index import check_shards, load_rows
from ijepa.data.shards import open_shards
from ijepa.errors import IjepaError
from ijepa.extract import check_features, extract
from ijepa.pretrain import pretrain
from ijepa.report import report
from ijepa.shard import shard
from ijepa.weights import load_checkpoint
from ijepa_cli.main import app

SEVERAL = ShardConfig(shard_bytes=10_000)  # shards
PIXELS = ExtractConfig(encoder="pixels", image_px=32)


def flip(path: Path, place: int) -> None:
    """Change a bit, and leave size and time as they were."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def made(tmp_path):
    """A shard set, and what it was made from."""
    images = str(write_files(tmp_path / "images", class_folders()))
    shard(images, tmp_path / "set", SEVERAL, CPU)
    return tmp_path / "set", images


def test_a_damaged_image_is_found_by_its_first_reader_and_by_check(made):
    folder, _ = made
    place = load_rows(folder, "train", ["class"])[0]
    flip(folder / "train-000000.tar", int(place["offset"]) + 40)
    reader = open_shards(folder).split("train")
    for read in (reader.read_image, reader.read_sample):
        with pytest.raises(IjepaError, match=r"train-000000\.tar is damaged at sample 0 of train"):
            read(0)
    assert reader.read_image(1)
    with pytest.raises(IjepaError, match=r"1 of \d+ files is damaged: train-000000\.tar\."):
        check_shards(folder)


def test_a_damaged_label_or_key_is_found_by_its_first_reader(made):
    folder, _ = made
    reader = open_shards(folder).split("train")
    flip(folder / "train.index.npy", (folder / "train.index.npy").stat().st_size - 3)
    for read in (reader.keys, lambda: reader.labels("class"), lambda: reader.read_sample(0)):
        with pytest.raises(IjepaError, match=r"train\.index\.npy is damaged"):
            read()


def test_a_damaged_set_is_not_cached_but_made_again_and_a_copied_one_is_cached(made, tmp_path):
    folder, images = made
    (folder / "train-000000.tar").write_bytes(bytes((folder / "train-000000.tar").stat().st_size))
    assert not shard(images, folder, SEVERAL, CPU).cached
    check_shards(folder)
    assert shard(images, folder, SEVERAL, CPU).cached
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert shard(images, tmp_path / "copy", SEVERAL, CPU).cached


@pytest.mark.parametrize("name", ["index.json", "train.index.npy"])
def test_a_damaged_index_is_refused_when_the_set_is_opened(made, name):
    folder, _ = made
    flip(folder / name, (folder / name).stat().st_size // 2)
    with pytest.raises(IjepaError):
        open_shards(folder)


def test_a_set_without_its_record_is_read_as_before_and_a_damaged_index_found_by_check(made):
    folder, _ = made
    (folder / "stage.json").unlink()
    assert open_shards(folder).split("train").read_sample(0).image
    checked = [*folder.glob("*.tar"), *folder.glob("*.index.npy")]
    assert check_shards(folder).files == len(checked)
    flip(folder / "train.index.npy", (folder / "train.index.npy").stat().st_size - 3)
    with pytest.raises(IjepaError, match=r": 1 of \d+ files is damaged: train\.index\.npy\."):
        check_shards(folder)


def test_features_are_checked_together_with_their_data(made, tmp_path):
    folder, _ = made
    extract(folder, tmp_path / "train.h5", PIXELS, CPU)
    words = ["features", "check", str(tmp_path / "train.h5"), "--data", str(folder)]
    said = CliRunner().invoke(app, words).stdout
    assert said.endswith(f" images) is whole and undamaged, and so is {folder}\n")
    flip(folder / "train-000000.tar", 600)
    with pytest.raises(IjepaError, match="damaged"):
        check_features(tmp_path / "train.h5", folder)


def test_a_file_put_in_the_place_of_another_is_not_cached(made, tmp_path):
    folder, _ = made
    train, val = tmp_path / "train.h5", tmp_path / "val.h5"
    extract(folder, train, PIXELS, CPU)
    config = PIXELS.model_copy(update={"split": "val"})
    images = extract(folder, val, config, CPU).images
    assert extract(folder, val, config, CPU).cached
    shutil.copy2(train, val)
    again = extract(folder, val, config, CPU)
    assert (again.cached, again.images) == (False, images)


def test_every_flipped_bit_of_a_checkpoint_is_found_or_harmless(run, tmp_path):
    path = tmp_path / "last.pt"
    shutil.copy(run / "checkpoints" / "last.pt", path)
    whole, found = load_checkpoint(path)["model"], 0
    places = np.random.default_rng(0).integers(0, path.stat().st_size, 60)
    for place in places.tolist():
        flip(path, place)
        try:
            state = load_checkpoint(path)["model"]
        except IjepaError:
            found += 1
        else:
            assert all((state[name] == value).all() for name, value in whole.items())
        flip(path, place)
    assert found > 30


def test_a_run_with_damaged_metrics_is_not_reported_and_not_trained_again_unasked(
    run, shards, tiny_config, tmp_path
):
    finished = shutil.copytree(run, tmp_path / "run")
    flip(finished / "metrics.jsonl", 30)
    with pytest.raises(IjepaError, match=r"metrics\.jsonl was changed or damaged"):
        report([finished], tmp_path / "r.html")
    with pytest.raises(IjepaError, match=r"metrics\.jsonl was changed.*--force"):
        pretrain(shards, finished, tiny_config, CPU)
    assert (finished / "checkpoints" / "last.pt").exists()
