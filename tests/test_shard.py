"""`ijepa shard` keeps what decodes as it is, tells what does not, and survives any kill."""

import contextlib
import json
import os
import struct
import tarfile
import unicodedata
import zlib
from hashlib import sha256

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import (
    add_member,
    as_file,
    class_folders,
    digests,
    encoded,
    pixels,
    write_files,
    write_tar,
)
from PIL import ExifTags, Image
from runs import CPU
from typer.testing import CliRunner

from ijepa.config import Runtime, ShardConfig
from ijepa.data.decode import decode_rgb
from ijepa.data.prepare import prepare_image
from ijepa.data.shards import open_shards
from ijepa.errors import IjepaError
from ijepa.shard import shard
from ijepa_cli.main import app

SMALL = ShardConfig(shard_bytes=10_000)  # three images a shard


def made(tmp_path, files, config=ShardConfig(), runtime=CPU, **more):  # noqa: B008  # a constant
    """Shard some files into `set`."""
    return shard(write_files(tmp_path / "images", files), tmp_path / "set", config, runtime, **more)


def samples(folder):
    """All samples of a set by key."""
    splits = map(open_shards(folder).split, open_shards(folder).splits)
    every = [split.read_sample(number) for split in splits for number in range(len(split))]
    return {sample.key: sample for sample in every}


def by_file(folder):
    """Samples by where they came from, which the JSON in the tars tells."""
    found = samples(folder)
    return {facts["file"]: found[facts["key"]] for facts in json_of(folder)}


def json_of(folder):
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            yield from (json.load(tar.extractfile(one)) for one in tar if one.name[-5:] == ".json")


def images(folder):
    return {file: sample.image for file, sample in by_file(folder).items()}


# What is kept


class_names = st.text(st.characters(categories=["L", "N"], include_characters=" ._-%~"), min_size=1)
class_names = class_names.filter(lambda name: not name.startswith("."))
class_names = class_names.filter(lambda name: unicodedata.is_normalized("NFC", name))  # as stored
file_names = st.tuples(class_names, st.sampled_from(["jpg", "JPEG", "png", "webp"]))


@settings(max_examples=15)
@given(
    classes=st.dictionaries(
        class_names.map(lambda name: f"c{name[:20]}"),
        st.lists(file_names, unique=True, min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    ),
    shard_bytes=st.integers(1, 20_000),
)
def test_bytes_and_labels_come_back_whatever_files_are_called(
    tmp_path_factory, classes, shard_bytes
):
    files = {
        f"{name}/{stem[:20]}.{suffix}": encoded(number, suffix)
        for name, stems in classes.items()
        for number, (stem, suffix) in enumerate(stems)
    }
    folder = tmp_path_factory.mktemp("round")
    write_files(folder / "images", files)
    shard(folder / "images", folder / "set", ShardConfig(shard_bytes=shard_bytes), CPU)
    names = open_shards(folder / "set").split("train").label_names["class"]
    assert names == sorted(classes)
    assert images(folder / "set") == files
    for file, sample in by_file(folder / "set").items():
        assert file.startswith(f"{names[sample.labels['class']]}/")


def test_the_number_of_workers_changes_no_byte_and_nothing_but_the_set_is_left(tmp_path):
    archive = str(write_tar(tmp_path / "i.tar.gz", class_folders(), "w:gz"))
    for workers in (1, 3):
        shard(archive, tmp_path / f"w{workers}", SMALL, Runtime(workers=workers))
    assert digests(tmp_path / "w1") == digests(tmp_path / "w3")
    assert len(digests(tmp_path / "w1")) > 8
    suffixes = {path.name.partition(".")[2] for path in (tmp_path / "w3").iterdir()}
    assert suffixes == {"tar", "index.npy", "json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.tar.gz", "w1", "w3"]


def test_the_same_images_have_one_fingerprint_wherever_they_come_from(tmp_path):
    files = class_folders()
    folder = write_files(tmp_path / "images", files)
    archive = write_tar(tmp_path / "i.tar", files)
    sources = {"a": str(folder), "b": str(archive), "c": f"imagenet:{folder}"}
    made = {name: shard(source, tmp_path / name, SMALL, CPU) for name, source in sources.items()}
    assert len({result.fingerprint for result in made.values()}) == 1
    other = shard(folder, tmp_path / "d", ShardConfig(splits=("val",)), CPU)
    assert other.fingerprint != made["a"].fingerprint
    assert other.splits == {"val": 12}


ODD_BUT_WHOLE = {
    "dot.png": as_file(Image.new("RGB", (1, 1)), "PNG"),
    "dot.jpg": as_file(Image.new("L", (1, 1)), "JPEG"),
    "print.jpg": as_file(Image.fromarray(pixels(1)).convert("CMYK"), "JPEG"),
    "palette.png": as_file(Image.fromarray(pixels(2)).quantize(16), "PNG", transparency=b"\0\x80"),
    "deep.png": as_file(Image.new("I;16", (4, 4)), "PNG"),
    "steps.jpg": as_file(3, "JPEG", progressive=True),
    "film.webp": as_file(4, "WEBP"),
    "called.JPEG": as_file(5, "PNG"),  # ImageNet has one
    "noname.jpe": as_file(6, "JPEG"),
}


def test_odd_images_that_decode_are_kept_byte_for_byte(tmp_path):
    assert made(tmp_path, ODD_BUT_WHOLE).bad == 0
    assert images(tmp_path / "set") == ODD_BUT_WHOLE
    with tarfile.open(tmp_path / "set" / "train-000000.tar") as tar:
        assert "train/called.png" in tar.getnames()  # readers go by the suffix


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "PPM"])
def test_formats_that_readers_do_not_expect_become_png_with_the_same_pixels(tmp_path, kind):
    content = as_file(0, kind)
    made(tmp_path, {f"a.{kind.lower()}": content})
    image = samples(tmp_path / "set")["train/a"].image
    assert image.startswith(b"\x89PNG")
    assert (decode_rgb(image) == decode_rgb(content)).all()


def test_of_two_members_of_one_name_the_later_stands_as_tar_has_it(tmp_path):
    with tarfile.open(tmp_path / "i.tar", "w") as archive:
        for seed, name in enumerate(["a.png", "b.png", "a.png", "a.jpg", "a.png"]):
            add_member(archive, name, encoded(seed, name[-3:]))
    shard(tmp_path / "i.tar", tmp_path / "set", runtime=CPU)
    found = {key: sample.image for key, sample in samples(tmp_path / "set").items()}
    assert found == {
        "train/b": encoded(1),
        "train/a~jpg": encoded(3, "jpg"),
        "train/a~png": encoded(4),
    }


def test_an_image_of_two_archives_is_refused(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"x-{number}.tar", {"a.png": encoded(number)})
    with pytest.raises(IjepaError, match=r"x-0\.tar .* is listed twice, as images 1 and 2"):
        shard(tmp_path / "x-{0..1}.tar", tmp_path / "set", runtime=CPU)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []  # nor a set begun


def test_the_output_never_replaces_the_source(tmp_path):
    folder = write_files(tmp_path / "images", class_folders(1))
    for out in (folder, tmp_path, folder / ".." / "images", folder / "set"):
        with pytest.raises(IjepaError, match=r"overlaps .*, which is read"):
            shard(folder, out, runtime=Runtime(workers=1, force=True))
    assert (folder / "train" / "cat" / "0000.png").exists()


def test_even_with_force_the_output_replaces_neither_maps_nor_the_images_of_a_list(tmp_path):
    images = write_files(tmp_path / "images", {"a.png": encoded(1)})
    masks = write_files(tmp_path / "masks", {"a.png": encoded(2)})
    runtime = Runtime(workers=1, force=True)
    for out in (masks, masks / "set"):
        with pytest.raises(IjepaError, match=r"overlaps .*, which is read"):
            shard(images, out, runtime=runtime, dense={"seg": masks})
    names = tmp_path / "lists" / "list.csv"
    write_files(names.parent, {names.name: b"path\n../images/a.png\n"})
    with pytest.raises(IjepaError, match=r"images would replace .*a\.png"):
        shard(names, images, runtime=runtime)
    (tmp_path / "linked").symlink_to(images)
    with pytest.raises(IjepaError, match=r"linked would replace .*a\.png"):
        shard(names, tmp_path / "linked", runtime=runtime)
    assert (images / "a.png").exists()
    assert (masks / "a.png").exists()
    assert not images.with_name("images.partial").exists()


# What is left out

WHOLE = encoded(7, "jpg", 64, 64)
BAD = {
    "train/cat/empty.jpg": b"",
    "train/cat/text.jpg": b"this is not an image",
    "train/dog/cut.jpg": WHOLE[:-200],
    "val/dog/cut.png": encoded(7)[:-80],
}


@pytest.mark.parametrize("workers", [1, 2])
def test_images_that_do_not_decode_are_left_out_and_listed(tmp_path, workers):
    good, gone = class_folders(2), tmp_path / "images/train/cat/gone.png"
    gone.parent.mkdir(parents=True)
    gone.symlink_to("nowhere")
    config = ShardConfig(shard_bytes=10_000, max_bad=5)
    assert made(tmp_path, good | BAD, config, Runtime(workers=workers)).bad == 5
    assert images(tmp_path / "set") == good
    lines = (tmp_path / "set" / "bad.jsonl").read_text().splitlines()
    listed = {line["path"]: line["reason"] for line in map(json.loads, lines)}
    assert set(listed) == {*BAD, "train/cat/gone.png"}
    assert listed["train/cat/gone.png"] == "a symbolic link to nothing"


def test_too_many_bad_images_fail_and_allowing_them_goes_on_from_there(tmp_path):
    files = class_folders(2) | BAD | {"notes.txt": b""}
    with pytest.raises(IjepaError, match=r"3 images do not .*text\.jpg.*--max-bad"):
        made(tmp_path, files)
    assert not (tmp_path / "set").exists()
    before = next((tmp_path / "set.partial").glob("*.tar")).stat().st_ino
    result = shard(tmp_path / "images", tmp_path / "set", ShardConfig(max_bad=4), CPU)
    assert result.left_out == {"images that do not decode, see bad.jsonl": 4, ".txt files": 1}
    assert (tmp_path / "set" / "train-000000.tar").stat().st_ino == before
    with pytest.raises(IjepaError, match="4 images do not decode, 3 are allowed"):
        shard(tmp_path / "images", tmp_path / "set", ShardConfig(max_bad=3), CPU)


def test_samples_whose_labels_cannot_be_read_count_as_bad_images(tmp_path):
    files = {f"{n}.png": encoded(n) for n in range(4)} | {
        f"{n}.json": b'{"label": 1}' for n in range(4)
    }
    path = write_tar(tmp_path / "x.tar", dict(sorted((files | {"2.json": b"{"}).items())))
    with pytest.raises(IjepaError, match=r"2\.png: 2\.json in .* is not JSON.*--max-bad"):
        shard(path, tmp_path / "set", SMALL, CPU)
    result = shard(path, tmp_path / "set", ShardConfig(max_bad=1), CPU)
    assert (result.bad, result.splits) == (1, {"train": 3})
    assert result.left_out == {"images that do not decode, see bad.jsonl": 1}  # once


def test_a_split_of_which_nothing_decodes_is_refused(tmp_path):
    with pytest.raises(IjepaError, match="No image of split train decodes"):
        made(tmp_path, {"a.jpg": b"x"}, ShardConfig(max_bad=9))


@given(cut=st.integers(2, len(WHOLE) - 3))
def test_a_jpeg_cut_anywhere_is_found(cut):
    with pytest.raises(IjepaError):
        prepare_image(WHOLE[:cut], ShardConfig())


# Sizes, depths and turns


def claiming(kind, width, height):
    """A small image whose header claims another size."""
    content = bytearray(as_file(Image.fromarray(pixels(0, 8, 8)), kind))
    if kind == "JPEG":
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = struct.pack(">HH", height, width)
    elif kind == "PNG":
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    else:  # PPM
        content = content.replace(b"8 8", b"%d %d" % (width, height), 1)
    return bytes(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "PPM"])
@pytest.mark.parametrize("side", [9_460, 13_000, 65_000])
@pytest.mark.parametrize("resize_px", [None, 4])
def test_an_image_that_claims_too_many_pixels_is_refused_before_memory_is_taken_for_them(
    kind, side, resize_px, monkeypatch
):
    def decoded(*_, **__):
        pytest.fail("pixels were decoded")

    monkeypatch.setattr("simplejpeg.decode_jpeg", decoded)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(IjepaError, match="pixels, more than 89,478,485"):
        prepare_image(claiming(kind, side, side), ShardConfig(resize_px=resize_px))
    with pytest.raises(IjepaError):
        decode_rgb(claiming(kind, side, side))


def test_images_above_the_limit_pass_with_a_higher_one_if_they_are_shrunk(monkeypatch):
    monkeypatch.setattr("ijepa.data.prepare.MAX_PIXELS", 200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    for suffix in ("jpg", "png", "webp"):
        large = encoded(0, suffix, 30, 30)
        with pytest.raises(IjepaError, match="30 x 30 pixels, more than 200"):
            prepare_image(large, ShardConfig(max_pixels=1000))  # readers would refuse it
        taken = prepare_image(large, ShardConfig(max_pixels=1000, resize_px=10))
        assert decode_rgb(taken.content).shape == (10, 10, 3)
    assert Image.MAX_IMAGE_PIXELS == 200


def test_an_image_for_which_there_is_no_memory_is_a_bad_image(monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr("simplejpeg.decode_jpeg", no_memory)
    with pytest.raises(IjepaError, match="does not fit into memory"):
        prepare_image(encoded(0, "jpg"), ShardConfig())


def test_a_file_too_large_for_an_image_is_not_read(tmp_path):
    folder = write_files(tmp_path / "i", {"a.jpg": encoded(0, "jpg"), "b.jpg": b""})
    os.truncate(folder / "b.jpg", 2**40)  # with nothing in it, on the disk either
    assert shard(folder, tmp_path / "set", ShardConfig(max_bad=1), CPU).bad == 1
    assert "1,099,511,627,776 bytes, more than" in (tmp_path / "set/bad.jsonl").read_text()


def test_only_formats_of_images_are_opened_whatever_a_file_is_called():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(IjepaError, match="not an image"):
        prepare_image(postscript, ShardConfig())


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_by_their_range_and_never_turn_white(kind):
    levels = np.full((8, 6), 200 * 256 + 7, np.uint16)
    content = as_file(Image.fromarray(levels), kind)
    taken = prepare_image(content, ShardConfig())
    assert (decode_rgb(taken.content) == 200).all()
    assert any("16 bits" in reason for reason in taken.changes)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused_with_the_option_that_keeps_them(dtype):
    levels = np.linspace(-1, 3, 48).reshape(8, 6).astype(dtype)
    content = as_file(Image.fromarray(levels), "TIFF")
    with pytest.raises(IjepaError, match="--channels 1"):
        prepare_image(content, ShardConfig())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_ignored_unless_asked_for(kind):
    picture = Image.fromarray(np.repeat(np.arange(32, dtype=np.uint8)[:, None] * 8, 16, axis=1))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = as_file(picture, kind, exif=exif)
    assert decode_rgb(prepare_image(content, ShardConfig()).content).shape == (32, 16, 3)
    taken = prepare_image(content, ShardConfig(exif="rotate"))
    assert "images turned as EXIF says" in taken.changes
    turned = decode_rgb(taken.content)
    assert turned.shape == (16, 32, 3)
    assert turned[0, 0, 0] > turned[0, -1, 0]  # the first row is now the last column
    again = prepare_image(taken.content, ShardConfig(exif="rotate"))
    assert again.content == taken.content


def test_further_frames_and_pages_are_counted(tmp_path):
    more = {"save_all": True, "append_images": [Image.fromarray(pixels(1))]}
    kinds = {"a.gif": "GIF", "c.tif": "TIFF", "d.webp": "WEBP", "phone.jpg": "MPO"}
    files = {name: as_file(0, kind, **more) for name, kind in kinds.items()} | {"b.png": encoded(1)}
    result = made(tmp_path, files, ShardConfig(exif="rotate"))
    assert result.changes["images with further pages or frames: the first one is kept"] == 3
    assert images(tmp_path / "set")["phone.jpg"] == files["phone.jpg"]


KINDS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")


@settings(max_examples=150)
@given(
    content=st.sampled_from([as_file(0, kind) for kind in KINDS]),
    changes=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), min_size=1, max_size=4),
    exif=st.sampled_from(["ignore", "rotate"]),
    resize_px=st.sampled_from([None, 4]),
)
def test_a_damaged_image_is_refused_in_one_line_or_taken(content, changes, exif, resize_px):
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    with contextlib.suppress(IjepaError):
        taken = prepare_image(bytes(damaged), ShardConfig(exif=exif, resize_px=resize_px))
        decode_rgb(taken.content)


# Resizing


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 60), (53, 32)), ((60, 100), (32, 53)), ((32, 90), (32, 90)), ((20, 500), (20, 500))],
)
def test_resizing_makes_the_short_side_and_never_enlarges(suffix, size, expected):
    content = encoded(0, suffix, *size)
    taken = prepare_image(content, ShardConfig(resize_px=32))
    assert decode_rgb(taken.content).shape[:2] == expected
    assert (taken.content == content) == (size == expected)
    assert taken.extension == suffix


def test_resizing_averages_fine_stripes_instead_of_picking_some():
    stripes = Image.new("L", (256, 256))
    stripes.putdata([255 * (column % 2) for _ in range(256) for column in range(256)])
    small = decode_rgb(prepare_image(as_file(stripes, "PNG"), ShardConfig(resize_px=60)).content)
    assert abs(small[4:-4, 4:-4].astype(float) - 127.5).max() < 12


def test_shuffled_shards_hold_the_same_samples_mixed(tmp_path):
    write_files(tmp_path / "images", class_folders(num_images=30))
    mixed = ShardConfig(shard_bytes=30_000, shuffle=True)
    shard(tmp_path / "images", tmp_path / "plain", SMALL, CPU)
    shard(tmp_path / "images", tmp_path / "mixed", mixed, CPU)
    assert samples(tmp_path / "mixed") == samples(tmp_path / "plain")
    for split in ("train", "val"):
        reader = open_shards(tmp_path / "mixed").split(split)
        first = reader.index.shards[0].samples
        assert 1 < first < len(reader)
        assert set(reader.labels("class")[:first].tolist()) == {0, 1}
    assert not list((tmp_path / "mixed").glob("*.tmp"))


def test_a_source_without_splits_gives_a_share_to_val_whatever_else_it_holds(tmp_path):
    files = {f"{n % 2}/{n}.png": encoded(n) for n in range(200)}
    folder = write_files(tmp_path / "images", files)
    config = ShardConfig(val_fraction=0.25)
    whole = shard(folder, tmp_path / "whole", config, CPU)
    assert sum(whole.splits.values()) == 200
    assert 25 < whole.splits["val"] < 75
    (folder / "0" / "0.png").unlink()
    shard(folder, tmp_path / "less", config, CPU)
    whole, less = samples(tmp_path / "whole"), samples(tmp_path / "less")
    assert whole.keys() - less.keys() <= {"train/0/0", "val/0/0"}
    assert less.keys() <= whole.keys()
    assert all(sample.labels["class"] == int(key.split("/")[1]) for key, sample in whole.items())


def test_images_that_were_chosen_by_the_hashes_of_their_names_are_shared_out_alike(tmp_path):
    names = sorted((f"{n}.png" for n in range(2000)), key=lambda n: sha256(n.encode()).digest())
    files = dict.fromkeys(names[:200], encoded(0))
    splits = made(tmp_path, files, ShardConfig(val_fraction=0.1)).splits
    assert 5 < splits["val"] < 40


@pytest.mark.parametrize(
    ("fraction", "all_are", "none_are"), [(0.01, "train", "val"), (0.99, "val", "train")]
)
def test_a_fraction_that_leaves_a_split_empty_is_warned_of_with_the_option(
    tmp_path, caplog, fraction, all_are, none_are
):
    files = {f"{n % 2}/{n}.png": encoded(n) for n in range(4)}
    assert made(tmp_path, files, ShardConfig(val_fraction=fraction)).splits == {all_are: 4}
    assert f"at a fraction of {fraction:g} all are {all_are} and none are {none_are}" in caplog.text
    assert "--val-fraction" in caplog.text


def test_a_source_with_splits_keeps_them_and_says_so(tmp_path, caplog):
    with caplog.at_level("INFO", logger="ijepa"):
        result = made(tmp_path, class_folders(4), ShardConfig(val_fraction=0.5))
    assert result.splits == {"train": 8, "val": 8}
    assert "has splits (train, val): none of its images" in caplog.text


# Again, and after a kill


def test_again_is_cached_until_a_file_or_an_option_changes(tmp_path):
    folder = write_files(tmp_path / "images", class_folders(1))
    first = shard(folder, tmp_path / "set", SMALL, CPU)
    again = shard(folder, tmp_path / "set", SMALL, Runtime(workers=2))
    assert again == first.model_copy(update={"cached": True})
    assert not shard(folder, tmp_path / "set", SMALL, Runtime(workers=1, force=True)).cached
    (folder / "val" / "dog" / "0000.png").write_bytes(encoded(99))
    changed = shard(folder, tmp_path / "set", SMALL, CPU)
    assert not changed.cached
    assert changed.fingerprint != first.fingerprint
    other = ShardConfig(splits=("train",))
    assert shard(folder, tmp_path / "set", other, CPU).splits == {"train": 2}


@pytest.fixture(scope="module")
def many_images(tmp_path_factory):
    """Enough for a dozen shards of 100 kB."""
    files = {f"{number:04d}.png": encoded(number, "png", 64, 64) for number in range(100)}
    return write_tar(tmp_path_factory.mktemp("many") / "many.tar", files)


def stop():
    raise KeyboardInterrupt


def kill_workers():
    for helper in psutil.Process().children():
        helper.kill()


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [(stop, KeyboardInterrupt, None), (kill_workers, IjepaError, "want of memory")],
)
def test_a_run_goes_on_with_the_shards_it_has_finished(tmp_path, many_images, act, error, message):
    config, out, pair = ShardConfig(shard_bytes=100_000), tmp_path / "set", Runtime(workers=2)

    def act_once(task, done, *_):
        if task == "shard images" and done:
            act()

    with pytest.raises(error, match=message):
        shard(many_images, out, config, pair, act_once)
    assert not psutil.Process().children()
    assert not out.exists()
    reports = list((tmp_path / "set.partial").glob("*.tar.json"))
    done = {path.stem: path.with_suffix("").stat().st_ino for path in reports}
    assert 1 <= len(done) < shard(many_images, out, config, pair).shards
    assert {name: (out / name).stat().st_ino for name in done} == done
    shard(many_images, tmp_path / "at-once", config, CPU)
    assert digests(out) == digests(tmp_path / "at-once")
    assert not list(out.glob("*.tmp"))


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_ends_at_the_number_of_images(tmp_path, many_images, workers):
    seen, config = [], ShardConfig(shard_bytes=1_000_000)
    runtime = Runtime(workers=workers)
    shard(many_images, tmp_path / "set", config, runtime, lambda *facts: seen.append(facts[:3]))
    done = [done for task, done, _ in seen if task == "shard images"]
    assert done == sorted(done)
    assert seen[-1] == ("shard images", 100, 100)


def test_a_file_that_goes_away_meanwhile_stops_the_run(tmp_path):
    folder = write_files(tmp_path / "images", class_folders(1))

    def remove(task, *_):
        if task == "shard images":
            (folder / "val" / "dog" / "0000.png").unlink(missing_ok=True)

    for workers in (1, 2):
        write_files(folder, class_folders(1))
        with pytest.raises(FileNotFoundError, match=r"0000\.png"):
            shard(folder, tmp_path / "set", SMALL, Runtime(workers=workers), remove)


# Real images


def test_real_images_pass_untouched(tmp_path, test_data):
    name = "imagenet-fullsize-200.tar"
    result = shard(str(test_data / name), tmp_path / "set", ShardConfig(shard_bytes=10**7))
    assert result.shards > 2
    shards = open_shards(tmp_path / "set")
    with tarfile.open(test_data / name) as tar:
        members = {one.name: one for one in tar if not one.name.endswith(".json")}
        assert sum(split.samples for split in shards.splits.values()) == len(members)
        for file, image in images(tmp_path / "set").items():
            assert image == tar.extractfile(members[file]).read()


@pytest.mark.slow
def test_cifar10_of_sixty_thousand_files(tmp_path, test_data):
    result = shard(f"cifar10:{test_data / 'cifar10.tar.gz'}", tmp_path / "set")
    assert result.splits == {"test": 10_000, "train": 50_000}
    train = open_shards(tmp_path / "set").split("train")
    assert np.bincount(train.labels("class")).tolist() == [5_000] * 10


# The command


def ijepa(*words):
    """The command's output."""
    return CliRunner().invoke(app, ["shard", *map(str, words)], catch_exceptions=False).stdout


def test_the_summary_shows_what_was_understood_and_what_was_left_out_and_is_kept(tmp_path):
    files = class_folders(2) | {"train/cat/a.xml": b"", "val/dog/cut.png": encoded(7)[:-80]}
    files["test/deep.tif"] = as_file(Image.fromarray(np.ones((4, 4), np.uint16)), "TIFF")
    write_files(tmp_path / "images", files)
    words = [tmp_path / "images", tmp_path / "set", "--workers", "1", "--max-bad", "1"]
    for state in ("written", "cached"):  # the second time from what is stored
        text = " ".join(ijepa(*words).split())
        assert text.startswith(state)
        assert "test 1, train 4, val 4 in 3 shards" in text
        assert "label class: 2 classes, cat ... dog (train, val only)" in text
        assert "left out: 1 images that do not decode, see bad.jsonl" in text
        assert "left out: 1 .xml files" in text
        assert "changed: 1 images of 16 bits" in text
        assert "changed: 1 images of other formats encoded as PNG" in text
    body = json.loads(ijepa(*words, "--json"))
    index = json.loads((tmp_path / "set/index.json").read_text())
    assert [body[name] for name in ("left_out", "changes")] == [index["left_out"], index["changes"]]
    summary = {"classes": 2, "first": "cat", "last": "dog", "splits": ["train", "val"]}
    assert body["labels"] == {"class": summary}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "path,kind\na.png,\nb.png,cat\nc.png,\n"),
        ("l.jsonl", '{"path": "a.png"}\n{"path": "b.png", "kind": "cat"}\n{"path": "c.png"}\n'),
    ],
)
def test_unknown_labels_get_no_class_file_and_are_counted(tmp_path, name, text):
    write_files(tmp_path, {"a.png": encoded(0), "b.png": encoded(1), "c.png": b"text"})
    (tmp_path / name).write_text(text)
    result = shard(tmp_path / name, tmp_path / "set", ShardConfig(max_bad=1), runtime=CPU)
    undecoded = "images that do not decode, see bad.jsonl"  # counts as nothing else
    assert result.left_out == {undecoded: 1, "labels kind that are not known": 1}
    with tarfile.open(tmp_path / "set" / "train-000000.tar") as tar:
        assert [name for name in tar.getnames() if name.endswith(".cls")] == ["train/b.cls"]
    assert samples(tmp_path / "set")["train/a"].labels == {"kind": -1}


def test_the_command_hands_every_option_on(tmp_path):
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    files = {"train/a.tif": as_file(Image.fromarray(levels), "TIFF"), "test/text.jpg": b"text"}
    write_files(tmp_path / "images", files | {"test/b.png": encoded(0)})
    words = [tmp_path / "images", tmp_path / "set", "--json", "--workers", "1", "--split", "train"]
    words += ["--resize", "4", "--shard-bytes", "1", "--max-bad", "1", "--val-fraction", "0.1"]
    words += ["--exif", "rotate", "--folders-are-classes"]
    body = json.loads(ijepa(*words, "--max-pixels", "64"))
    assert (body["splits"], body["bad"], body["shards"]) == ({"train": 2}, 1, 3)
    assert body["labels"]["class"]["last"] == "train"
    assert decode_rgb(samples(tmp_path / "set")["train/train/a"].image).shape == (4, 4, 3)
    with pytest.raises(IjepaError, match=r"6 x 8 pixels, more than 47.*--max-pixels"):
        ijepa(*words, "--max-pixels", "47")


def test_a_shard_set_is_no_source(tmp_path):
    made(tmp_path, {"a.png": encoded(0)})
    for kind in ("", "webdataset:"):
        with pytest.raises(IjepaError, match=r"holds no (image but .*\.tar files|label)"):
            shard(f"{kind}{tmp_path / 'set'}", tmp_path / "again")


def test_a_labelled_tar_of_others_can_be_scored_and_ours_are_such_tars(tmp_path):
    files = {f"{number:03d}.jpg": encoded(number, "jpg") for number in range(4)}
    files |= {f"{number:03d}.cls": b"%d" % (10 * (number % 2)) for number in range(4)}
    shard(write_tar(tmp_path / "x.tar", dict(sorted(files.items()))), tmp_path / "set")
    split = open_shards(tmp_path / "set").split("train")
    assert split.label_names == {"class": ["0", "10"]}
    shard(tmp_path / "set/train-000000.tar", tmp_path / "again")
    for name in ("set", "again"):
        assert open_shards(tmp_path / name).split("train").labels("class").tolist() == [0, 1, 0, 1]
