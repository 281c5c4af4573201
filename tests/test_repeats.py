"""Images in train and in test under two names are counted, and many are refused."""

import numpy as np
import pytest
from pictures import encoded, write_files

from ijepa.config import ExtractConfig, FinetuneConfig, Runtime
from ijepa.errors import IjepaError
from ijepa.extract import extract
from ijepa.finetune import finetune, plan_finetune
from ijepa.shard import shard
from ijepa.stores.features import open_features
from ijepa.stores.repeats import image_id, refuse_many, repeats_in_shards
from ijepa.stores.shards import open_shards

CPU = Runtime(device="cpu", workers=0)


def with_copies(folder, copies):
    """24 training and 20 validation images, of which the last few are training images, too."""
    train = {f"train/{n % 2}/{n}.png": encoded(n, height=32, width=32) for n in range(24)}
    numbers = [*range(100, 120 - copies), *range(copies)]
    val = {f"val/{n % 2}/v{n}.png": encoded(n, height=32, width=32) for n in numbers}
    return shard(str(write_files(folder / "images", train | val)), folder / "shards").out


def test_as_many_are_counted_as_are_there(tmp_path):
    data = open_shards(with_copies(tmp_path, 5))
    train, val = data.split("train"), data.split("val")
    seen = []
    found = repeats_in_shards(train, np.arange(24), val, lambda *step: seen.append(step))
    assert found == 5
    assert seen[-1][1] == seen[-1][2]
    copied = [n for n in range(24) if train.read_image(n) in [image.image for image in val]]
    assert repeats_in_shards(train, np.array(copied[:2]), val) == 2
    assert repeats_in_shards(train, np.setdiff1d(np.arange(24), copied), val) == 0


def test_features_know_whose_image_they_are(tmp_path):
    data = with_copies(tmp_path, 5)
    images = {}
    for split in ("train", "val"):
        choice = ExtractConfig(encoder="pixels", split=split, views=2, augment="flip")
        extract(data, tmp_path / f"{split}.h5", choice, CPU)
        images[split] = open_features(tmp_path / f"{split}.h5").image_ids
        expected = [image_id(sample.image) for sample in open_shards(data).split(split)]
        assert images[split].tolist() == np.repeat(expected, 3).tolist()
    assert len(set(images["train"]) & set(images["val"])) == 5


def test_fine_tuning_tells_a_few_and_refuses_many(run, tmp_path):
    choice = FinetuneConfig(encoder=str(run), epochs=1, batch_size=8)
    few, many = with_copies(tmp_path / "few", 1), with_copies(tmp_path / "many", 2)
    assert finetune(few, tmp_path / "run", choice, CPU).result.repeats == 1
    for act in (lambda: finetune(many, tmp_path / "other", choice, CPU),
                lambda: plan_finetune(many, choice, CPU)):  # fmt: skip
        with pytest.raises(IjepaError, match=r"^2 of 20 test images are training images, too"):
            act()


@pytest.mark.parametrize(
    ("repeats", "images", "many"), [(1, 20, False), (2, 20, True), (1, 4, True)]
)
def test_more_than_one_in_twenty_are_many(repeats, images, many):
    if not many:
        refuse_many(repeats, images)
        return
    with pytest.raises(IjepaError, match="under another name"):
        refuse_many(repeats, images)
