"""Images in Parquet and Arrow tables: the images, labels and splits of any other source."""

import json
import sys

import numpy as np
import pytest
from pictures import bytes_of, encoded, read, refused, write_files, write_tar
from runs import CPU

from ijepa.config import ExtractConfig, Runtime, ShardConfig
from ijepa.data.decode import decode_rgb
from ijepa.data.shards import open_shards
from ijepa.data.sources import tables
from ijepa.data.sources.kinds import open_source
from ijepa.data.sources.tables import RowReader, in_table
from ijepa.errors import IjepaError
from ijepa.extract import extract
from ijepa.features.store import open_features
from ijepa.shard import shard

pa = pytest.importorskip("pyarrow")  # of extras parquet and dev
pq = pytest.importorskip("pyarrow.parquet")  # likewise

NAMES = ["cat", "dog"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def a_table(images, labels=(), names=NAMES, **more):
    """A table with the schema's metadata that `datasets` writes."""
    features = {"image": {"_type": "Image"}, "caption": {"dtype": "string", "_type": "Value"}}
    columns = {"image": pa.array(images, IMAGE), "caption": ["a"] * len(images), **more}
    if labels:
        features["label"] = {"_type": "ClassLabel", "names": names}
        columns["label"] = pa.array(labels, pa.int64())
    notes = json.dumps({"info": {"features": features}})
    return pa.table(columns).replace_schema_metadata({"huggingface": notes})


def row(seed, path=None):
    return {"bytes": encoded(seed), "path": path}


def write_parquet(path, table, rows=3, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows, **options)
    return path


def save_to_disk(folder, table, split=None, rows=3, **options):
    """What `Dataset.save_to_disk` writes, and a file that it would cache beside it."""
    folder.mkdir(parents=True)
    for name in ("data-00000-of-00001.arrow", "cache-1234.arrow"):
        written = pa.ipc.IpcWriteOptions(**options)
        path = str(folder / name)
        with pa.ipc.new_stream(path, table.schema, options=written) as stream:
            stream.write_table(table, max_chunksize=rows)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def content(item):
    return RowReader(None).read(item.file, item.offset) if in_table(item) else bytes_of(item)


# What is read


def every_kind(folder):
    """The same images and labels, as each kind of source has them."""
    splits = {"train": range(10), "val": range(10, 16)}
    found = {
        split: [(encoded(seed), seed % 2, f"{seed:02d}") for seed in seeds]
        for split, seeds in splits.items()
    }
    files, samples = {}, {}
    for split, images in found.items():
        for image, label, name in images:
            files[f"{split}/{NAMES[label]}/{name}.png"] = image
            samples |= {f"{split}/{name}.png": image, f"{split}/{name}.cls": b"%d" % label}
        rows = [{"bytes": image, "path": f"{name}.png"} for image, _, name in images]
        table = a_table(rows, [label for _, label, _ in images])
        name = "validation" if split == "val" else split
        write_parquet(folder / f"hub/data/{name}-00000-of-00001-0a1b.parquet", table)
        save_to_disk(folder / "saved" / name, table)
    (folder / "saved/dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    write_files(folder / "folder", files)
    write_tar(folder / "folder.tar", files)
    write_tar(folder / "webdataset.tar", samples)
    return "folder", "folder.tar", "webdataset.tar", "hub", "saved"


def test_the_same_images_have_the_same_labels_and_features_from_any_kind_of_source(tmp_path):
    known, features = [], []
    for name in every_kind(tmp_path):
        out = tmp_path / "sets" / name
        shard(tmp_path / name, out, ShardConfig(shard_bytes=20_000), CPU)
        for split in ("train", "val"):
            reader = open_shards(out).split(split)
            samples = [reader.read_sample(number) for number in range(len(reader))]
            known.append({sample.image: sample.labels["class"] for sample in samples})
        config = ExtractConfig(encoder="pixels", image_px=8, split="val", dtype="float32")
        extract(out, tmp_path / "f.h5", config, CPU)
        with open_features(tmp_path / "f.h5") as file:
            rows = zip(samples, file.numpy().tolist(), strict=True)
            features.append({sample.image: numbers for sample, numbers in rows})
    assert [len(one) for one in known[:2]] == [10, 6]
    assert known[2:] == known[:2] * 4
    assert len(features[0]) == 6
    assert features[1:] == features[:1] * 4


LAYOUTS = [
    (["data/train-00000-of-00001.parquet", "data/dev-00000-of-00001.parquet"], ["train", "val"]),
    (["train/0000.parquet", "test/0000.parquet"], ["train", "test"]),
    (["plain/train/0000.parquet", "plain/test/0001.parquet"], ["train", "test"]),
    (["fold1-00000-of-00001.parquet", "fold2-00000-of-00001.parquet"], ["fold1", "fold2"]),
    (["train.parquet", "validation.parquet"], ["train", "val"]),
    (["0000.parquet", "0001.parquet"], ["train", "train"]),
    (["plain/train-00000-of-00002.parquet", "plain/train-00001-of-00002.parquet"], ["train"] * 2),
]


@pytest.mark.parametrize(("paths", "splits"), LAYOUTS)
def test_names_of_files_and_folders_tell_the_splits(tmp_path, paths, splits):
    for seed, path in enumerate(paths):
        write_parquet(tmp_path / "hub" / path, a_table([row(seed)]))
    _, items = read(tmp_path / "hub", tmp_path / "work")
    assert {content(item): item.split for item in items} == {
        encoded(seed): split for seed, split in enumerate(splits)
    }


def test_one_file_is_read_and_some_with_braces_and_tables_beside_loose_images(tmp_path):
    for seed in range(3):
        write_parquet(tmp_path / f"d/train-{seed}.parquet", a_table([row(seed)]))
    write_files(tmp_path / "d", {"assets/logo.png": encoded(9)})
    sources = {"train-1.parquet": [1], "train-{0..1}.parquet": [0, 1]}
    for name, seeds in sources.items():
        _, items = read(tmp_path / "d" / name, tmp_path / f"w{len(seeds)}")
        assert [content(item) for item in items] == [encoded(seed) for seed in seeds]
    assert len(read(f"parquet:{tmp_path / 'd'}", tmp_path / "w3")[1]) == 3
    refused("There is no data set at", tmp_path / "d/train-{0..5}.parquet", tmp_path / "w4")


@pytest.mark.parametrize("saved", [False, True])
def test_classes_keep_the_numbers_of_the_schema_and_other_labels_are_found_by_name(tmp_path, saved):
    more = {
        "fine_label": ["b", "a", None, "b"],
        "is_old_label": [True, None, False, True],
        "width": [1, 2, 3, 4],
    }
    table = a_table([row(n) for n in range(4)], [2, -1, None, 0], ["x", "y", "z"], **more)
    path = write_parquet(tmp_path / "t.parquet", table)
    path = save_to_disk(tmp_path / "saved", table, "test") if saved else path
    splits, items = read(path, tmp_path / "work")
    assert splits["train"] == {
        "class": ["x", "y", "z"],
        "fine_label": ["a", "b"],
        "is_old_label": ["false", "true"],
    }
    assert [tuple(item.labels[label] for label in splits["train"]) for item in items] == [
        (2, 1, 1), (-1, 0, -1), (-1, -1, 0), (0, 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.binary())])]
)
def test_a_column_of_bytes_without_paths_is_one_of_images(tmp_path, kind):
    images = [encoded(0), None, encoded(2)]
    images = [{"bytes": one} for one in images] if pa.types.is_struct(kind) else images
    table = pa.table({"img": pa.array(images, kind), "labels": [5, 6, 7]})
    for source in (
        write_parquet(tmp_path / "t.parquet", table),
        save_to_disk(tmp_path / "s", table),
    ):
        splits, items = read(source, tmp_path / f"work-{source.name}")
        assert [content(item) for item in items] == [encoded(0), encoded(2)]
        assert [splits["train"]["class"][item.labels["class"]] for item in items] == ["5", "7"]


def test_images_that_a_row_only_names_are_read_beside_the_table(tmp_path):
    write_files(tmp_path, {"pictures/a.png": encoded(1)})
    named = {"bytes": None, "path": "pictures/a.png"}
    empty = {"bytes": None, "path": None}
    for source in (
        write_parquet(tmp_path / "t.parquet", a_table([row(0), named, empty, row(3, "x/b.png")])),
        save_to_disk(tmp_path / "s", a_table([row(0), {**named, "path": "../pictures/a.png"}])),
    ):
        _, items = read(source, tmp_path / f"work-{source.name}")
        assert [content(item) for item in items][:2] == [encoded(0), encoded(1)]
        assert items[1].name == "00000001/a.png"
        before = open_source(f"parquet:{source.parent}").digest()
        (tmp_path / "pictures" / "a.png").touch()
        assert open_source(f"parquet:{source.parent}").digest() != before
    lost = write_parquet(tmp_path / "l.parquet", a_table([{"bytes": None, "path": "b.png"}]))
    config = ShardConfig(max_bad=1)
    with pytest.raises(IjepaError, match=r"row 0: the row has no bytes, and there is no .*b\.png"):
        shard(lost, tmp_path / "out", runtime=CPU)
    both = write_parquet(
        tmp_path / "m.parquet", a_table([row(0), {"bytes": None, "path": "b.png"}])
    )
    assert shard(both, tmp_path / "out", config, CPU).bad == 1


def test_maps_of_rows_are_named_by_their_keys_and_asked_for_by_what_there_is(tmp_path):
    source = write_parquet(tmp_path / "one.parquet", a_table([row(0), row(1)]))
    write_files(tmp_path / "masks", {"one.png": encoded(0)})
    how = {"runtime": CPU, "dense": {"seg": tmp_path / "masks"}}
    with pytest.raises(IjepaError, match=r"row 0: there is no seg .*masks/00000000\.png"):
        shard(source, tmp_path / "out", ShardConfig(), **how)
    height, width = decode_rgb(encoded(0)).shape[:2]
    made = np.arange(2 * height * width, dtype=np.uint8).reshape(2, height, width) % 3
    for number, values in enumerate(made):
        np.save(tmp_path / f"masks/0000000{number}.npy", values)
    shard(source, tmp_path / "out", ShardConfig(), **how)
    split = open_shards(tmp_path / "out").split("train")
    np.testing.assert_array_equal([split.read_map(n, "seg") for n in range(2)], made)
    with pytest.raises(IjepaError, match="no dense label 'depth'; expected one of: seg"):
        split.read_map(0, "depth")


def test_a_folder_that_lacks_a_file_of_a_split_is_refused_but_one_may_be_named(tmp_path):
    for number in (0, 2):
        write_parquet(tmp_path / f"hub/data/train-0000{number}-of-00003.parquet", a_table([row(0)]))
    refused(
        r"hub lacks 1 of the 3 files of data/train, such as number 00001",
        tmp_path / "hub",
        tmp_path / "w",
    )
    assert len(read(tmp_path / "hub/data/train-00002-of-00003.parquet", tmp_path / "w1")[1]) == 1
    folder = save_to_disk(tmp_path / "s", a_table([row(n) for n in range(6)]))
    state = (folder / "state.json").read_text()
    for nothing in ("{}", '{"_data_files": null}', '{"_data_files": []}'):
        (tmp_path / "s/state.json").write_text(nothing)
        assert len(read(folder, tmp_path / "w3")[1]) == 12  # and what `datasets` cached
    (tmp_path / "s/state.json").write_text(state)
    max(folder.glob("*.arrow")).unlink()
    refused(r"state\.json names data-.*arrow, which is not beside it", folder, tmp_path / "w2")


def test_keys_and_bytes_of_shards_depend_on_the_rows_alone(tmp_path):
    images = [row(n, f"deep/{n}.png") for n in range(40)]
    whole = write_parquet(tmp_path / "from/whole/train.parquet", a_table(images), rows=40)
    small = write_parquet(
        tmp_path / "from/small/train.parquet", a_table(images), rows=1, compression="zstd"
    )
    config = ShardConfig(shard_bytes=20_000)
    found = []
    for name, source, options, workers in (
        ("a", whole, config, 1), ("b", small, config, 2),
        ("c", whole, config.model_copy(update={"shuffle": True}), 2),
        ("d", small, config.model_copy(update={"shuffle": True}), 1),
    ):  # fmt: skip
        made = shard(source, tmp_path / name, options, Runtime(workers=workers))
        assert made.shards > 3
        reader = open_shards(tmp_path / name).split("train")
        found.append([reader.read_sample(number) for number in range(40)])
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert sorted(found[0]) == sorted(found[2])
    assert found[0][7][:2] == ("train/00000007/7", encoded(7))
    assert {path.suffix for path in (tmp_path / "c").iterdir()} == {".tar", ".json", ".npy"}


def test_memory_holds_a_part_of_a_row_group_and_each_is_opened_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_OF_IMAGES", 4)
    opened, before = [], RowReader._open
    monkeypatch.setattr(RowReader, "_open", lambda *of: opened.append(of[-1]) or before(*of))
    image = {"bytes": bytes(range(256)) * 100, "path": None}
    peaks = []
    for groups in (2, 8):
        table = a_table([image] * 64 * groups)
        path = write_parquet(tmp_path / f"{groups}.parquet", table, 64, use_dictionary=False)
        del table
        _, items = read(path, tmp_path / f"work{groups}")
        reader, base, peak = RowReader(None), pa.total_allocated_bytes(), 0
        opened.clear()
        for item in items:
            assert len(reader.read(item.file, item.offset)) == 25_600
            peak = max(peak, pa.total_allocated_bytes() - base)
        assert opened == list(range(0, 64 * groups, 64))
        assert abs(items[0].size_bytes - 25_600) < 1_000
        peaks.append(peak)
    assert peaks[1] < 1.2 * peaks[0]


# What is refused


def test_a_column_is_chosen_where_several_hold_images(tmp_path):
    table = pa.table({"left": [encoded(0)], "right": [encoded(1)]})
    path = write_parquet(tmp_path / "t.parquet", table)
    refused(
        r"columns of images are left, right.*choose one of images with --member", path, tmp_path
    )
    with pytest.raises(IjepaError, match=r"columns of images are left, right"):
        shard(path, tmp_path / "out", ShardConfig(member="middle"), CPU)
    shard(path, tmp_path / "out", ShardConfig(member="right"), CPU)
    assert open_shards(tmp_path / "out").split("train").read_image(0) == encoded(1)


def test_tables_that_cannot_be_understood_are_refused_in_one_line(tmp_path, monkeypatch):
    good = a_table([row(0)], [0])
    whole = write_parquet(tmp_path / "whole.parquet", good).read_bytes()
    faults = {
        "cut.parquet": (whole[:200], "is not a whole parquet file"),
        "not.parquet": (b"<html>", "is not a whole parquet file"),
        "empty.parquet": (b"", "is not a whole parquet file"),
    }
    for name, (damaged, message) in faults.items():
        (tmp_path / name).write_bytes(damaged)
        refused(message, tmp_path / name, tmp_path / "work")
    for name, table, message in (
        ("none.parquet", pa.table({"text": ["a"]}), "columns of images are none, of text"),
        ("far.parquet", a_table([row(0)], [2]), "of class 2, but the schema names 2 classes"),
    ):
        refused(message, write_parquet(tmp_path / name, table), tmp_path / "work")
    for name in ("en", "de"):
        write_parquet(tmp_path / "sets" / name / "train-00000-of-00001.parquet", good)
    refused(r"several data sets \(de, en\); name one, such as .*/en", tmp_path / "sets", tmp_path)
    write_parquet(tmp_path / "two/train-0.parquet", good)
    write_parquet(tmp_path / "two/train-1.parquet", a_table([row(0)], [0], ["a", "b"]))
    refused("other columns or classes than", tmp_path / "two", tmp_path / "work2")
    packed = save_to_disk(tmp_path / "lz4", good, compression="lz4")
    refused("is not a whole arrow file", packed, tmp_path / "work3")
    cut = (
        save_to_disk(tmp_path / "cut", a_table([row(n) for n in range(9)]))
        / "data-00000-of-00001.arrow"
    )
    cut.write_bytes(cut.read_bytes()[:-700])
    refused("is not a whole arrow file", tmp_path / "cut", tmp_path / "work4")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(
        r"needs pyarrow; install it with pip install pyarrow",
        tmp_path / "two",
        tmp_path / "w5",
    )


def test_a_file_that_lost_rows_since_it_was_listed_is_one_line(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", a_table([row(n) for n in range(9)]))
    reader = RowReader(None)
    assert reader.read(str(path), 8)
    write_parquet(path, a_table([row(n) for n in range(4)]))
    with pytest.raises(IjepaError, match=r"t\.parquet has no row 8 any more"):
        RowReader(None).read(str(path), 8)


def test_a_file_damaged_within_stops_the_run_and_leaves_nothing_behind(tmp_path):
    table = a_table([row(n) for n in range(9)])
    path = write_parquet(tmp_path / "t.parquet", table, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    start = content.index(encoded(4)) - 60
    content[start : start + 60] = bytes(60)  # the header of a page
    path.write_bytes(content)
    with pytest.raises(IjepaError, match=r"t\.parquet is not a whole parquet file"):
        shard(path, tmp_path / "out", ShardConfig(max_bad=9), CPU)
    assert not (tmp_path / "out").exists()
