"""A shard set gives back what was put in, to any WebDataset reader too, or says what is wrong."""

import hashlib
import json
import multiprocessing
import os
import pickle
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import class_folders, encoded, write_files
from runs import CPU
from typer.testing import CliRunner

from ijepa.config import ShardConfig
from ijepa.data.decode import decode_rgb
from ijepa.data.plan import read_plan, write_plan
from ijepa.data.shards import open_shards
from ijepa.data.sources.items import Item
from ijepa.data.sources.names import sample_key
from ijepa.data.write import ShardWriter, tar_header
from ijepa.errors import IjepaError
from ijepa.shard import shard
from ijepa_cli.main import app

SMALL = ShardConfig(shard_bytes=10_000)  # three images


@pytest.fixture
def made(tmp_path):
    """A set of two splits with several shards each, and the files it was made of."""
    files = class_folders()
    shard(str(write_files(tmp_path / "images", files)), tmp_path / "set", SMALL, CPU)
    return tmp_path / "set", files


def test_a_split_is_a_data_set_for_pytorch(made):
    folder, _ = made
    split = open_shards(folder).split("train")
    image, labels = split[7]
    assert (image.mode, labels) == ("RGB", {"class": 1})
    assert np.array_equal(image, decode_rgb(split.read_image(7)))
    pixels = open_shards(folder).split("train", transform=np.asarray)
    loaded = list(torch.utils.data.DataLoader(pixels, batch_size=5, num_workers=1))
    assert torch.cat([batch["class"] for _, batch in loaded]).tolist() == [0] * 6 + [1] * 6
    assert np.array_equal(loaded[1][0][2], image)


def test_with_a_label_a_split_gives_what_torchvisions_data_sets_give(made):
    folder, _ = made
    split = open_shards(str(folder)).split("train", transform=np.asarray, label="class")
    loader = torch.utils.data.DataLoader(split, batch_size=5, num_workers=2)
    images, targets = zip(*loader, strict=True)
    assert torch.cat(targets).tolist() == split.targets == [0] * 6 + [1] * 6
    assert torch.cat(images).dtype == torch.uint8
    assert split.classes == ["cat", "dog"]
    assert split.class_to_idx == {"cat": 0, "dog": 1}
    assert split[-1][1] == 1
    for words in ("train", "12 images", "class (2 classes)"):
        assert words in repr(split)
    assert repr(open_shards(folder)).startswith(f"ShardSet('{folder}': train 12, val 12; made from")


def test_what_is_not_there_is_answered_with_the_nearest_that_is(made):
    folder, _ = made
    with pytest.raises(
        IjepaError, match=r"no split 'vel' \(did you mean 'val'\?\); its .* train, val"
    ):
        open_shards(folder).split("vel")
    with pytest.raises(IjepaError, match=r"no label 'clas' \(did you mean 'class'\?\)"):
        open_shards(folder).split("train", label="clas")
    with pytest.raises(IjepaError, match=r"not a shard set .* \(did you mean 'set'\?\)"):
        open_shards(folder.with_name("sett"))
    for number in (-1, 12):
        with pytest.raises(IndexError):
            open_shards(folder).split("train").read_image(number)


def test_samples_are_the_files_they_were_made_of_for_us_and_for_webdataset(made):
    folder, files = made
    split = open_shards(folder).split("train")
    urls = [str(folder / one.name) for one in split.index.shards]
    assert len(urls) > 1
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    ours = [split.read_sample(number) for number in range(len(split))]
    assert len(theirs) == len(ours) == len(files) / 2
    names = split.label_names["class"]
    columns = zip(split.keys(), split.labels("class"), strict=True)
    for one, other, column in zip(ours, theirs, columns, strict=True):
        label = one.labels["class"]
        assert one.key == other["__key__"] == f"train/{names[label]}/{one.key[-4:]}"
        assert one.image == other["png"] == files[f"{one.key}.png"]
        assert column == (one.key, label)
        assert int(other["cls"]) == json.loads(other["json"])["labels"]["class"] == label


def test_the_index_tells_the_truth_about_every_shard(made):
    folder, _ = made
    for split in open_shards(folder).splits.values():
        assert split.samples == sum(one.samples for one in split.shards)
        assert split.labels == {"class": ["cat", "dog"]}
        for one in split.shards:
            content = (folder / one.name).read_bytes()
            assert one.bytes == len(content)
            assert one.sha256 == hashlib.sha256(content).hexdigest()
            with tarfile.open(folder / one.name) as tar:
                assert len(tar.getnames()) == 3 * one.samples


def test_a_reader_survives_pickling_forking_and_threads(made):
    reader = open_shards(made[0]).split("train")
    expected = [reader.read_image(number) for number in range(len(reader))]
    numbers = range(len(reader))
    assert [pickle.loads(pickle.dumps(reader)).read_image(number) for number in numbers] == expected  # noqa: S301  # ours
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(reader.read_image, [*numbers] * 20)) == expected * 20
    with multiprocessing.get_context("fork").Pool(2) as forks:
        assert forks.map(reader.read_image, numbers) == expected


def test_a_reader_holds_a_bounded_number_of_files(made, monkeypatch):
    monkeypatch.setattr("ijepa.data.shards.OPEN_TARS", 2)
    reader = open_shards(made[0]).split("train")
    assert len(reader.index.shards) > 3
    reader.read_image(0)
    before = num_open_files()
    expected = [reader.read_image(number) for number in range(len(reader))]
    assert [reader.read_image(number) for number in range(len(reader))] == expected
    assert num_open_files() <= before + 1


def num_open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def change_index(folder, **changes):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: change_index(folder, schema_version=99), "schema 99"),
        (lambda folder: change_index(folder, splits=3), "splits"),
        (lambda folder: (folder / "index.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "val-000001.tar").unlink(), "val-000001.tar is missing"),
        (lambda folder: os.truncate(folder / "val-000001.tar", 1000), "has 1,000 bytes"),
        (lambda folder: (folder / "val.index.npy").unlink(), "missing or cut short"),
        (lambda folder: os.truncate(folder / "val.index.npy", 200), "missing or cut short"),
        (lambda folder: np.save(folder / "val.index.npy", np.zeros(12)), "not rows"),
    ],
)
def test_a_damaged_set_is_refused_when_it_is_opened(made, damage, message):
    damage(made[0])
    with pytest.raises(IjepaError, match=message):
        open_shards(made[0])


def test_a_shard_cut_short_after_opening_is_named(made):
    reader = open_shards(made[0]).split("val")
    os.truncate(made[0] / "val-000000.tar", 600)
    with pytest.raises(IjepaError, match=r"val-000000\.tar was cut short"):
        reader.read_image(1)


# Keys and tars

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
names = names.filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
STEMS = ("a", "a.b", "a%2Eb", "a~jpg", "a~", "a b", "\u00fc", "u\u0308", "a\n", "a\udcff", "a%")
nasty = st.builds(
    "".join, st.tuples(st.sampled_from(STEMS), st.sampled_from(["", ".", ".jpg", ".JPG", ".png"]))
)


@given(files=st.lists(paths | nasty, unique=True, min_size=1, max_size=8))
def test_no_two_images_share_a_key_and_webdataset_understands_every_key(files, tmp_path_factory):
    images = [Item("train", name, name, f"file{i}", 0, 1) for i, name in enumerate(files)]
    plan = tmp_path_factory.mktemp("plan") / "plan.db"
    write_plan(plan, images, 10**6, Counter())
    keys = [key for one in read_plan(plan)[0] for key, _ in one.images()]
    assert len(set(keys)) == len(files)
    for key in keys:
        assert webdataset.tariterators.base_plus_ext(f"{key}.json") == (key, "json")


LONG = st.sampled_from(("k" * 101, "k" * 3000, "ключ/" + "ü" * 60))


@given(files=st.lists(paths | LONG, unique=True, min_size=1, max_size=5))
@settings(max_examples=50)
def test_any_key_and_bytes_survive_the_tar(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("tar") / "train-000000.tar"
    keys = [f"{number}{sample_key('train', name)[0]}" for number, name in enumerate(files)]
    written = {f"{key}.jpg": b"x" * (number * 511) for number, key in enumerate(keys)}
    with path.open("wb") as file:
        writer = ShardWriter(file, 0)
        for key, content in zip(keys, written.values(), strict=True):
            writer.add(key, content, "jpg", {}, {})
        index, rows = writer.finish(path.name)
    with tarfile.open(path) as tar:
        found = {one.name: tar.extractfile(one).read() for one in tar if one.name.endswith(".jpg")}
    assert found == written
    assert index.samples == len(rows) == len(files)
    content = path.read_bytes()
    places = zip(rows["offset"].tolist(), rows["bytes"].tolist(), strict=True)
    assert [content[start : start + size] for start, size in places] == list(written.values())


@given(
    name=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=100),
    size_bytes=st.integers(0, 2**32 - 1),
)
def test_headers_are_those_of_tarfile(name, size_bytes):
    member = tarfile.TarInfo(name)
    member.size = size_bytes
    assert tar_header(name, size_bytes) == member.tobuf(tarfile.USTAR_FORMAT)


def test_keys_are_percent_encoded_paths():
    assert sample_key("train", "cat/0001.jpg") == ("train/cat/0001", "jpg")
    assert sample_key("train", "v1.0/a.b.jpg") == ("train/v1%2E0/a%2Eb", "jpg")


@pytest.mark.filterwarnings("error::UserWarning")  # of NumPy, at names that are not Latin
def test_hundreds_of_labels_of_any_script_are_kept(tmp_path):
    names = [f"类别_{number}" for number in range(400)]
    (tmp_path / "l.csv").write_text(f"path,{','.join(names)}\na.png,{','.join(['1'] * 400)}\n")
    shard(write_files(tmp_path, {"a.png": encoded(0)}) / "l.csv", tmp_path / "set", runtime=CPU)
    split = open_shards(tmp_path / "set").split("train")
    assert split.read_labels(0) == dict.fromkeys(names, 0)


def test_labels_of_several_kinds_are_all_kept(tmp_path):
    files = {"a.png": encoded(0), "b.png": encoded(1)}
    write_files(tmp_path, files | {"l.csv": b"path,kind,age\na.png,cat,3\nb.png,dog,4\n"})
    shard(str(tmp_path / "l.csv"), tmp_path / "set", runtime=CPU)
    index = open_shards(tmp_path / "set").splits["train"]
    assert index.labels == {"age": ["3", "4"], "kind": ["cat", "dog"]}
    split = open_shards(tmp_path / "set").split("train")
    assert split.labels("kind").tolist() == split.labels("age").tolist() == [0, 1]
    assert split.read_labels(1) == {"kind": 1, "age": 1}
    with tarfile.open(tmp_path / "set" / "train-000000.tar") as tar:
        assert not [name for name in tar.getnames() if name.endswith(".cls")]  # which would it be?


@pytest.mark.parametrize(
    ("splits", "scored"),
    [
        (("train", "test", "val"), "val"),
        (("train", "test"), "test"),
        (("train", "holdout"), "holdout"),
        (("val", "test"), "test"),
        (("train", "evaluation", "val"), "evaluation"),
    ],
)
def test_the_split_to_score_on_is_val_else_test_else_the_only_other_one(tmp_path, splits, scored):
    folder = listed_set(tmp_path, splits)
    assert open_shards(folder).named_split("evaluation", train=splits[0]) == scored


def listed_set(tmp_path, splits, label="class"):
    """Two images a split."""
    rows = [f"path,split,{label}" if label else "path,split"]
    for number, split in enumerate(split for split in splits for _ in range(2)):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
        rows.append(f"{number}.png,{split}" + (f",{number % 2}" if label else ""))
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    shard(str(tmp_path / "list.csv"), tmp_path / "set", runtime=CPU)
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("splits", "label", "message"),
    [
        (("train",), "class", "has no split to score on: its splits are train alone"),
        (("train", "a", "b"), "class", "several beside train: a, b. Name one"),
        (("train", "val"), "", "images of train have no label 'class' (labels: none), so nothing"),
        (("train", "val"), "colour", "images of train have no label 'class' (labels: colour)"),
        (("other", "val"), "class", "has no split 'train'; its splits are other, val"),
        (("train", "test"), "class", ""),
    ],
)
def test_a_set_on_which_a_probe_could_not_end_is_refused_at_the_start(
    tmp_path, splits, label, message
):
    folder = listed_set(tmp_path, splits, label)
    words = ["shard", str(tmp_path / "list.csv"), str(folder), "--workers", "0"]
    words += ["--require-split", "train", "--require-split", "evaluation"]
    found = CliRunner().invoke(app, [*words, "--require-label", "class"])
    assert message in str(found.exception or "")
    assert isinstance(found.exception, IjepaError) == bool(message)
