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
from pictures import add_member, class_folders, encoded, write_files, write_tar

from ijepa.errors import IjepaError
from ijepa.progress import silent
from ijepa.sources import clevr
from ijepa.sources.kinds import KINDS, open_source

PICTURE = encoded(0)


def read(source, work, *splits):
    """Splits with their label names, and items."""
    work.mkdir(exist_ok=True)
    contents = open_source(str(source)).read(work, splits, 1, silent)
    return contents.splits, list(contents.items)


def bytes_of(item):
    with open(item.file, "rb") as file:  # noqa: PTH123  # a string, as sources give it
        return os.pread(file.fileno(), item.size_bytes, item.offset)


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


def test_classes_are_numbered_in_sorted_order_over_all_splits(tmp_path):
    names = ["train/b/1.png", "train/c/1.png", "val/a/1.png", "val/c/1.png"]
    folder = write_files(tmp_path / "images", dict.fromkeys(names, PICTURE))
    splits, items = read(folder, tmp_path / "work", "val")
    assert splits["val"]["class"].names == ["a", "b", "c"]
    assert [(item.name, item.labels["class"]) for item in items] == [("a/1.png", 0), ("c/1.png", 2)]


@pytest.mark.parametrize("names", [["b.png", "a.jpg"], ["test/b.png", "test/a.jpg"]])
def test_a_flat_folder_has_no_labels(tmp_path, names):
    folder = write_files(tmp_path / "images", dict.fromkeys(names, PICTURE))
    splits, items = read(folder, tmp_path / "work")
    assert [item.name for item in items] == ["a.jpg", "b.png"]
    assert all(item.labels == {} for item in items)
    assert list(splits.values()) == [{}]


def test_one_folder_around_everything_is_taken_off(tmp_path):
    files = {f"imagenette2/{name}": content for name, content in class_folders(1).items()}
    splits, items = read(write_tar(tmp_path / "i.tar", files), tmp_path / "work")
    assert sorted(splits) == ["train", "val"]
    assert items[0].name == "cat/0000.png"
    assert items[0].path == "imagenette2/train/cat/0000.png"


def test_what_systems_leave_behind_is_not_an_image(tmp_path):
    files = class_folders(1) | {
        "train/cat/._0000.png": b"finder",
        "__MACOSX/train/cat/0000.png": b"finder",
        ".cache/x.png": b"",
        "train/README.txt": b"",
    }
    folder = write_files(tmp_path / "images", files)
    archive = write_tar(tmp_path / "i.tar", files)
    for number, source in enumerate((folder, archive)):
        _, items = read(source, tmp_path / f"work{number}")
        assert len(items) == 4


def test_deeper_folders_belong_to_their_class(tmp_path):
    folder = write_files(tmp_path / "i", {"a/x/y/1.png": PICTURE, "b/1.png": PICTURE})
    _, items = read(folder, tmp_path / "work")
    assert [item.labels["class"] for item in items] == [0, 1]


def test_links_to_folders_and_files_are_followed_but_never_in_circles(tmp_path):
    folder = write_files(tmp_path / "i", {"a/1.png": PICTURE})
    elsewhere = write_files(tmp_path / "b", {"1.png": PICTURE})
    (folder / "b").symlink_to(elsewhere)
    (folder / "a" / "2.png").symlink_to(elsewhere / "1.png")
    _, items = read(folder, tmp_path / "work")
    assert [item.name for item in items] == ["a/1.png", "a/2.png", "b/1.png"]
    (elsewhere / "back").symlink_to(elsewhere)
    with pytest.raises(IjepaError, match="folder that holds it"):
        read(folder, tmp_path / "work")


def test_a_folder_named_on_the_command_line_is_a_split_whatever_its_name(tmp_path):
    files = {"fold1/a/1.png": PICTURE, "fold2/a/1.png": PICTURE}
    folder = write_files(tmp_path / "images", files)
    _, items = read(folder, tmp_path / "work", "fold2")
    assert [(item.split, item.name) for item in items] == [("fold2", "a/1.png")]


def test_the_digest_follows_files_but_not_where_they_lie(tmp_path):
    folder = write_files(tmp_path / "images", class_folders(1))
    before = open_source(str(folder)).digest()
    folder.rename(tmp_path / "moved")
    assert open_source(str(tmp_path / "moved")).digest() == before
    (tmp_path / "moved" / "train" / "cat" / "0000.png").write_bytes(b"other")
    assert open_source(str(tmp_path / "moved")).digest() != before


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
    with pytest.raises(IjepaError, match=message):
        read(folder, tmp_path / "work")


def test_an_unknown_split_is_answered_with_those_there_are(tmp_path):
    folder = write_files(tmp_path / "images", class_folders(1))
    with pytest.raises(IjepaError, match="no split 'test'; its splits are train, val"):
        read(folder, tmp_path / "work", "test")


@pytest.mark.parametrize("text", ["nowhere", "", "cifar10:nowhere"])
def test_a_missing_source_is_named(text):
    with pytest.raises(IjepaError, match="no data set at"):
        open_source(text)


def test_an_unknown_kind_is_answered_with_those_there_are():
    with pytest.raises(IjepaError, match=", ".join(sorted(KINDS))):
        open_source("mnist:folder")


@given(cut=st.floats(0, 1, exclude_max=True), packed=st.booleans())
def test_an_archive_cut_short_is_never_taken_for_a_small_one(tmp_path_factory, cut, packed):
    folder = tmp_path_factory.mktemp("cut")
    whole = write_tar(folder / "whole.tar", class_folders(2)).read_bytes()
    content = gzip.compress(whole) if packed else whole.rstrip(b"\0")
    path = folder / ("part.tar.gz" if packed else "part.tar")
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(IjepaError, match=r"not a whole archive|holds no image"):
        read(path, folder / "work")


def test_a_damaged_header_in_the_middle_is_not_the_end(tmp_path):
    path = write_tar(tmp_path / "i.tar", class_folders(2))
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[third + 150] ^= 1  # its checksum
    path.write_bytes(content)
    with pytest.raises(IjepaError, match="not a whole archive"):
        read(path, tmp_path / "work")


def test_something_else_called_tar_gz_is_refused(tmp_path):
    (tmp_path / "i.tar.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(IjepaError, match="not a whole archive"):
        read(tmp_path / "i.tar.gz", tmp_path / "work")


# Lists


def write_list(path, text):
    write_files(
        path.parent,
        {name: encoded(number) for number, name in enumerate(["a.png", "b.png", "c/d.png"])},
    )
    path.write_text(text)
    return path


def test_a_list_keeps_integers_and_numbers_texts_in_sorted_order(tmp_path):
    text = (
        "path,split,kind,age\na.png,train,tabby,3\nb.png,val,persian,41\nc/d.png,train,persian,0\n"
    )
    splits, items = read(write_list(tmp_path / "l.csv", text), tmp_path / "work")
    assert splits["train"]["kind"].names == ["persian", "tabby"]
    assert splits["train"]["age"] == (42, None)
    assert [(item.split, item.name, item.labels) for item in items] == [
        ("train", "a.png", {"kind": 1, "age": 3}),
        ("val", "b.png", {"kind": 0, "age": 41}),
        ("train", "c/d.png", {"kind": 0, "age": 0}),
    ]


def test_json_lines_say_the_same_as_csv(tmp_path):
    text = "path,kind,age\na.png,tabby,3\nb.png,persian,41\n"
    splits, items = read(write_list(tmp_path / "l.csv", text), tmp_path / "a")
    rows = csv.DictReader(text.splitlines())
    lines = [json.dumps({**row, "age": int(row["age"])}) for row in rows]
    assert read(write_list(tmp_path / "l.jsonl", "\n".join(lines)), tmp_path / "b") == (
        splits,
        items,
    )


def test_a_list_of_paths_alone_has_no_labels(tmp_path):
    text = '\ufeffpath\r\n"a.png"\r\nb.png\r\n'
    splits, items = read(write_list(tmp_path / "l.csv", text), tmp_path / "work")
    assert splits == {"train": {}}
    assert [item.labels for item in items] == [{}, {}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "file,label\na.png,1\n", "no column 'path'; its columns are file, label"),
        ("l.csv", "", "no column 'path'"),
        ("l.csv", "path,label\n", "lists no image"),
        ("l.csv", "path,label\na.png\n", "line 2: 1 values for 2 columns"),
        ("l.csv", "path,label\na.png,\n", "line 2, label: '' is not a label"),
        ("l.csv", "path,\na.png,1\n", "needs a name of its own"),
        ("l.csv", "path,split\na.png,../x\n", "line 2, names a split"),
        ("l.csv", "path\nz.png\n", "line 2: there is no image z.png"),
        ("l.jsonl", '{"label": 1}\n', 'line 1: expected an object with "path"'),
        ("l.jsonl", '{"path": "a.png"\n', "not a list of images"),
        ("l.jsonl", '{"path": 3}\n', "line 1: 3 is not a path"),
        ("l.jsonl", '{"path": "a.png", "x": 0.5}\n', "0.5 is not a label"),
        ("l.jsonl", '{"path": "a.png", "x": 1}\n{"path": "b.png"}\n', "line 2: labels are none"),
    ],
)
def test_a_list_with_a_fault_is_refused_with_its_line(tmp_path, name, text, message):
    path = write_list(tmp_path / name, text)
    with pytest.raises(IjepaError, match=message):
        read(path, tmp_path / "work")


def test_a_column_of_captions_is_no_label(tmp_path, monkeypatch):
    monkeypatch.setattr("ijepa.sources.listed.MAX_CLASSES", 1)
    path = write_list(tmp_path / "l.csv", "path,caption\na.png,one\nb.png,two\n")
    with pytest.raises(IjepaError, match="caption holds more than 1 different texts"):
        read(path, tmp_path / "work")


# CIFAR


def cifar_batch(seed, names, **labels):
    rows = np.random.default_rng(seed).integers(0, 256, (len(names), 3072), dtype=np.uint8)
    body = {b"data": rows, b"filenames": [name.encode() for name in names]}
    return rows, pickle.dumps(body | {key.encode(): value for key, value in labels.items()}, 2)


def write_cifar10(pack):
    """Two images a file; rows of pixels by split, and where `pack` put the files."""
    rows, files = {"train": [], "test": []}, {}
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        pixels, content = cifar_batch(number, [f"n{number}.png", "x.png"], labels=[number % 3, 2])
        rows["test" if name == "test_batch" else "train"].append(pixels)
        files[f"cifar-10-batches-py/{name}"] = content
    meta = {b"label_names": [b"airplane", b"automobile", b"bird"]}
    files["cifar-10-batches-py/batches.meta"] = pickle.dumps(meta, 2)
    return {split: np.concatenate(parts) for split, parts in rows.items()}, pack(files)


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_keeps_every_pixel_and_the_published_order(tmp_path, packed):
    def pack(files):
        if packed:
            return write_tar(tmp_path / "cifar-10-python.tar.gz", files, "w:gz")
        return write_files(tmp_path / "cifar", files)

    rows, where = write_cifar10(pack)
    splits, items = read(f"cifar10:{where}", tmp_path / "work")
    assert splits["test"]["class"].names == ["airplane", "automobile", "bird"]
    assert [item.name for item in items if item.split == "train"][:3] == [
        "airplane/00000.png",
        "bird/00001.png",
        "automobile/00002.png",
    ]
    assert items[2].path == "cifar-10-batches-py/data_batch_2/n1.png"
    for split, expected in rows.items():
        found = [decode(item) for item in items if item.split == split]
        np.testing.assert_array_equal(np.stack(found), expected.reshape(-1, 3, 32, 32))
    assert [item.labels["class"] for item in items] == [0, 2, 1, 2, 2, 2, 0, 2, 1, 2, 2, 2]


def decode(item):
    from ijepa.stores.images import decode_rgb

    return decode_rgb(bytes_of(item)).transpose(2, 0, 1)


def test_cifar100_has_fine_and_coarse_classes(tmp_path):
    _, train = cifar_batch(0, ["a.png"], fine_labels=[1], coarse_labels=[0])
    _, test = cifar_batch(1, ["b.png"], fine_labels=[0], coarse_labels=[0])
    meta = {b"fine_label_names": [b"apple", b"bear"], b"coarse_label_names": [b"all"]}
    files = {"train": train, "test": test, "meta": pickle.dumps(meta, 2)}
    splits, items = read(
        f"cifar100:{write_files(tmp_path / 'c', files)}", tmp_path / "work", "train"
    )
    assert splits["train"]["coarse"].names == ["all"]
    assert [(item.name, item.labels) for item in items] == [
        ("bear/00000.png", {"class": 1, "coarse": 0})
    ]


def test_cifar_as_class_folders_is_taken_too(tmp_path):
    names = [f"{split}/{number}/x.png" for split in ("train", "test") for number in range(10)]
    folder = write_files(tmp_path / "images", dict.fromkeys(names, encoded(0, "png", 32, 32)))
    assert read(f"cifar10:{folder}", tmp_path / "a") == read(folder, tmp_path / "b")


def test_a_split_of_cifars_folders_that_is_not_asked_for_is_not_looked_at(tmp_path):
    names = [*(f"train/{number}/x.png" for number in range(10)), "test/unlabelled.png"]
    folder = write_files(tmp_path / "images", dict.fromkeys(names, encoded(0, "png", 32, 32)))
    _, items = read(f"cifar10:{folder}", tmp_path / "work", "train")
    assert len(items) == 10
    with pytest.raises(IjepaError, match="but no classes"):
        read(f"cifar10:{folder}", tmp_path / "work")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (class_folders(1), "2 classes"),
        ({"train/x.png": encoded(0)}, "no classes"),
        ({f"train/{n}/x.png": encoded(0) for n in range(10)}, "train/0/x.png of 6 x 8 pixels"),
    ],
)
def test_what_has_not_the_classes_of_cifar_is_refused(tmp_path, files, found):
    folder = write_files(tmp_path / "images", files)
    with pytest.raises(IjepaError, match=f"neither CIFAR's own .* but {found}"):
        read(f"cifar10:{folder}", tmp_path / "work")


ran = []


class Command:
    def __reduce__(self):
        return ran.append, ("a pickle ran code",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Command()), "asks for builtins.getattr"),
        (pickle.dumps({b"label_names": [b"a"]}, 2)[:-3], "not a file of CIFAR's"),
        (pickle.dumps([1]), "holds a list"),
        (pickle.dumps({b"other": 1}), "has no 'label_names'"),
        (b"<html>", "not a file of CIFAR's"),
    ],
)
def test_a_pickle_that_is_not_cifars_is_refused_and_never_run(tmp_path, content, message):
    _, where = write_cifar10(lambda files: write_files(tmp_path / "cifar", files))
    (where / "cifar-10-batches-py" / "batches.meta").write_bytes(content)
    with pytest.raises(IjepaError, match=message):
        read(f"cifar10:{where}", tmp_path / "work")
    assert ran == []


def test_cifars_own_files_without_the_kind_say_which_to_name(tmp_path):
    _, where = write_cifar10(lambda files: write_files(tmp_path / "cifar", files))
    with pytest.raises(IjepaError, match="name it cifar10:"):
        read(where, tmp_path / "work")


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
    labels, depth = clevr.label_scene(scene("x", *depths))
    assert labels["count"] == len(depths) - 3
    assert labels["dist"] == max(i for i, bound in enumerate(thresholds) if bound < nearest)
    assert labels["dist"] == bisect.bisect_left([8, 8.5, 9, 9.5, 10, 100], nearest)
    assert depth == nearest


def test_the_class_is_that_of_the_nearest_object():
    things = [thing(9.0, "red", "cube"), thing(8.7, "cyan", "sphere"), thing(12.0)]
    labels, _ = clevr.label_scene({"objects": things})
    assert clevr.CLASSES[labels["class"]] == "cyan sphere"
    assert len(set(clevr.CLASSES)) == 24


def test_scenes_in_another_order_than_images_still_find_them(tmp_path):
    names = [f"{number}.png" for number in range(5)]
    scenes = [scene(name, 9, 9, *[9] * number) for number, name in enumerate(names, start=1)]
    folder = write_clevr(tmp_path / "clevr", scenes[::-1], names)
    splits, items = read(f"clevr:{folder}", tmp_path / "work")
    assert [item.labels["count"] for item in items] == [0, 1, 2, 3, 4]
    assert [item.name for item in items] == names
    assert len(splits["train"]["dist"].names) == 6


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100])
def test_scenes_are_read_whole_whatever_the_size_of_the_pieces(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(clevr, "CHUNK_BYTES", chunk_bytes)
    names = ["a.png", "ü.png"]
    write_clevr(tmp_path / "clevr", [scene(name, 9, 10, 11) for name in names], names)
    _, items = read(tmp_path / "clevr", tmp_path / "work")
    assert [item.name for item in items] == names


def test_clevr_splits_without_scenes_have_no_labels(tmp_path):
    folder = write_clevr(tmp_path / "clevr", [scene("a.png", 9, 9, 9)], ["a.png"])
    write_files(folder, {"images/test/b.png": PICTURE})
    splits, items = read(folder, tmp_path / "work")
    assert splits["test"] == {}
    assert [(item.split, len(item.labels)) for item in items] == [("test", 0), ("train", 3)]


@pytest.mark.parametrize(
    ("scenes", "images", "message"),
    [
        ([scene("a.png", 9, 9, 9)], ["a.png", "b.png"], "b.png has no scene"),
        ([scene("a.png", 9, 9, 9), scene("b.png", 9, 9, 9)], ["a.png"], "1 scenes of .* no image"),
        ([scene("a.png", 9)], ["a.png"], "scene 0 is not a CLEVR scene"),
        ([{"image_filename": "a.png"}], ["a.png"], "scene 0 is not a CLEVR scene"),
    ],
)
def test_scenes_and_images_must_fit_together(tmp_path, scenes, images, message):
    folder = write_clevr(tmp_path / "clevr", scenes, images)
    with pytest.raises(IjepaError, match=message):
        read(folder, tmp_path / "work")


def test_a_scenes_file_cut_short_is_refused(tmp_path):
    folder = write_clevr(tmp_path / "clevr", [scene("a.png", 9, 9, 9)], ["a.png"])
    path = folder / "scenes" / "CLEVR_train_scenes.json"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(IjepaError, match="cut short"):
        read(folder, tmp_path / "work")


def test_class_folders_are_not_clevr(tmp_path):
    folder = write_files(tmp_path / "images", class_folders(1))
    with pytest.raises(IjepaError, match="not laid out as CLEVR"):
        read(f"clevr:{folder}", tmp_path / "work")


def test_rendered_scenes_come_labelled_as_any_clevr(tmp_path):
    text = "scenes:train=2,val=1,px=32"
    splits, items = read(text, tmp_path / "work")
    again = read(f"clevr:{tmp_path / 'work' / 'scenes'}", tmp_path / "again")
    assert (splits, items) == again
    assert [(item.split, sorted(item.labels)) for item in items] == [
        ("train", ["class", "count", "dist"]),
        ("train", ["class", "count", "dist"]),
        ("val", ["class", "count", "dist"]),
    ]
    assert open_source(text).digest() != open_source(f"{text},seed=1").digest()


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


def test_of_two_members_of_one_name_both_are_listed_for_the_plan_to_choose(tmp_path):
    with tarfile.open(tmp_path / "i.tar", "w") as archive:
        for seed in (1, 2):
            add_member(archive, "a.png", encoded(seed))
    _, items = read(tmp_path / "i.tar", tmp_path / "work")
    assert [bytes_of(item) for item in items] == [encoded(1), encoded(2)]
