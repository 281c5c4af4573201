"""Data sets of the paper's evaluation, in the layouts in which they are handed out."""

import json
import struct

import numpy as np
import pytest
import torchvision
from pictures import bytes_of, encoded, read, refused, write_files
from scipy.io import savemat

from ijepa.data.decode import decode_rgb
from ijepa.data.sources.items import Request
from ijepa.data.sources.kinds import open_source
from ijepa.errors import IjepaError

PICTURE = encoded(0)
WNIDS = ("n01440764", "n01443537", "n01484850")  # sorted; other numbers in the development kit


def facts(items):
    return [(item.split, item.name, item.path, item.labels["class"]) for item in items]


def pictures(*paths):
    return dict.fromkeys(paths, PICTURE)


@pytest.fixture
def imagenet(tmp_path):
    """Training folders, flat validation images."""
    train = [f"train/{wnid}/{wnid}_{number}.JPEG" for wnid in WNIDS for number in (1, 10026)]
    val = [f"val/ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3, 4)]
    return write_files(tmp_path / "imagenet", pictures(*train, *val))


def write_devkit(folder, truth="2\n3\n1\n3\n"):
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    numbers = {1: WNIDS[1], 2: WNIDS[2], 3: WNIDS[0], 1001: "n00001740"}
    synsets = np.zeros((4, 1), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for row, (number, wnid) in enumerate(numbers.items()):
        synsets[row, 0] = (number, wnid, "fish")
    savemat(data / "meta.mat", {"synsets": synsets})


def as_kaggle(imagenet):
    """The same images as Kaggle hands them out."""
    folder = imagenet.with_name("kaggle")
    (folder / "ILSVRC/Data").mkdir(parents=True)
    imagenet.rename(folder / "ILSVRC/Data/CLS-LOC")
    lines = ["ImageId,PredictionString"]
    for number, wnid in ((4, 0), (2, 0), (3, 1), (1, 2)):
        lines.append(f"ILSVRC2012_val_{number:08d},{WNIDS[wnid]} 111 108 1 2 ")
    (folder / "LOC_val_solution.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("is_kaggles", [False, True])
def test_imagenet_takes_validation_classes_from_the_devkit_or_from_kaggle(
    tmp_path, imagenet, is_kaggles
):
    if is_kaggles:
        imagenet = as_kaggle(imagenet)
    else:
        write_devkit(imagenet)
    splits, items = read(f"imagenet:{imagenet}", tmp_path / "work")
    assert splits["train"] == splits["val"] == {"class": list(WNIDS)}
    assert [row[2:] for row in facts(items) if row[0] == "val"] == [
        (f"val/ILSVRC2012_val_{number:08d}.JPEG", label)
        for number, label in zip((1, 2, 3, 4), (2, 0, 1, 0), strict=True)
    ]
    train = [row for row in facts(items) if row[0] == "train"]
    assert [row[3] for row in train] == [0, 0, 1, 1, 2, 2]
    assert train[0][1] == "n01440764/n01440764_1.JPEG"


def test_other_classes_of_the_validation_images_are_another_data_set(imagenet):
    folder = as_kaggle(imagenet)
    before, solution = open_source(f"imagenet:{folder}").digest(), folder / "LOC_val_solution.csv"
    solution.write_text(solution.read_text().replace(*WNIDS[:2]))
    assert open_source(f"imagenet:{folder}").digest() != before


def test_imagenet_in_class_folders_is_what_any_class_folders_are(imagenet, tmp_path):
    for path in (imagenet / "val").iterdir():
        path.unlink()
    path = "n01443537/ILSVRC2012_val_00000001.JPEG"
    write_files(imagenet, pictures(f"val/{path}"))
    splits, items = read(f"imagenet:{imagenet}", tmp_path / "work", "val")
    assert splits["val"]["class"] == list(WNIDS)
    assert facts(items) == [("val", path, f"val/{path}", 1)]
    write_files(tmp_path / "22k", pictures("n1/a.JPEG", "n2/b.JPEG", "train/c.JPEG"))
    splits, items = read(f"imagenet22k:{tmp_path / '22k'}", tmp_path / "work2")
    assert [row[3] for row in facts(items)] == [0, 1, 2]
    assert splits["train"]["class"] == ["n1", "n2", "train"]


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("2\n3\n1\n1001\n", r"line 4: '1001' is no class of meta\.mat"),
        ("2\n3\nx\n", r"line 3: 'x' is no class"),
        ("2\n3\n1\n", r"ILSVRC2012_val_00000004\.JPEG is not among the images whose class is kno"),
        (
            None,
            r"holds images but no class folders. To give their classes, put ILSVRC2012_devkit",
        ),
    ],
)
def test_validation_images_without_a_class_are_refused(imagenet, tmp_path, truth, message):
    if truth:
        write_devkit(imagenet, truth)
    refused(message, f"imagenet:{imagenet}", tmp_path / "work")


def test_a_damaged_development_kit_or_solution_of_kaggles_is_one_line(imagenet, tmp_path):
    write_devkit(imagenet)
    meta = next(imagenet.rglob("meta.mat"))
    for content in (b"junk" * 100, b"", meta.read_bytes()[:300]):
        meta.write_bytes(content)
        refused(r"meta\.mat is damaged \(", f"imagenet:{imagenet}", tmp_path / "work")
    folder = as_kaggle(imagenet)
    (folder / "LOC_val_solution.csv").write_bytes(b"ImageId,PredictionString\n\xff,a\n")
    refused(r"LOC_val_solution\.csv is not UTF-8", f"imagenet:{folder}", tmp_path / "work")


def write_inat(folder, changes=None):
    """Two images for training, one for validation; 7 is the number of the first of each."""
    paths = ["Plantae/7477/aa.jpg", "Aves/2/bb.jpg", "Aves/2/cc.jpg"]
    write_files(folder / "train_val2018", pictures(*paths))
    classes = [{"id": 1, "name": "7477"}, {"id": 0, "name": "2"}]
    for split, rows in {"train": zip(paths, (1, 0), strict=False), "val": [(paths[2], 0)]}.items():
        body = {"images": [], "annotations": [], "categories": classes}
        for number, (path, label) in enumerate(rows, start=7):
            body["images"].append({"id": number, "file_name": f"train_val2018/{path}"})
            body["annotations"].append({"image_id": number, "category_id": label})
        (folder / f"{split}2018.json").write_text(json.dumps(body | (changes or {})))
    return folder


def test_inaturalist_is_read_from_its_annotations(tmp_path):
    splits, items = read(f"inat18:{write_inat(tmp_path / 'inat')}", tmp_path / "work")
    assert splits["val"]["class"] == ["2", "7477"]
    assert facts(items) == [
        ("train", "Plantae/7477/aa.jpg", "train_val2018/Plantae/7477/aa.jpg", 1),
        ("train", "Aves/2/bb.jpg", "train_val2018/Aves/2/bb.jpg", 0),
        ("val", "Aves/2/cc.jpg", "train_val2018/Aves/2/cc.jpg", 0),
    ]


@pytest.mark.parametrize("splits", [(), ("train",)])
def test_images_that_no_list_of_a_published_set_names_are_counted(tmp_path, splits):
    folder = write_inat(tmp_path / "inat")
    write_files(folder, pictures("train_val2018/Aves/2/dd.jpg", "test2018/e.jpg", "test2018/e.txt"))
    contents = open_source(f"inat18:{folder}").read(Request(tmp_path, splits))
    assert len(list(contents.items)) == (2 if splits else 3)
    assert contents.left_out == {"images that no list of the data set names": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"image_id": 1, "category_id": 0}]}, "is no list of iNaturalist"),
        ({"annotations": [{"image_id": 7, "category_id": 9}]}, "is of class 9, but there are 2"),
        ({"categories": [{"id": 3, "name": "x"}]}, "does not number its 1 classes from 0 on"),
        (
            {"images": [{"id": i, "file_name": "gone.jpg"} for i in (7, 8)]},
            r"gone\.jpg is in the data set's lists",
        ),
    ],
)
def test_annotations_that_do_not_fit_are_refused(tmp_path, changes, message):
    folder = write_inat(tmp_path / "inat", changes)
    refused(message, f"inat18:{folder}", tmp_path / "work")


def test_places205_is_read_from_its_lists(tmp_path):
    root = "data/vision/torralba/deeplearning/images256"
    names = ["a/abbey/gsun_1.jpg", "c/chicken_coop/outdoor/gsun_2.jpg", "a/abbey/gsun_3.jpg"]
    folder = write_files(tmp_path / "places", pictures(*(f"{root}/{name}" for name in names)))
    lists = folder / "trainvalsplit_places205"
    train, val = f"{names[0]} 0\n{names[1]} 1\n", f"{names[2]} 0\n"
    write_files(lists, {"train_places205.csv": train.encode(), "val_places205.csv": val.encode()})
    splits, items = read(f"places205:{folder}", tmp_path / "work")
    assert splits["val"]["class"] == ["abbey", "chicken_coop/outdoor"]
    assert facts(items) == [
        (split, name, f"{root}/{name}", label)
        for split, name, label in zip(("train", "train", "val"), names, (0, 1, 0), strict=True)
    ]
    before = open_source(f"places205:{folder}").digest()
    (lists / "val_places205.csv").write_text(f"{names[2]} 1\n")
    assert open_source(f"places205:{folder}").digest() != before


@pytest.mark.parametrize(
    ("train", "val"), [("data_256", "val_256"), ("data_large_standard", "val_large")]
)
def test_places365_is_read_from_its_lists(tmp_path, train, val):
    paths = [f"{train}/a/airfield/1.jpg", f"{train}/b/bow_window/indoor/2.jpg", f"{val}/v_1.jpg"]
    texts = {
        "categories_places365.txt": b"/a/airfield 0\n/b/bow_window/indoor 1\n",
        "places365_train_standard.txt": b"/a/airfield/1.jpg 0\n/b/bow_window/indoor/2.jpg 1\n",
        "places365_val.txt": b"v_1.jpg 1\n",
    }
    folder = write_files(tmp_path / "places", pictures(*paths) | texts)
    splits, items = read(f"places365:{folder}", tmp_path / "work")
    assert splits["train"]["class"] == ["airfield", "bow_window/indoor"]
    assert [(split, path, label) for split, _, path, label in facts(items)] == [
        ("train", paths[0], 0), ("train", paths[1], 1), ("val", paths[2], 1),
    ]  # fmt: skip
    for line, message in (
        (b"v_1.jpg", "line 1: 'v_1.jpg' is not a path and a class number"),
        ("v_1.jpg \u00b2".encode(), "is not a path and a class number"),
        (b"v_1.jpg " + b"9" * 5000, "is not a path and a class number"),
        (b"v_1.jpg \xff 1", r"places365_val\.txt is not UTF-8"),
    ):
        (folder / "places365_val.txt").write_bytes(line)
        refused(message, f"places365:{folder}", tmp_path / "again")


@pytest.mark.parametrize("kind", ["places205", "places365", "inat18"])
def test_a_folder_without_the_lists_is_refused_with_their_name(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    refused(
        r"train_places205|places365_train|train2018\.json",
        f"{kind}:{tmp_path / 'empty'}",
        tmp_path / "work",
    )
    with pytest.raises(IjepaError, match="There is no folder"):
        open_source(f"{kind}:{tmp_path / 'gone'}")


def write_fashion(root):
    """Five images in MNIST's own format."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    for prefix, rows in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        parts = {"images-idx3": pixels[rows], "labels-idx1": np.array([9, 0, 4, 1, 2])[rows]}
        for name, values in parts.items():
            head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            content = head + values.astype(np.uint8).tobytes()
            (raw / f"{prefix}-{name}-ubyte").write_bytes(content)
    return pixels


def test_sets_of_torchvision_keep_pixels_classes_and_splits(tmp_path):
    pixels = write_fashion(tmp_path / "data")
    splits, items = read(f"torchvision:FashionMNIST:{tmp_path / 'data'}", tmp_path / "work")
    assert splits["test"]["class"][9] == "Ankle boot"
    assert [(item.split, item.labels["class"]) for item in items] == [
        ("train", 9), ("train", 0), ("train", 4), ("test", 1), ("test", 2),
    ]  # fmt: skip
    for item, expected in zip(items, pixels, strict=True):
        found = decode_rgb(bytes_of(item))
        np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=2))


def test_sets_of_torchvision_with_a_split_argument_give_the_splits_that_are_there(tmp_path):
    folder = tmp_path / "data" / "gtsrb" / "GTSRB"
    files = pictures("Training/00000/00000_00000.ppm", "Training/00007/00000_00000.ppm")
    write_files(folder, files)
    splits, items = read(f"torchvision:GTSRB:{tmp_path / 'data'}", tmp_path / "work")
    assert list(splits) == ["train"]
    assert [item.labels["class"] for item in items] == [0, 1]  # it numbers what is there


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:NoSuch:{}", "has no 'NoSuch'; it has .*CIFAR10"),
        ("torchvision:FashionMNIST:{}", "torchvision finds no FashionMNIST in .*: Dataset not fou"),
        ("torchvision:{}", "names no folder; write torchvision:FashionMNIST:PATH"),
        ("torchvision:FashionMNIST:{}/gone", "There is no folder"),
    ],
)
def test_sets_of_torchvision_that_are_not_there_are_refused(tmp_path, source, message):
    refused(message, source.format(tmp_path), tmp_path / "work")


@pytest.mark.parametrize("name", sorted(set(torchvision.datasets.__all__)))
def test_every_class_of_torchvision_without_its_files_is_one_line(tmp_path, name):
    (tmp_path / "data").mkdir()
    refused(
        f"(?s)^[^\n]*{name}[^\n]*$", f"torchvision:{name}:{tmp_path / 'data'}", tmp_path / "work"
    )
