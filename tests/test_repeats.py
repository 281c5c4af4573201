"""Images in train and in test under two names are told, and many are refused."""

import hashlib
import zlib

import numpy as np
import pytest
from pictures import as_file, encoded, write_files
from runs import CPU
from test_distributed import together

from ijepa.config import ExtractConfig, FinetuneConfig, ProbeConfig
from ijepa.data.shards import open_shards
from ijepa.errors import IjepaError
from ijepa.extract import extract
from ijepa.features.leakage import repeated_keys
from ijepa.features.store import open_features
from ijepa.finetune import finetune
from ijepa.probe import probe
from ijepa.shard import shard


def with_copies(folder, copies):
    """24 training and 20 validation images, of which the last few are training images, too."""
    train = {f"train/{n % 2}/{n}.png": encoded(n, height=32, width=32) for n in range(24)}
    numbers = [*range(100, 120 - copies), *range(copies)]
    val = {f"val/{n % 2}/v{n}.png": encoded(n, height=32, width=32) for n in numbers}
    return shard(str(write_files(folder / "images", train | val)), folder / "shards").out


def by_content(images, numbers):
    return images.image_ids(list(numbers)), images.keys(list(numbers))


def test_those_are_found_that_are_there(tmp_path):
    data = open_shards(with_copies(tmp_path, 1))
    train, val = data.split("train"), data.split("val")
    scored = {val.read_image(number) for number in range(len(val))}
    [copied] = [number for number in range(24) if train.read_image(number) in scored]
    every = by_content(val, range(20))
    assert repeated_keys(*by_content(train, range(24)), *every) == ("val/0/v0",)
    assert repeated_keys(*by_content(train, [copied]), *every) == ("val/0/v0",)
    others = [number for number in range(24) if number != copied]
    assert repeated_keys(*by_content(train, others), *every) == ()


def test_png_files_of_one_size_are_told_apart_though_most_of_their_crc_32_cancels(tmp_path):
    noise = {f"train/{n}.bmp": as_file(n, "BMP") for n in range(3000)}  # become PNG of few sizes
    images = open_shards(shard(write_files(tmp_path / "in", noise), tmp_path / "out").out)
    images = images.split("train")
    crcs = {(len(one), zlib.crc32(one)) for one in map(images.read_image, range(len(images)))}
    assert len(crcs) < len(images)
    assert len(set(images.image_ids().tolist())) == len(images)


@pytest.mark.parametrize("views", [0, 2])
def test_features_know_whose_image_they_are(tmp_path, views):
    data = with_copies(tmp_path, 5)
    augment = "flip" if views else "none"
    for split in ("train", "val"):
        choice = ExtractConfig(encoder="pixels", split=split, views=views, augment=augment)
        extract(data, tmp_path / f"{split}.h5", choice, CPU)
        expected = [
            int.from_bytes(hashlib.sha256(images.read_image(number)).digest()[:8])
            for images in [open_shards(data).split(split)]
            for number in range(len(images))
            for _ in range(1 + views)
        ]
        assert open_features(tmp_path / f"{split}.h5").image_ids.tolist() == expected


def test_one_training_image_alone_in_the_test_set_is_found(tmp_path):
    files = {f"train/{n % 2}/{n}.png": encoded(n, height=32, width=32) for n in range(24)}
    files["val/0/copy.png"] = files["train/1/3.png"]
    data = shard(write_files(tmp_path / "images", files), tmp_path / "shards").out
    for split in ("train", "val"):
        extract(data, tmp_path / f"{split}.h5", ExtractConfig(encoder="pixels", split=split), CPU)
    pair = (tmp_path / "train.h5", tmp_path / "val.h5")
    with pytest.raises(IjepaError, match=r"^1 of 1 .*such as val/0/copy \(train/1/3 in train\)"):
        probe(pair, [], tmp_path / "r.json", ProbeConfig(name="knn"))


def test_fine_tuning_tells_a_few_and_refuses_many(run, tmp_path):
    choice = FinetuneConfig(encoder=str(run), epochs=1, batch_size=8)
    few, many = with_copies(tmp_path / "few", 1), with_copies(tmp_path / "many", 2)
    assert finetune(few, tmp_path / "run", choice, CPU).scores[0].repeats == ("val/0/v0",)
    with pytest.raises(IjepaError, match=r"^2 of 20 test images are training images, too"):
        finetune(many, tmp_path / "other", choice, CPU)


@pytest.mark.slow
def test_processes_that_fine_tune_together_look_at_all_images(run, tmp_path):
    data = with_copies(tmp_path, 2)
    words = ["finetune", "--encoder", run, "--data", data, "--out", tmp_path / "out"]
    words += ["--set", "epochs=1", "--set", "batch_size=8", "--workers", "0"]
    codes, errors = together(2, [*words, "--device", "cpu"])
    assert codes == [1, 1]
    assert sum(error.count("2 of 20 test images are training") for error in errors) == 1, errors


@pytest.mark.parametrize(
    ("copies", "images", "many"), [(1, 20, False), (2, 20, True), (1, 4, True)]
)
def test_more_than_one_in_twenty_are_many(copies, images, many):
    ids = np.arange(images, dtype=np.uint64)
    train, test = ([f"{split}/{n}" for n in range(images)] for split in ("train", "val"))
    both = ids[:copies], train[:copies], ids, test
    if not many:
        assert repeated_keys(*both) == ("val/0",)
        return
    with pytest.raises(IjepaError, match=r"such as val/0 \(train/0 in train\)"):
        repeated_keys(*both)
