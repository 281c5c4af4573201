"""Every source lists the images that are there, with the labels that their places tell."""

import bisect
import csv
import gzip
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import bytes_of, class_folders, encoded, read, refused, write_files, write_tar

from ijepa.data.decode import decode_rgb
from ijepa.data.sources import layouts
from ijepa.data.sources.items import Request
from ijepa.data.sources.kinds import KINDS, open_source
from ijepa.data.sources.names import split_folders
from ijepa.errors import IjepaError

PICTURE = encoded(0)


def facts(items):
    return sorted((item.split, item.name, item.path, dict(item.labels)) for item in items)


# Folders and archives


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"])
def test_an_archive_reads_as_the_folder_that_it_packs(tmp_path, suffix):
    files = class_folders()
    folder = write_files(tmp_path / "images", files)
    mode = {"tar": "w", "tgz": "w:gz"}.get(suffix[1:], f"w:{suffix.rpartition('.')[2]}")
    archive = write_tar(tmp_path / f"images{suffix}", files, mode)
    splits, items = read(folder, tmp_path / "a")
    splits_packed, items_packed = read(archive, tmp_path / "b")
    assert splits == splits_packed
    assert facts(items) == facts(items_packed)
    assert {item.path: bytes_of(item) for item in items_packed} == files


USUAL_NAMES = (
    {"Training": "train", "Test": "test"},
    {"TRAIN": "train", "VALIDATION": "val"},
    {"train_set": "train", "test_set": "test"},
    {"seg_train/seg_train": "train", "seg_test/seg_test": "test"},
    {"train.X1": "train", "train.X2": "train", "val.X": "val"},
    {"train2017": "train", "val2017": "val"},
    {"val": "val", "dev": "dev"},
    {"wrapper/Train Images": "train", "wrapper/Test Images": "test"},
)


@pytest.mark.parametrize(
    ("paths", "asked", "found"),
    [
        *(  # folders are splits by their usual names
            (
                [f"{folder}/{name}/1.png" for folder in folders for name in ("apple", "pear")], [],
                [(folders[folder], f"{name}/1.png", number)
                 for folder in sorted(folders) for number, name in enumerate(("apple", "pear"))],
            )
            for folders in USUAL_NAMES
        ),
        (  # classes are numbered in sorted order over all splits
            ["train/b/1.png", "train/c/1.png", "val/a/1.png", "val/c/1.png"], ["val"],
            [("val", "a/1.png", 0), ("val", "c/1.png", 2)],
        ),
        (["b.png", "a.jpg"], [], [("train", "a.jpg", None), ("train", "b.png", None)]),
        (["test/b.png", "test/a.jpg"], [], [("test", "a.jpg", None), ("test", "b.png", None)]),
        (  # one folder around everything is taken off
            ["set/train/cat/1.png", "set/val/dog/1.png"], [],
            [("train", "cat/1.png", 0), ("val", "dog/1.png", 1)],
        ),
        (  # deeper folders belong to their class
            ["a/x/y/1.png", "b/1.png"], [], [("train", "a/x/y/1.png", 0), ("train", "b/1.png", 1)]
        ),
        # a folder named on the command line is a split, whatever its name
        (["fold1/a/1.png", "fold2/a/1.png"], ["fold2"], [("fold2", "a/1.png", 0)]),
        *(  # and a split may be asked for by any of its names
            (["Training/a/1.png", "Test/a/1.png", "x/a/1.png"], [name], [("test", "a/1.png", 0)])
            for name in ("test", "Test", "testing")
        ),
        (  # a class may be called as a split is
            ["steam_train/1.png", "train/1.png"], [],
            [("train", "steam_train/1.png", 0), ("train", "train/1.png", 1)],
        ),
        (  # a class has one name however a file system writes it
            ["train/Cafe\u0301/1.png", "val/Caf\u00e9/2.png"], [],
            [("train", "Cafe\u0301/1.png", 0), ("val", "Caf\u00e9/2.png", 0)],
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("pack", [write_tar, write_files])
def test_folders_tell_splits_and_classes(tmp_path, pack, paths, asked, found):
    source = pack(tmp_path / "i.tar", dict.fromkeys(sorted(paths), PICTURE))
    _, items = read(source, tmp_path / "work", *asked)
    assert [(item.split, item.name, item.labels.get("class")) for item in items] == found


def test_links_to_folders_and_files_are_followed_but_never_in_circles(tmp_path):
    folder = write_files(tmp_path / "i", {"a/1.png": PICTURE})
    elsewhere = write_files(tmp_path / "b", {"1.png": PICTURE})
    (folder / "b").symlink_to(elsewhere)
    (folder / "a" / "2.png").symlink_to(elsewhere / "1.png")
    _, items = read(folder, tmp_path / "work")
    assert [item.name for item in items] == ["a/1.png", "a/2.png", "b/1.png"]
    (elsewhere / "back").symlink_to(elsewhere)
    refused("folder that holds it", folder, tmp_path / "again")


def test_the_digest_follows_files_but_not_where_they_lie(tmp_path):
    folder = write_files(tmp_path / "images", class_folders(1))
    before = open_source(str(folder)).digest()
    folder.rename(tmp_path / "moved")
    assert open_source(str(tmp_path / "moved")).digest() == before
    (tmp_path / "moved" / "train" / "cat" / "0000.png").write_bytes(b"other")
    assert open_source(str(tmp_path / "moved")).digest() != before


def test_the_digest_tells_the_kind_that_was_asked_for_and_every_file_that_it_could_read(tmp_path):
    folder = write_files(tmp_path / "images", class_folders(1))
    asked = [str(folder), *(f"{kind}:{folder}" for kind in ("imagenet22k", "webdataset", "clevr"))]
    asked += [f"imagenet:{folder}", f"ade20k:{folder}"]
    before = [open_source(one).digest() for one in asked]
    assert len(set(before)) == len(asked)
    write_files(folder, {"classes.csv": b"name"})  # which these two kinds could read
    after = [open_source(one).digest() for one in asked]
    assert [one for one, old, new in zip(asked, before, after, strict=True) if old != new] == (
        asked[-2:]
    )


def test_a_name_of_many_digits_is_told_from_a_split_at_once():
    names = ["train_" + 64 * "0", f"train_{64 * '0'}_a", f"val{64 * 'x'}!"]
    names += [f"train{32 * '_part'}_!"]
    assert split_folders(names) == {names[0]: "train"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no image"),
        ({"notes.txt": b""}, "holds no image"),
        ({"a/1.png": b"", "2.png": b""}, "beside them"),
        ({"train/a/1.png": b"", "extra/a/1.png": b""}, "look like splits, extra do"),
    ],
)
def test_a_folder_that_cannot_be_understood_is_refused(tmp_path, files, message):
    folder = write_files(tmp_path / "images", files)
    folder.mkdir(exist_ok=True)
    refused(message, folder, tmp_path / "work")


def test_what_is_not_there_is_answered_with_what_there_is(tmp_path):
    folder = write_files(tmp_path / "images", class_folders(1))
    refused("no split 'test'; its splits are train, val", folder, tmp_path / "work", "test")
    with pytest.raises(IjepaError, match=", ".join(sorted(KINDS))):
        open_source("mnist:folder")
    for text in ("nowhere", "", "cifar10:nowhere"):
        with pytest.raises(IjepaError, match="no data set at"):
            open_source(text)


@given(cut=st.floats(0, 1, exclude_max=True), packed=st.booleans())
def test_an_archive_cut_short_is_never_taken_for_a_small_one(tmp_path_factory, cut, packed):
    folder = tmp_path_factory.mktemp("cut")
    whole = write_tar(folder / "whole.tar", class_folders(2)).read_bytes()
    content = gzip.compress(whole) if packed else whole.rstrip(b"\0")
    path = folder / ("part.tar.gz" if packed else "part.tar")
    path.write_bytes(content[: int(cut * len(content))])
    refused(r"not a whole archive|holds no image", path, folder / "work")


def test_a_damaged_header_is_not_the_end_and_a_page_is_no_archive(tmp_path):
    path = write_tar(tmp_path / "i.tar", class_folders(2))
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[third + 150] ^= 1  # its checksum
    path.write_bytes(content)
    (tmp_path / "i.tar.gz").write_bytes(b"<html>not found</html>")
    for number, damaged in enumerate((path, tmp_path / "i.tar.gz")):
        refused("not a whole archive", damaged, tmp_path / f"work{number}")


# Lists


def write_list(path, text):
    names = ("a.png", "b.png", "c/d.png", "e.png")
    write_files(path.parent, {name: encoded(number) for number, name in enumerate(names)})
    path.write_text(text)
    return path


def test_a_list_numbers_integers_and_texts_in_ascending_order_from_0_on(tmp_path):
    text = "path,split,kind,age\na.png,train,tabby,3\nb.png,val,persian,41\nc/d.png,train,persian,0"
    splits, items = read(write_list(tmp_path / "l.csv", text), tmp_path / "work")
    assert splits["train"]["kind"] == ["persian", "tabby"]
    assert splits["train"]["age"] == ["0", "3", "41"]
    assert [(item.split, item.name, item.labels) for item in items] == [
        ("train", "a.png", {"kind": 1, "age": 1}),
        ("val", "b.png", {"kind": 0, "age": 2}),
        ("train", "c/d.png", {"kind": 0, "age": 0}),
    ]


def test_json_lines_say_the_same_as_csv_and_paths_alone_have_no_labels(tmp_path):
    text = "path,kind,age\na.png,tabby,3\nb.png,persian,41\n"
    found = read(write_list(tmp_path / "l.csv", text), tmp_path / "a")
    lines = [json.dumps(row | {"age": int(row["age"])}) for row in csv.DictReader(text.split())]
    assert read(write_list(tmp_path / "l.jsonl", "\n".join(lines)), tmp_path / "b") == found
    text = '\ufeffpath\r\n"a.png"\r\nb.png\r\n'
    splits, items = read(write_list(tmp_path / "l.csv", text), tmp_path / "c")
    assert splits == {"train": {}}
    assert [item.labels for item in items] == [{}, {}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "file,label\na.png,1\n", "no column 'path'; its columns are file, label"),
        ("l.csv", "", "no column 'path'"),
        ("l.csv", "path,label\n", "lists no image"),
        ("l.csv", "path,label\na.png\n", "line 2: 1 values for 2 columns"),
        ("l.csv", "path,label\na.png,1,2\n", "line 2: 3 values for 2 columns"),
        ("l.csv", "path,label,label\na.png,1,2\n", "needs a name of its own"),
        ("l.csv", "path,\na.png,1\n", "has a label called ''"),
        ("l.csv", "path,split\na.png,../x\n", "line 2, names a split"),
        ("l.csv", "path\nz.png\n", "line 2: there is no image z.png"),
        ("l.jsonl", '{"path": "a.png", "split": null}\n', "line 1, names a split ''"),
        ("l.jsonl", '{"label": 1}\n', 'line 1: expected an object with "path"'),
        ("l.jsonl", '{"path": "a.png"\n', "cannot be read as a UTF-8 list of images"),
        ("l.jsonl", '{"path": 3}\n', "line 1: 3 is not a path"),
        ("l.jsonl", '{"path": "a.png", "x": 0.5}\n', "0.5 is not a label"),
    ],
)
def test_a_list_with_a_fault_is_refused_with_its_line(tmp_path, name, text, message):
    path = write_list(tmp_path / name, text)
    refused(message, path, tmp_path / "work")


@pytest.mark.parametrize("again", ["a.png", "c/../a.png", "{here}/a.png"])
def test_an_image_listed_twice_is_refused_however_spelled_but_may_be_in_two_splits(tmp_path, again):
    again = again.format(here=tmp_path)
    path = write_list(tmp_path / "l.csv", f"path,kind\na.png,cat\nb.png,dog\n{again},dog\n")
    refused(f"l.csv: {again} is listed twice", path, tmp_path / "work")
    path = write_list(tmp_path / "l.csv", f"path,split\na.png,train\n{again},val\n")
    assert len(read(path, tmp_path / "work")[1]) == 2


def test_a_column_of_captions_is_no_label(tmp_path, monkeypatch):
    monkeypatch.setattr("ijepa.data.sources.items.MAX_CLASSES", 1)
    path = write_list(tmp_path / "l.csv", "path,caption\na.png,one\nb.png,two\n")
    refused("caption has more than 1 different values", path, tmp_path / "work")


# CIFAR


def write_cifar10(root):
    """Two images in each of the published files; their pixels, as (12, 32, 32, 3)."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    files = {"batches.meta": {"label_names": ["airplane", "automobile", "bird"]}}
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows = pixels[2 * number : 2 * number + 2].transpose(0, 3, 1, 2).reshape(2, 3072)
        files[name] = {"data": rows, "labels": [number % 3, 2]}
    packed = {f"cifar-10-batches-py/{name}": pickle.dumps(body) for name, body in files.items()}
    write_files(root, packed)
    return pixels, packed


@pytest.mark.parametrize("below", ["", "/cifar-10-batches-py"])
def test_cifar10_keeps_every_pixel_and_the_published_order(tmp_path, monkeypatch, below):
    pixels, _ = write_cifar10(tmp_path / "cifar")
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    splits, items = read(f"cifar10:{tmp_path / 'cifar'}{below}", tmp_path / "work")
    assert splits["test"]["class"] == ["airplane", "automobile", "bird"]
    assert [item.split for item in items] == ["train"] * 10 + ["test"] * 2
    np.testing.assert_array_equal([decode_rgb(bytes_of(item)) for item in items], pixels)
    assert [item.labels["class"] for item in items] == [0, 2, 1, 2, 2, 2, 0, 2, 1, 2, 2, 2]


def test_cifars_files_that_are_not_the_published_ones_are_refused_and_never_unpickled(tmp_path):
    write_cifar10(tmp_path / "cifar")
    refused("finds no CIFAR10 .*corrupted", f"cifar10:{tmp_path / 'cifar'}", tmp_path / "work")


def test_cifar_as_class_folders_or_as_their_archive_is_taken(tmp_path):
    folder = write_files(tmp_path / "images", class_folders())
    assert read(f"cifar10:{folder}", tmp_path / "a") == read(folder, tmp_path / "b")
    archive = write_tar(tmp_path / "images.tar.gz", class_folders(), "w:gz")
    assert len(read(f"cifar100:{archive}", tmp_path / "c")[1]) == len(class_folders())


@pytest.mark.parametrize("kind", ["", "cifar10:"])
def test_cifars_packed_files_say_how_to_unpack_and_to_name_them(tmp_path, kind):
    _, files = write_cifar10(tmp_path / "cifar")
    archive = write_tar(tmp_path / "cifar-10-python.tar.gz", files, "w:gz")
    refused(rf"unpack it \(tar -xf {archive}\) and name cifar10:PATH", f"{kind}{archive}", tmp_path)
    refused("own files; name cifar10:PATH", tmp_path / "cifar", tmp_path / "work")


# CLEVR


def thing(depth, colour="red", shape="cube"):
    return {"color": colour, "shape": shape, "pixel_coords": [10, 20, depth]}


def scene(image, *depths):
    return {"image_filename": image, "objects": [thing(depth) for depth in depths]}


def write_clevr(root, scenes, images, split="train"):
    files = {f"images/{split}/{name}": PICTURE for name in images}
    files[f"scenes/CLEVR_{split}_scenes.json"] = json.dumps({"info": {}, "scenes": scenes}).encode()
    return write_files(root, files)


@given(
    depths=st.lists(
        st.floats(0.1, 40) | st.sampled_from([8, 8.5, 9, 9.5, 10]), min_size=3, max_size=10
    )
)
def test_clevr_labels_are_what_task_adaptation_makes(depths):
    nearest = min(depths)
    thresholds = [0, 8, 8.5, 9, 9.5, 10, 100]
    labels, depth = layouts.label_scene(scene("x", *depths))
    assert labels["count"] == len(depths) - 3
    assert labels["dist"] == max(i for i, bound in enumerate(thresholds) if bound < nearest)
    assert labels["dist"] == bisect.bisect_left([8, 8.5, 9, 9.5, 10, 100], nearest)
    assert depth == nearest
    things = [thing(9.0, "red", "cube"), thing(8.7, "cyan", "sphere"), thing(12.0)]
    labels, _ = layouts.label_scene({"objects": things})
    assert layouts.CLASSES[labels["class"]] == "cyan sphere"
    assert len(set(layouts.CLASSES)) == 24


def test_scenes_in_another_order_than_images_still_find_them_and_a_split_may_have_none(tmp_path):
    names = [f"{number}ü.png" for number in range(5)]
    scenes = [scene(name, 9, 9, *[9] * number) for number, name in enumerate(names, start=1)]
    folder = write_clevr(tmp_path / "clevr", scenes[::-1], names)
    write_files(folder, {"images/test/b.png": PICTURE})
    splits, items = read(folder, tmp_path / "work")
    assert [(item.name, item.labels.get("count")) for item in items] == [
        ("b.png", None), *zip(names, range(5), strict=True),
    ]  # fmt: skip
    assert (splits["test"], len(splits["train"]["dist"])) == ({}, 6)
    assert read(f"clevr:{folder}", tmp_path / "work") == (splits, items)


@pytest.mark.parametrize(
    ("scenes", "images", "message"),
    [
        ([scene("a.png", 9, 9, 9)], ["a.png", "b.png"], "b.png has no scene"),
        ([scene("a.png", 9, 9, 9), scene("b.png", 9, 9, 9)], ["a.png"], "1 scenes of .* no image"),
        ([scene("a.png", 9)], ["a.png"], "holds no list of CLEVR's scenes"),
        ([{"image_filename": "a.png"}], ["a.png"], "holds no list of CLEVR's scenes"),
    ],
)
def test_scenes_and_images_must_fit_together(tmp_path, scenes, images, message):
    folder = write_clevr(tmp_path / "clevr", scenes, images)
    refused(message, folder, tmp_path / "work")
    path = folder / "scenes" / "CLEVR_train_scenes.json"
    path.write_bytes(path.read_bytes()[:-5])
    refused("cut short", folder, tmp_path / "work")


def test_real_clevr_has_the_labels_of_its_scenes(tmp_path, test_data):
    splits, items = read(test_data / "clevr-mini.tar", tmp_path / "work")
    expected = {}
    with tarfile.open(test_data / "clevr-mini.tar") as archive:
        for split in splits:
            body = json.load(archive.extractfile(f"scenes/CLEVR_{split}_scenes.json"))
            for one in body["scenes"]:
                nearest = min(each["pixel_coords"][2] for each in one["objects"])
                distance = bisect.bisect_left([8, 8.5, 9, 9.5, 10, 100], nearest)
                expected[one["image_filename"]] = (len(one["objects"]) - 3, distance)
    assert {i.name: (i.labels["count"], i.labels["dist"]) for i in items} == expected
    assert len({value[0] for value in expected.values()}) == 8


def test_folders_of_equal_class_folders_are_never_taken_for_classes_in_silence(tmp_path):
    names = [f"{fold}/{name}/1.png" for fold in ("first", "second") for name in ("a", "b")]
    folder = write_files(tmp_path / "i", dict.fromkeys(names, PICTURE))
    refused(r"--split first --split second; .* --folders-are-classes", folder, tmp_path / "work")
    refused("not laid out as CLEVR", f"clevr:{folder}", tmp_path / "work")
    contents = open_source(str(folder), folders_are_classes=True).read(Request(tmp_path))
    assert contents.splits["train"]["class"] == ["first", "second"]
    splits, _ = read(folder, tmp_path / "work", "first", "second")
    assert splits["first"]["class"] == ["a", "b"]
    with pytest.raises(IjepaError, match="for folders and archives"):
        open_source("scenes:train=1", folders_are_classes=True)


# What does not come along


def left_out(source, work, *splits):
    work.mkdir(exist_ok=True)
    contents = open_source(str(source)).read(Request(work, splits))
    list(contents.items)
    return +contents.left_out


@pytest.mark.parametrize("pack", [write_tar, write_files])
def test_files_that_do_not_come_along_are_counted_by_kind_but_not_what_systems_leave(
    tmp_path, pack
):
    files = class_folders(1) | {
        "train/cat/0.xml": b"", "notes": b"", "train/cat/b.HEIC": b"", "train/cat/._0000.png": b"",
        "__MACOSX/train/cat/0000.png": b"", ".cache/x.png": b"", os.fsdecode(b"x.\xff"): b"",
    }  # fmt: skip
    source = pack(tmp_path / "i.tar", files)
    kinds = {".xml files": 1, ".heic files": 1, "files without suffix": 1, r".\udcff files": 1}
    assert left_out(source, tmp_path / "work") == kinds
    unnamed = "images of the split val, which --split does not name"
    assert left_out(source, tmp_path / "work", "train") == kinds | {unnamed: 2}
    assert len(read(source, tmp_path / "work")[1]) == 4


def test_images_that_no_list_names_are_counted_below_the_folder_of_those_that_it_names(tmp_path):
    inside = ["d/a/1.png", "d/b/2.png", "d/b/3.png", "d/c/4.png", "d/.5.png", "d/a/6.txt"]
    folder = write_files(tmp_path / "x", dict.fromkeys([*inside, "other/7.png"], PICTURE))
    (folder / "l.csv").write_text("path\nd/a/1.png\n./d/b/../b/2.png\n")
    unnamed = {"images that no list of the data set names": 2}
    assert left_out(folder / "l.csv", tmp_path / "work") == unnamed
    write_files(tmp_path / "y", {"l.jsonl": b'{"path": "../x/d/b/2.png"}\n', "8.png": PICTURE})
    assert left_out(tmp_path / "y" / "l.jsonl", tmp_path / "work") == {}


def test_links_within_an_archive_are_counted_and_a_second_archive_is_not_passed_over(tmp_path):
    path = write_tar(tmp_path / "i.tar", class_folders(1))
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("train/cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0000.png"
        archive.addfile(link)
    assert left_out(path, tmp_path / "work") == {"links within an archive": 1}
    path.write_bytes(2 * path.read_bytes())
    refused(r"something follows the end mark.*--ignore-zeros", path, tmp_path / "work2")


# Several archives as one data set


def test_an_archive_of_class_archives_reads_as_class_folders(tmp_path):
    classes = {}
    for number, name in enumerate(["n01440764", "n01443537"]):
        members = {f"{name}_{number}.png": encoded(number)}
        classes[f"{name}.tar"] = write_tar(tmp_path / f"{name}.tar", members).read_bytes()
    for pack in (write_tar, write_files):
        work = tmp_path / pack.__name__
        splits, items = read(pack(tmp_path / f"{pack.__name__}.data.tar", classes), work)
        assert splits["train"]["class"] == ["n01440764", "n01443537"]
        assert [bytes_of(item) for item in items] == [encoded(0), encoded(1)]


def test_numbered_archives_are_parts_of_one_data_set(tmp_path):
    files, folder = class_folders(2), tmp_path / "set"
    folder.mkdir()
    for number, (name, content) in enumerate(files.items()):
        split, _, rest = name.partition("/")
        write_tar(folder / f"{split}-{number % 4:03d}.tar", {rest: content})
    splits, items = read(folder, tmp_path / "work")
    assert {item.path: bytes_of(item) for item in items} == files
    assert sorted(splits) == ["train", "val"]
    _, items = read(f"{folder}/train-{{000..003}}.tar", tmp_path / "work2")
    assert {f"train/{item.name}" for item in items} == {name for name in files if name[0] == "t"}
    with pytest.raises(IjepaError, match=r"no data set at .*train-004\.tar"):
        open_source(f"{folder}/train-{{000..004}}.tar")


@pytest.mark.parametrize("braces", ["{0..999999999}", "{0..9999}{0..9999}", "{0..3"])
def test_braces_that_never_end_are_refused(braces):
    with pytest.raises(IjepaError, match=r"more than 1,000,000|write braces as|no data set"):
        open_source(f"set-{braces}.tar")


def test_an_archive_cut_short_within_an_archive_is_refused(tmp_path):
    inner = write_tar(tmp_path / "a.tar", {"1.png": PICTURE, "2.png": PICTURE}).read_bytes()
    for cut in (700, 1200):
        path = write_tar(tmp_path / f"{cut}.tar", {"a.tar": inner[:cut], "b.tar": inner})
        refused("not a whole archive", path, tmp_path / f"work{cut}")


# WebDataset tars of others


def webdataset(labels):
    return {
        f"{number:04d}.{name}": content
        for number, (suffix, label) in enumerate(labels)
        for name, content in {"jpg": encoded(number, "jpg"), suffix: label, "txt": b"a"}.items()
    }


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([("cls", b"7"), ("cls", b"10\n"), ("cls", b"7")], ["7", "10"], [0, 1, 0]),
        ([("cls", b"dog"), ("cls", b"cat"), ("cls", b"")], ["cat", "dog"], [1, 0, -1]),
        ([("json", b'{"label": "dog"}'), ("json", b'{"class": "cat"}')], ["cat", "dog"], [1, 0]),
        ([("json", b'{"labels": {"class": 3}}'), ("json", b"[1]")], ["3"], [0, -1]),
        ([("cls", b"1"), ("json", b'{"label": null}')], ["1"], [0, -1]),
    ],
)
def test_a_labelled_webdataset_is_read_with_its_labels(tmp_path, labels, names, numbers):
    path = write_tar(tmp_path / "x.tar", webdataset(labels))
    splits, items = read(path, tmp_path / "work")
    assert splits["train"]["class"] == names
    assert [item.labels["class"] for item in items] == numbers
    assert left_out(path, tmp_path / "work")[".txt files"] == len(labels)
    folder = write_files(tmp_path / "x", webdataset(labels))
    assert read(f"webdataset:{folder}", tmp_path / "work2")[0] == splits


@pytest.mark.parametrize("other", [b"[3, 5]", b"null", b'{"labels": 3}', b"{", b'{"width": 4}'])
def test_other_json_beside_the_images_of_class_folders_is_left_out_and_counted(tmp_path, other):
    files = {"cat/1.jpg": encoded(0, "jpg"), "cat/1.json": other, "dog/2.jpg": encoded(1, "jpg")}
    path = write_tar(tmp_path / "x.tar", files)
    splits, _ = read(path, tmp_path / "work")
    assert splits["train"]["class"] == ["cat", "dog"]
    assert left_out(path, tmp_path / "work") == {".json files": 1}


def test_labels_without_meaning_are_refused_with_their_file(tmp_path):
    for number, (label, message) in enumerate([
        (b"{", "is not JSON"), (b'{"label": 0.5}', "0.5 is not a label"),
        (b'{"label": ' + b"9" * 5000 + b"}", "is not JSON"), (b"[" * 10**5, "is not JSON"),
        (b"\xff", "not UTF-8"),
        (b" " * 2**21, "bytes; a label has at most"), (b"{}", "holds no label"),
        (rb'{"labels": {"\udc80": 1}}', "has a label called"), (b'{"labels": {"": 1}}', "called"),
    ]):  # fmt: skip
        path = write_tar(tmp_path / f"{number}.tar", webdataset([("json", label)]))
        refused(message, f"webdataset:{path}", tmp_path / f"work{number}")


STEREO = {
    f"{number:04d}.{name}": content
    for number in range(2)
    for name, content in {
        "left.png": encoded(number),
        "right.png": encoded(9 - number),
        "cls": b"%d" % number,
        "fine.cls": b"f",
    }.items()
}


def test_a_member_chooses_an_image_of_samples_that_hold_several(tmp_path):
    path = write_tar(tmp_path / "x.tar", STEREO | {"0003.left.png": encoded(5)})
    message = (
        r"sample 0000.png holds several images \(left\.png, right\.png\); choose one with --member"
    )
    for prefix in ("", "webdataset:"):
        source = open_source(f"{prefix}{path}")
        for member, seeds in (("right.png", [9, 8]), ("LEFT.png", [0, 1, 5])):
            work = tmp_path / f"{prefix}{member}"
            work.mkdir()
            found = source.read(Request(work, member=member))
            items = list(found.items)
            assert [bytes_of(item) for item in items] == [encoded(seed) for seed in seeds]
            assert [item.name for item in items][:2] == ["0000.png", "0001.png"]
            assert found.splits["train"] == {"class": ["0", "1"], "fine": ["f"]}
        assert found.left_out[".png files"] == 2
        with pytest.raises(
            IjepaError, match=r"no sample with up\.png; samples have left\.png, rig"
        ):
            source.read(Request(work, member="up.png"))
        refused(message, f"{prefix}{path}", tmp_path / f"{prefix}work")
    folder = write_files(tmp_path / "folder", {"a/1.png": PICTURE})
    listing = tmp_path / "list.csv"
    listing.write_text("path\n")
    for source in (folder, listing, f"imagenet22k:{folder}", "scenes:train=1"):
        with pytest.raises(IjepaError, match="--member chooses an image of WebDataset samples"):
            open_source(str(source)).read(Request(work.parent, member="png"))


def test_samples_without_labels_are_read_where_a_member_is_chosen(tmp_path):
    files = {name: content for name, content in STEREO.items() if name.endswith("png")}
    path = write_tar(tmp_path / "x.tar", files)
    found = open_source(str(path)).read(Request(tmp_path, member="left.png"))
    assert (found.splits, len(list(found.items))) == ({"train": {}}, 2)


# Labels


def test_labels_that_are_not_known_and_far_apart_integers_are_numbered_from_0_on(tmp_path):
    text = "path,kind\na.png,Cafe\u0301\nb.png,Caf\u00e9\n"  # one name, written in two ways
    splits, _ = read(write_list(tmp_path / "m.csv", text), tmp_path / "c")
    assert splits["train"]["kind"] == ["Caf\u00e9"]
    text = "path,kind\na.png,-1\nb.png,70000\nc/d.png,1000000000\ne.png,\n"
    splits, items = read(write_list(tmp_path / "l.csv", text), tmp_path / "a")
    assert splits["train"]["kind"] == ["70000", "1000000000"]
    assert [item.labels["kind"] for item in items] == [-1, 0, 1, -1]
    lines = '{"path": "a.png", "kind": null}\n{"path": "b.png", "kind": -5}\n'
    splits, items = read(write_list(tmp_path / "l.jsonl", lines), tmp_path / "b")
    assert splits["train"]["kind"] == ["-5"]
    assert [item.labels["kind"] for item in items] == [-1, 0]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (("2", "10", "-5"), ["-5", "2", "10"]),
        (("01", "1", "10"), ["01", "1", "10"]),
        (("+1", "1", "2"), ["+1", "1", "2"]),
        (("02", "10", "01"), ["01", "02", "10"]),
        (("-0", "0", "7"), ["-0", "0", "7"]),
    ],
)
def test_two_spellings_of_an_integer_stay_two_classes(tmp_path, values, names):
    rows = zip(("a.png", "b.png", "c/d.png"), values, strict=True)
    text = "path,kind\n" + "".join(f"{path},{value}\n" for path, value in rows)
    splits, items = read(write_list(tmp_path / "l.csv", text), tmp_path / "work")
    assert splits["train"]["kind"] == names
    assert [names[item.labels["kind"]] for item in items] == list(values)
