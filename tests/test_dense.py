"""Dense labels: maps of classes and depth, from source files through shards to evaluation views."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import CPU
from typer.testing import CliRunner

from ijepa.config import ShardConfig
from ijepa.data.loader import ViewPlan, dense_view, evaluation_view
from ijepa.data.shards import open_shards
from ijepa.data.sources.kinds import open_source
from ijepa.data.sources.layouts import SHAPES
from ijepa.data.sources.scenes import ScenesSpec, draw_maps, draw_scene
from ijepa.errors import IjepaError
from ijepa.shard import shard
from ijepa_cli.main import app

RNG = np.random.default_rng(0)


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path)
    return values


def picture(path, height=12, width=16):
    return save(path, RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def classes(path, high=5, height=12, width=16):
    return save(path, RNG.integers(0, high, (height, width), dtype=np.uint8))


def made(tmp_path, source="images", config=ShardConfig(), **folders):  # noqa: B008  # a constant
    """Shard a folder in `tmp_path`, or another source, with the maps of other folders there."""
    dense = {label: tmp_path / folder for label, folder in folders.items()}
    return shard(tmp_path / source if source == "images" else source, tmp_path / "out", config, CPU,
                 dense=dense)  # fmt: skip


def maps(out, split, name):
    reader = open_shards(out).split(split)
    return {key: reader.read_map(n, name) for n, key in enumerate(reader.keys())}


def test_maps_of_folders_beside_the_images_come_along(tmp_path):
    stems = ["train/a/1", "train/b/2", "val/a/3"]
    for stem in stems:
        picture(tmp_path / "images" / f"{stem}.jpg")
    seg = {f"{stem}": classes(tmp_path / "masks" / f"{stem}.png") for stem in stems}
    seg["val/a/3"][0, :3] = 255, 255, 4
    save(tmp_path / "masks" / "val/a/3.png", seg["val/a/3"])
    depth = {stem: RNG.integers(0, 9000, (12, 16), dtype=np.uint16) for stem in stems}
    for stem, values in depth.items():  # of one split also without the folder of the split
        save(tmp_path / "depth" / f"{stem.removeprefix('val/')}.png", values)
    result = made(tmp_path, seg="masks", depth="depth")
    assert result.dense["seg"].names == ("0", "1", "2", "3", "4")
    assert result.labels["class"].classes == 2
    for split in ("train", "val"):
        for key, values in maps(tmp_path / "out", split, "seg").items():
            assert np.array_equal(values, seg[key])
        for key, values in maps(tmp_path / "out", split, "depth").items():
            assert values.dtype == np.float32
            assert values == pytest.approx(depth[key] / 1000, rel=1e-6)
    assert made(tmp_path, seg="masks", depth="depth").cached
    classes(tmp_path / "masks" / "train/a/1.png", high=9)
    other = made(tmp_path, seg="masks", depth="depth")
    assert not other.cached
    assert other.fingerprint != result.fingerprint


@pytest.mark.parametrize("is_absolute", [False, True])
def test_a_gray_image_of_a_list_is_never_taken_for_its_own_map(tmp_path, is_absolute):
    images = tmp_path / "images"
    for name in "ab":
        classes(images / f"{name}.png", high=200)
    place = images if is_absolute else "../images"
    (tmp_path / "lists").mkdir()
    names = tmp_path / "lists" / "list.csv"
    names.write_text(f"path\n{place}/a.png\n{place}/b.png\n")
    (tmp_path / "masks").mkdir()
    with pytest.raises(IjepaError, match=r"there is no seg .*masks"):
        made(tmp_path, str(names), seg="masks")
    below = Path(*images.parts[1:]) if is_absolute else Path("images")
    seg = {name: classes(tmp_path / "masks" / below / f"{name}.png") for name in "ab"}
    made(tmp_path, str(names), seg="masks")
    for key, values in maps(tmp_path / "out", "train", "seg").items():
        assert np.array_equal(values, seg[key[-1]])


def test_names_of_classes_ignored_values_and_floats_are_read(tmp_path):
    picture(tmp_path / "images" / "1.png")
    values = classes(tmp_path / "masks" / "1.png", high=3)
    (tmp_path / "masks" / "classes.txt").write_text("sky\ntree\nroad\nnever\n")
    depth = RNG.uniform(0.5, 4, (12, 16))
    depth[0, :3] = np.nan, -1, np.inf
    save(tmp_path / "depth" / "1.npy", depth)
    made(tmp_path, config=ShardConfig(ignored_class=2), seg="masks", depth="depth")
    split = open_shards(tmp_path / "out").split("train")
    assert split.index.dense["seg"].names == ("sky", "tree", "road", "never")
    assert np.array_equal(split.read_map(0, "seg"), np.where(values == 2, 255, values))
    found = split.read_map(0, "depth")
    assert found.ravel()[:3].tolist() == [0, 0, 0]
    assert found.ravel()[3:] == pytest.approx(depth.ravel()[3:])


def test_maps_of_many_classes_are_of_sixteen_bits(tmp_path):
    picture(tmp_path / "images" / "1.png")
    values = save(tmp_path / "m" / "1.png", RNG.integers(0, 700, (12, 16), dtype=np.uint16))
    values[0, 0] = 699
    save(tmp_path / "m" / "1.png", values)
    made(tmp_path, config=ShardConfig(ignored_class=-1), seg="m")
    found = maps(tmp_path / "out", "train", "seg")["train/1"]
    assert (found.dtype, found.tolist()) == (np.uint16, values.tolist())


@pytest.fixture
def ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    values = {}
    for split, name in (("training", "ADE_train_1"), ("validation", "ADE_val_1")):
        picture(root / "images" / split / f"{name}.jpg")
        values[name] = classes(root / "annotations" / split / f"{name}.png", high=151)
    return root, values


def test_ade20k_counts_classes_from_one_and_ignores_zero(tmp_path, ade20k):
    root, values = ade20k
    rows = [f"{n + 1}\t0.1\t1\t1\t1\tthing {n}" for n in range(150)]
    (root / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n" + "\n".join(rows)
    )
    assert made(tmp_path, f"ade20k:{root}").splits == {"train": 1, "val": 1}
    found = maps(tmp_path / "out", "val", "seg")["val/ADE_val_1"]
    assert np.array_equal(found, (values["ADE_val_1"].astype(int) - 1) % 256)  # 0 becomes 255
    names = open_shards(tmp_path / "out").split("val").index.dense["seg"].names
    assert (len(names), names[149]) == (150, "thing 149")


def test_voc_takes_the_images_of_its_lists_and_reads_palettes(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("2007_1", "2007_2", "2007_3"):
        picture(root / "JPEGImages" / f"{name}.jpg")
    values = {}
    for name in ("2007_1", "2007_2"):
        values[name] = RNG.integers(0, 21, (12, 16), dtype=np.uint8)
        values[name][:2] = 255
        indexed = Image.fromarray(values[name], "P")
        indexed.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
        save(root / "SegmentationClass" / f"{name}.png", indexed)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "val.txt").write_text("2007_2\n")
    for suffix in "abcdefgh":
        (root / f"1.{suffix}").touch()
    result = made(tmp_path, f"voc:{root.parent}")
    assert result.splits == {"train": 1, "val": 1}
    others = [f".{suffix} files" for suffix in "abcdefgh"]  # in an order that is always the same
    assert list(result.left_out) == [".txt files", *others, ".jpg files"]
    assert np.array_equal(maps(tmp_path / "out", "train", "seg")["train/2007_1"], values["2007_1"])
    assert open_shards(tmp_path / "out").split("val").index.dense["seg"].names[15] == "person"
    for names, message in (
        (b"2007_2\n2007_3\n", r"there is no seg .*VOC2012/SegmentationClass/2007_3\.png"),
        (b"2007_2\n2007_4\n", r"JPEGImages/2007_4\.jpg: no such file"),
        (b"2007_\xff\n", r"val\.txt in .* is not UTF-8"),
    ):
        (lists / "val.txt").write_bytes(names)
        with pytest.raises(IjepaError, match=message):
            made(tmp_path, f"voc:{root.parent}")


def test_nyu_is_read_as_bts_lays_it_out(tmp_path):
    root, values = tmp_path / "nyu_depth_v2", {}
    for scene in ("sync/kitchen_0001", "official_splits/test/bath", "official_splits/train/again"):
        picture(root / scene / "rgb_00045.jpg")
        values[scene] = RNG.integers(1, 9999, (12, 16), dtype=np.uint16)
        save(root / scene / "sync_depth_00045.png", values[scene])
    assert made(tmp_path, f"nyu:{root}").splits == {"test": 1, "train": 1}
    [found] = maps(tmp_path / "out", "train", "depth").values()
    assert found == pytest.approx(values["sync/kitchen_0001"] / 1000, rel=1e-6)


def test_maps_of_scenes_are_what_the_image_shows():
    spec = ScenesSpec(image_px=48, dense="yes")
    for number in range(6):
        objects, _, camera = draw_scene(spec, "train", number)
        found = draw_maps(camera, objects, 48)
        depth = found["depth"] / 1000
        nearest = min(objects, key=lambda thing: thing["pixel_coords"][2])
        across, down, centre = nearest["pixel_coords"]
        place = min(down, 47), min(across, 47)
        assert SHAPES[found["shape"][place] - 1] == nearest["shape"]
        assert centre - 1.5 * nearest["radius"] < depth[place] < centre
        assert len(np.unique(found["color"][found["shape"] > 0])) <= len(objects)
        assert np.array_equal(found["shape"] == 0, found["color"] == 0)
        row, column = np.argwhere(found["shape"] == 0)[-1]  # the floor: its height is zero
        ray = camera.forward + 0.325 * (
            ((column + 0.5) / 24 - 1) * camera.right - ((row + 0.5) / 24 - 1) * camera.up
        )
        assert (camera.position + depth[row, column] * ray)[2] == pytest.approx(0, abs=0.01)


def test_maps_of_scenes_change_neither_their_images_nor_the_sets_without_maps(tmp_path):
    for text in ("train=4,val=1,px=16", "train=4,val=1,px=16,dense=yes"):
        shard(f"scenes:{text}", tmp_path / text[-3:], runtime=CPU)
    plain, dense = (open_shards(tmp_path / name).split("train") for name in ("=16", "yes"))
    assert [plain.read_image(n) for n in range(4)] == [dense.read_image(n) for n in range(4)]
    assert open_source("scenes:dense=yes").digest() != open_source("scenes:").digest()


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    image_px=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    fraction=st.sampled_from([None, 1.0, 224 / 256]),
)
@settings(max_examples=60)
def test_a_view_of_a_map_shows_what_the_view_of_its_image_shows(size, image_px, fraction):
    plan = ViewPlan(image_px, fraction)
    ramp = np.add.outer(np.arange(size[0]) * 3, np.arange(size[1]) * 3).astype(np.uint8)
    image = np.repeat(ramp[..., None], 3, axis=2)
    seen = evaluation_view(image, plan)[0, 0].numpy().astype(int)
    view = dense_view(ramp, plan)
    assert view.shape == image_px
    steps = [max(1, a / b) for a, b in zip(size, image_px, strict=True)]  # of a pixel of the view
    assert np.abs(view.astype(int) - seen).max() <= 3 * sum(steps) + 1


def test_a_damaged_map_is_named(tmp_path):
    made(tmp_path, "scenes:train=2,val=1,px=16,dense=yes")
    tar = tmp_path / "out" / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    row = np.load(tmp_path / "out" / "train.index.npy")[1]
    content[int(row["dense shape offset"]) + 40] ^= 1
    tar.write_bytes(content)
    split = open_shards(tmp_path / "out").split("train")
    assert split.read_map(0, "shape").shape == (16, 16)
    with pytest.raises(IjepaError, match="damaged at sample 1"):
        split.read_map(1, "shape")


BAD = {
    "another size": (
        np.zeros((6, 8), np.uint8),
        r"its seg .*1\.png is refused: 8 x 6 pixels, the image 16",
    ),
    "three channels": (np.zeros((12, 16, 3), np.uint8), r"uint8 of shape \(12, 16, 3\)"),
    "an unknown class": (np.full((12, 16), 7, np.uint8), "the value 7, but classes end at 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_map_that_cannot_be_is_one_line_with_its_file(tmp_path, name):
    values, message = BAD[name]
    picture(tmp_path / "images" / "0.png")
    picture(tmp_path / "images" / "1.png")
    classes(tmp_path / "masks" / "0.png", high=2)
    save(tmp_path / "masks" / "1.png", values)
    (tmp_path / "masks" / "classes.txt").write_text("one\ntwo\n")
    with pytest.raises(IjepaError, match=message):
        made(tmp_path, seg="masks")
    assert not (tmp_path / "out").exists()
    result = made(tmp_path, config=ShardConfig(max_bad=1), seg="masks")
    assert (result.splits, result.bad) == ({"train": 1}, 1)


def test_missing_maps_and_folders_are_one_line(tmp_path, ade20k):
    def refused(message, *source, **folders):
        with pytest.raises(IjepaError, match=message):
            made(tmp_path, *source, **folders)

    picture(tmp_path / "images" / "0.png")
    (tmp_path / "masks").mkdir()
    refused(r"\(0\.png: there is no seg .*masks/0\.png\)", seg="masks")
    refused("There is no folder", seg="nothing")
    refused("'a/b' names no maps; write letters", **{"a/b": "masks"})
    (tmp_path / "images" / "m").mkdir()
    refused("would be images, too", seg="images/m")
    (tmp_path / "masks" / "0.png").write_bytes(b"no picture")
    refused("is refused: not a PNG or .npy file", seg="masks")
    (tmp_path / "masks" / "0.png").unlink()
    with (tmp_path / "masks" / "0.npy").open("wb") as file:  # of which nothing follows
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**7, 10**7)}
        np.lib.format.write_array_header_1_0(file, header)
    refused("is refused: not a PNG or .npy file", seg="masks")
    save(tmp_path / "masks" / "0.npy", np.full((12, 16), 255))
    refused("no map of seg says anything of its image: .*ignored class 255", seg="masks")
    save(tmp_path / "masks" / "0.npy", np.full((12, 16), 30_000))
    refused("where nothing names them: are these masks of objects?", seg="masks")
    depth = tmp_path / "depth"
    save(depth / "0.png", np.zeros((12, 16), np.uint16))
    refused("no map of depth says anything of its image: depth is 0 or less", depth="depth")
    classes(depth / "0.png")
    refused("8 bits, in millimetres", depth="depth")
    turned = ShardConfig(exif="rotate")
    refused("turns images, but not their maps", "images", turned, seg="masks")
    root, _ = ade20k
    next(Path(root).glob("annotations/*/*val*")).unlink()
    refused(r"there is no seg .*annotations/validation/ADE_val_1\.png", f"ade20k:{root}")
    refused("not laid out as nyu", f"nyu:{root}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n\nb\n", "line 2: .* class 1, found nothing"),
        ("a\nb\na\n", "line 3: .* for the second time"),
    ],
)
def test_the_line_of_a_name_is_the_number_of_its_class(tmp_path, text, message):
    picture(tmp_path / "images" / "0.png")
    classes(tmp_path / "masks" / "0.png", high=2)
    (tmp_path / "masks" / "classes.txt").write_text(text)
    with pytest.raises(IjepaError, match=message):
        made(tmp_path, seg="masks")


def test_maps_without_other_labels_lead_to_their_probe(tmp_path):
    for split in ("train", "val"):
        for number in range(2):
            picture(tmp_path / "images" / split / f"{number}.png", 16, 16)
            save(tmp_path / "depth" / split / f"{number}.npy", RNG.uniform(1, 2, (16, 16)))
    data = made(tmp_path, depth="depth").out
    words = ["extract", "--encoder", "pixels/8", "--data", data, "--tokens"]
    words += ["--image-size", 16, "--device", "cpu", "--workers", 0]
    for split in ("train", "val"):
        split_words = [*words, "--split", split, "--out", tmp_path / f"{split}.h5"]
        said = CliRunner().invoke(app, [*map(str, split_words)], catch_exceptions=False).stdout
    assert re.search(r"next: ijepa probe depth --train .* --label depth --out .*depth\.json", said)


def test_maps_stay_as_they_are_where_images_shrink(tmp_path):
    picture(tmp_path / "images" / "0.png", 30, 41)
    values = classes(tmp_path / "masks" / "0.png", 5, 30, 41)
    config = ShardConfig(resize_px=16)
    made(tmp_path, config=config, seg="masks")
    assert np.array_equal(maps(tmp_path / "out", "train", "seg")["train/0"], values)
    classes(tmp_path / "masks" / "0.png", 5, 20, 41)
    with pytest.raises(IjepaError, match="41 x 20 pixels, the image 22 x 16"):
        made(tmp_path, config=config, seg="masks")
