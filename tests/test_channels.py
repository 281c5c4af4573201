"""Images that are not 8-bit RGB: read as they are, measured, trained on, evaluated and shown."""

import contextlib
import io
import json
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from gratings import CLASSES, SIDE_PX, gratings
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import write_files, write_tar
from PIL import Image
from runs import CPU

from ijepa.config import (
    AttentionConfig,
    ConvertConfig,
    DataConfig,
    ExtractConfig,
    FinetuneConfig,
    MasksConfig,
    NeighborsConfig,
    PcaConfig,
    PixelStats,
    ProbeConfig,
    RetrievalConfig,
    Runtime,
    ShardConfig,
)
from ijepa.convert import convert
from ijepa.data.decode import decode_image, read_pixels
from ijepa.data.loader import CachedCropBatches, RandomCropBatches, StepPlan, batches
from ijepa.data.shards import open_shards
from ijepa.encoders.formats import read_networks
from ijepa.encoders.spec import load_encoder
from ijepa.errors import IjepaError
from ijepa.extract import extract
from ijepa.features.store import open_features
from ijepa.finetune import finetune
from ijepa.jepa.augment import evaluation_crop, normalise, resize_box
from ijepa.jepa.flops import step_flops
from ijepa.jepa.model import build_ijepa
from ijepa.jepa.vit import adapt_channels, adaptation
from ijepa.pretrain import auto_recipe, plan_pretrain, pretrain
from ijepa.probe import probe
from ijepa.recipes import begun_with, load_recipe
from ijepa.shard import shard
from ijepa.visualize import visualize
from ijepa.visualize.images import shown

tifffile = pytest.importorskip("tifffile")  # of extras channels and dev
imagecodecs = pytest.importorskip("imagecodecs")  # likewise
CHANNELS = 8
AGAIN = Runtime(device="cpu", workers=0, force=True)
TINY = ["encoder.arch=32x2x2", "predictor.dim=16", "predictor.depth=1", "data.batch_size=16",
        "optimization.epochs=1", "optimization.warmup_epochs=0.5",
        "watch.num_images=16"]  # fmt: skip


def deep_gratings(count, seed):
    """(count, 32, 32, 8) uint16: the gratings, dim, each channel mirrored otherwise and brighter.

    Channels of one image share its orientation up to a mirror, so that no channel is another's.
    """
    images, classes = gratings(count, seed)
    grey = images.mean(axis=3).astype(np.float32)[..., None]
    noise = np.random.default_rng(seed + 1).normal(0, 20, (*grey.shape[:3], CHANNELS))
    values = 3000 + 500 * np.arange(CHANNELS) + 8 * (grey + noise)
    return values.clip(0, 65535).astype(np.uint16), classes


def write_images(folder, split, pixels, classes):
    for number, (one, label) in enumerate(zip(pixels, classes, strict=True)):
        path = folder / split / f"orientation{label}" / f"{number:05d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, one)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Folder of images, and a shard set of 48 + 24 of eight channels of 16 bits."""
    folder = tmp_path_factory.mktemp("deep")
    write_images(folder / "images", "train", *deep_gratings(48, seed=0))
    write_images(folder / "images", "val", *deep_gratings(24, seed=1))
    shard(folder / "images", folder / "shards", ShardConfig(channels=CHANNELS), CPU)
    return folder


@pytest.fixture(scope="module")
def deep_run(deep):
    """A run of three steps on `deep`."""
    pretrain(deep / "shards", deep / "run", load_recipe("cifar10", TINY), CPU)
    return deep / "run"


@pytest.fixture(scope="module")
def rgb_run(deep):
    """A run of one step on RGB images of the same size."""
    for number, pixels in enumerate(gratings(16, seed=4)[0]):
        path = deep / "rgb" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    shard(deep / "rgb", deep / "rgb-shards", runtime=CPU)
    pretrain(deep / "rgb-shards", deep / "rgb-run", load_recipe("cifar10", TINY), CPU)
    return deep / "rgb-run"


def as_npy(pixels):
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def as_tiff(pixels, **how):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **how)
    return file.getvalue()


def one_by_one(pages):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(page)
    return file.getvalue()


def some(dtype, shape=(9, 12, 8)):
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, shape) if dtype.startswith("float") else rng.integers(0, 200, shape)
    return values.astype(dtype)


WIDE, GREY, COLOUR = some("uint16"), some("uint16", (9, 12)), some("uint16", (9, 12, 3))
FIRST = np.ascontiguousarray(np.moveaxis(WIDE, -1, 0))
FILES = {
    "npy": (as_npy(WIDE), WIDE),
    "npy, channels first": (as_npy(FIRST), WIDE),
    "npy in Fortran's order": (as_npy(np.asfortranarray(WIDE)), WIDE),
    "npy, big-endian": (as_npy(WIDE.astype(">u2")), WIDE),
    "npy, a batch of one": (as_npy(WIDE[np.newaxis]), WIDE),
    "npy of one channel": (as_npy(GREY), GREY[..., None]),
    "signed": (as_npy(-some("int16")), -some("int16")),
    "half": (as_npy(some("float16")), some("float16")),
    "double": (as_npy(some("float64")), some("float64").astype("float32")),
    "bytes": (as_npy(some("uint8")), some("uint8")),
    "TIFF, interleaved": (as_tiff(WIDE, photometric="minisblack", planarconfig="contig"), WIDE),
    "TIFF, planes": (as_tiff(FIRST, photometric="minisblack", planarconfig="separate"), WIDE),
    "TIFF, pages": (as_tiff(FIRST, photometric="minisblack"), WIDE),
    "TIFF, pages one by one": (one_by_one(FIRST), WIDE),
    "TIFF, big-endian": (as_tiff(FIRST, byteorder=">"), WIDE),
    "TIFF, LZW": (as_tiff(WIDE, photometric="minisblack", compression="lzw"), WIDE),
    "TIFF of floats": (as_tiff(some("float32", (8, 9, 12))), np.moveaxis(
        some("float32", (8, 9, 12)), 0, -1)),
    "16-bit PNG in colour": (imagecodecs.png_encode(COLOUR), COLOUR),
    "16-bit PNG in grey": (imagecodecs.png_encode(GREY), GREY[..., None]),
    "8-bit PNG": (imagecodecs.png_encode(some("uint8", (9, 12, 4))), some("uint8", (9, 12, 4))),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_read_in_its_stored_depth(kind):
    content, expected = FILES[kind]
    found, _ = read_pixels(content, expected.shape[2])
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def claiming(shape, dtype="<u2"):
    """The header of an array that holds nothing."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


BAD = {
    "pixels of shape (9, 12, 8), expected 4 channels": (FILES["npy"][0], 4),
    "pixels of shape (9, 12, 3), expected 8 channels": (FILES["16-bit PNG in colour"][0], 8),
    "first and last axis could both be": (as_npy(some("uint16", (8, 12, 8))), 8),
    "pixels of shape (2, 9, 12, 8), expected 8 channels": (as_npy(np.stack([WIDE, WIDE])), 8),
    "pixels of shape (0, 12, 8)": (as_npy(WIDE[:0]), 8),
    "pixels of int64, expected uint8, uint16, int16": (as_npy(some("int64")), 8),
    "pixels of complex64": (as_npy(some("float32").astype("complex64")), 8),
    "values that are not finite": (as_npy(np.full((4, 4, 1), np.nan, np.float32)), 1),
    "finite or beyond 1e+09": (as_npy(np.full((4, 4, 1), np.inf, np.float16)), 1),
    "or beyond 1e+09": (as_npy(np.full((4, 4, 1), -3e38, np.float32)), 1),
    "does not decode: buffer is smaller": (claiming((10**6, 10**6, 8)), 8),
    "does not decode: cannot create an OBJECT array": (claiming((4, 4, 8), "|O"), 8),
    "does not decode: failed to read": (FILES["TIFF, interleaved"][0][:1000], 8),
    "not an image (4 bytes)": (b"text", 8),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_file_that_cannot_be_taken_has_one_short_reason(reason):
    content, channels = BAD[reason]
    with pytest.raises(IjepaError) as caught:
        read_pixels(content, channels)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_claims_too_many_pixels_is_not_decoded():
    for content in (FILES["TIFF, pages"][0], FILES["npy"][0], FILES["16-bit PNG in colour"][0]):
        with pytest.raises(IjepaError, match=r"(12 x 9|9 x 12) pixels, more than 100"):
            read_pixels(content, 3 if content[:4] == b"\x89PNG" else 8, max_pixels=100)


def test_the_axis_of_the_channels_can_be_named():
    square = some("uint16", (8, 12, 8))
    for axis, expected in (("last", square), ("first", np.moveaxis(square, 0, -1))):
        np.testing.assert_array_equal(read_pixels(as_npy(square), 8, axis)[0], expected)


@settings(max_examples=40)
@given(st.sampled_from(sorted(FILES)), st.integers(0, 700), st.binary(max_size=6))
def test_a_damaged_file_never_ends_in_another_error(kind, place, put):
    content, expected = FILES[kind]
    damaged = content[:place] + put + content[place + len(put) :]
    for one in (damaged, content[:place]):
        with contextlib.suppress(IjepaError):
            read_pixels(one, expected.shape[2])


def test_a_shard_set_holds_the_images_and_measures_them_as_training_sees_them(deep):
    data = open_shards(deep / "shards")
    train, classes = deep_gratings(48, seed=0)
    reader, stats = data.split("train"), data.pixels
    found = {key: decode_image(reader.read_image(n)) for n, key in enumerate(reader.keys())}
    for number, label in enumerate(classes):
        key = f"train/orientation{label}/{number:05d}"
        np.testing.assert_array_equal(found[key], train[number])
    assert (stats.channels, stats.dtype, stats.images) == (CHANNELS, "uint16", 48)
    np.testing.assert_allclose(stats.mean, train.mean((0, 1, 2)) / 65535, rtol=1e-9)
    np.testing.assert_allclose(stats.std, train.reshape(-1, 8).std(0) / 65535, rtol=1e-6)
    views = torch.cat([resize_box(one, (0, 0, 32, 32), 32) for one in train])
    seen = normalise(views, stats.mean, stats.std)
    assert seen.mean((0, 2, 3)).abs().max() < 1e-3
    assert (seen.std((0, 2, 3)) - 1).abs().max() < 1e-3
    image, labels = reader[0]
    assert image.shape == (SIDE_PX, SIDE_PX, CHANNELS)
    assert list(labels) == ["class"]


def test_the_number_of_shards_and_processes_does_not_change_what_is_measured(deep, tmp_path):
    config = ShardConfig(channels=CHANNELS, shard_bytes=2**18)
    made = shard(deep / "images", tmp_path / "set", config, Runtime(workers=2))
    one = open_shards(deep / "shards").pixels
    assert made.shards > 2
    np.testing.assert_allclose(made.pixels.mean, one.mean, rtol=1e-12)
    np.testing.assert_allclose(made.pixels.std, one.std, rtol=1e-9)


def test_images_are_shrunk_in_their_depth(tmp_path):
    ramp = np.linspace(0, 60000, 64).astype(np.uint16)[None, :, None].repeat(64, 0).repeat(2, 2)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", ramp)
    shard(tmp_path / "in", tmp_path / "out", ShardConfig(channels=2, resize_px=16), CPU)
    small = decode_image(open_shards(tmp_path / "out").split("train").read_image(0))
    assert (small.shape, small.dtype) == ((16, 16, 2), np.uint16)
    expected = ramp.reshape(16, 4, 16, 4, 2).mean((1, 3))
    np.testing.assert_allclose(small[:, 1:-1], expected[:, 1:-1], atol=200)  # of 60,000


def test_images_of_two_types_are_refused_also_across_shards(tmp_path):
    for name, dtype in (("a", "uint16"), ("b", "float32")):
        (tmp_path / "in" / "train" / name).mkdir(parents=True)
        np.save(tmp_path / "in" / "train" / name / "0.npy", some(dtype))
    for size in (2**20, 1):
        config = ShardConfig(channels=8, shard_bytes=size)
        with pytest.raises(IjepaError, match=r"b/0.npy has pixels of float32, .*a/0.npy of uint16"):
            shard(tmp_path / "in", tmp_path / f"out{size}", config, CPU)
        assert not (tmp_path / f"out{size}").exists()
    config = ShardConfig(channels=8, max_bad=9)  # a whole image is not left out for its type
    with pytest.raises(IjepaError, match=r"b/0.npy has pixels of float32"):
        shard(tmp_path / "in", tmp_path / "out", config, CPU)


def test_arrays_beside_an_archive_are_not_passed_over(tmp_path):
    write_files(tmp_path / "in", {"a.npy": as_npy(WIDE)})
    write_tar(tmp_path / "in" / "more.tar", {"b.npy": as_npy(WIDE)})
    made = shard(tmp_path / "in", tmp_path / "out", ShardConfig(channels=8), CPU)
    assert (made.splits, made.left_out) == ({"train": 1}, {".tar files": 1})


def test_a_constant_channel_has_a_deviation_of_one(tmp_path):
    (tmp_path / "in").mkdir()
    pixels = some("float32", (16, 16, 2))
    pixels[..., 1] = 7
    np.save(tmp_path / "in" / "a.npy", pixels)
    made = shard(tmp_path / "in", tmp_path / "out", ShardConfig(channels=2), CPU)
    assert made.pixels.std[1] == 1.0
    assert made.pixels.mean[1] == pytest.approx(7)


@pytest.mark.parametrize("words", [
    {"channels": 4, "exif": "rotate"},
    {"channel_axis": "first"}, {"channels": 17},
])  # fmt: skip
def test_options_that_contradict_each_other_are_refused(words):
    with pytest.raises(ValueError, match="channel"):
        ShardConfig(**words)


def test_crops_of_sixteen_bits_are_those_of_eight_bits_but_finer():
    rgb = gratings(1, seed=3)[0][0]
    deep = rgb.astype(np.uint16) * 257
    for make in (
        lambda image: resize_box(image, (3, 5, 20, 24), 16),
        lambda image: evaluation_crop(image, 16, 7 / 8),
    ):
        ours, eight = make(deep), make(rgb)
        assert (ours.dtype, ours.shape) == (torch.float32, eight.shape)
        assert (ours * 255 - eight).abs().max() < 1.01


def test_cached_crops_are_those_that_are_read(deep):
    reader = open_shards(deep / "shards").split("train")
    plan = StepPlan(len(reader), DataConfig(image_px=16, batch_size=8, flip=True), seed=0)
    read = RandomCropBatches(reader, plan)[1].images
    cached = CachedCropBatches(reader, plan, torch.device("cpu"), 1)[1].images
    assert read.shape == (8, CHANNELS, 16, 16)
    torch.testing.assert_close(cached, read, atol=1e-5, rtol=0)
    [carried] = batches(RandomCropBatches(reader, plan), [1], workers=1)  # by another process
    assert torch.equal(carried.images, read)


@given(st.integers(1, 16))
def test_equal_channels_give_adapted_weights_the_tokens_of_grey_images(channels):
    generator = torch.Generator().manual_seed(0)
    weight, grey = torch.randn(4, 3, 2, 2, generator=generator), torch.randn(1, 1, 2, 2)
    rgb = torch.conv2d(grey.expand(1, 3, 2, 2), weight)
    adapted = torch.conv2d(grey.expand(1, channels, 2, 2), adapt_channels(weight, channels))
    torch.testing.assert_close(adapted, rgb, atol=1e-4, rtol=1e-4)


STATS = PixelStats(channels=4, dtype="uint16", mean=(0.1,) * 4, std=(0.2,) * 4, images=9)


def test_a_recipe_takes_channels_mean_and_deviation_of_the_images():
    plain = DataConfig()
    assert plain.fitted(None) == plain
    assert DataConfig(channels=3).fitted(None) == plain
    fitted = plain.fitted(STATS)
    assert (fitted.channels, fitted.mean, fitted.std) == (4, STATS.mean, STATS.std)
    assert fitted.fitted(STATS) == fitted
    assert DataConfig.model_validate(fitted.model_dump(mode="json")) == fitted
    own = DataConfig(channels=4, mean=(0.5,) * 4).fitted(STATS)
    assert (own.mean, own.std) == ((0.5,) * 4, STATS.std)
    for channels, pixels in ((8, STATS), (4, None)):
        with pytest.raises(IjepaError, match=rf"data\.channels is {channels}"):
            DataConfig(channels=channels).fitted(pixels, "shards/x")
    with pytest.raises(ValueError, match=r"data\.mean has 4 numbers for 3 channels"):
        DataConfig(mean=(0.5,) * 4)


def test_a_run_of_other_channels_costs_and_predicts_as_many():
    config = load_recipe("cifar10", TINY)
    deep = config.model_copy(update={"data": config.data.fitted(STATS)})
    more = step_flops(deep, 40, 10)[0] - step_flops(config, 40, 10)[0]
    assert more == 64 * 2 * (4 - 3) * 4**2 * 32  # 64 patches of 4 px, 32 wide
    pixels = load_recipe("cifar10", [*TINY, "targets.space=pixels"])
    pixels = pixels.model_copy(update={"data": pixels.data.fitted(STATS)})
    assert build_ijepa(pixels).predictor.predictor_proj.out_features == 4 * 4**2


def test_a_run_takes_what_its_images_are_and_goes_by_it_later(deep, deep_run):
    config = load_recipe(deep_run / "config.yaml")
    stats = open_shards(deep / "shards").pixels
    assert (config.data.channels, config.data.mean) == (CHANNELS, stats.mean)
    assert pretrain(deep / "shards", deep_run, config, CPU).cached
    assert pretrain(deep / "shards", deep_run, load_recipe("cifar10", TINY), CPU).cached
    assert plan_pretrain(deep / "shards", load_recipe("cifar10", TINY), CPU).steps == 3
    with pytest.raises(IjepaError, match=r"8 channels, and data\.channels is 4; leave it"):
        pretrain(deep / "shards", deep / "x", load_recipe("cifar10", ["data.channels=4"]), CPU)
    recipe, chosen, *_ = auto_recipe(deep / "shards", deep / "none")
    assert recipe == "cifar10"
    body = chosen.model_dump(mode="json")
    filled_in = {"channels", "mean", "std"}
    body["data"] |= config.data.model_dump(mode="json", include=filled_in)
    (deep / "begun.yaml").write_text(json.dumps(body))
    assert begun_with(deep / "begun.yaml", 48).recipe == "cifar10"


@pytest.fixture(scope="module")
def features(deep, deep_run):
    extract(
        deep / "shards",
        deep / "val.h5",
        ExtractConfig(encoder=str(deep_run), split="val", dtype="float32", tokens=True),
        CPU,
    )
    return deep / "val.h5"  # fmt: skip


def test_features_are_those_of_encode_on_files_and_arrays(deep, deep_run, features):
    with open_features(features) as stored:
        keys, values = list(stored.keys), stored.numpy()
    encoder = load_encoder(deep_run)
    paths = [deep / "images" / f"{key}.npy" for key in keys]
    for images in (paths, [np.load(path) for path in paths]):
        np.testing.assert_allclose(encoder.encode(images), values, atol=2e-4)
    with pytest.raises(IjepaError, match=r"\(height, width, 8\) arrays, not an array of shape"):
        encoder.encode(np.zeros((8, 8, 3), np.uint8))
    Image.new("RGB", (8, 8)).save(deep / "small.png")
    with pytest.raises(IjepaError, match=r"small.png: pixels of shape \(8, 8, 3\), expected 8 cha"):
        encoder.encode(deep / "small.png")


def test_encoders_go_to_timm_and_back_and_to_transformers_not_at_all(deep, deep_run, tmp_path):
    convert(deep_run, tmp_path / "timm", ConvertConfig(to="timm"), CPU)
    view = deep_gratings(2, seed=9)[0]
    ours = load_encoder(deep_run)
    images = torch.stack([ours.transform(one) for one in view])
    side, card = ours.data.image_px, (tmp_path / "timm" / "README.md").read_text()
    assert f"torch.randn(1, {CHANNELS}, {side}, {side})" in card
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    torch.testing.assert_close(theirs(images), ours(images), atol=1e-5, rtol=1e-4)
    back = read_networks(tmp_path / "timm").config.data
    assert (back.channels, back.mean) == (CHANNELS, ours.data.mean)
    for to in ("published", "ours"):
        convert(deep_run, tmp_path / f"{to}.pt", ConvertConfig(to=to), CPU)
        again = load_encoder(tmp_path / f"{to}.pt")
        assert torch.equal(again(images), ours(images))
    with pytest.raises(IjepaError, match="8 channels; the image processors of"):
        convert(deep_run, tmp_path / "hf", ConvertConfig(to="hf"), CPU)


def test_rgb_weights_are_adapted_said_and_recorded(deep, rgb_run, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ijepa"):
        choice = ExtractConfig(encoder=str(rgb_run), split="val")
        extract(deep / "shards", tmp_path / "v.h5", choice, CPU)
    how = "RGB weights to 8 channels, each the mean over R, G, B times 3/8"
    assert f"with their mean and std, adapting its {how}" in caplog.text
    assert adaptation(1) == "RGB weights to 1 channel, the mean over R, G, B times 3/1"
    stats = open_shards(deep / "shards").pixels
    plain, adapted = load_encoder(rgb_run), load_encoder(rgb_run, pixels=stats)
    assert adapted.weights_sha256 != plain.weights_sha256
    with open_features(tmp_path / "v.h5") as stored:
        assert stored.header.provenance.adapted == how
        assert stored.header.weights_sha256 == adapted.weights_sha256
    weight = adapted.network.patch_embed.proj.weight
    assert torch.equal(weight, adapt_channels(plain.network.patch_embed.proj.weight, CHANNELS))
    recipe = load_recipe("cifar10", TINY)
    pretrain(deep / "shards", tmp_path / "run", recipe, CPU, init=rgb_run)
    assert json.loads((tmp_path / "run" / "stage.json").read_text())["adapted"] == how
    assert load_encoder(tmp_path / "run").provenance.adapted == how


def test_weights_of_other_channels_than_rgb_start_no_run_of_others(
    deep, rgb_run, deep_run, tmp_path
):
    recipe = load_recipe("cifar10", TINY)
    with pytest.raises(
        IjepaError, match=r"weights are for images of 8 channels, and data\.channels"
    ):
        pretrain(deep / "rgb-shards", tmp_path / "run", recipe, CPU, init=deep_run)


def test_an_encoder_of_other_channels_is_refused_in_one_line(deep, deep_run, rgb_run, tmp_path):
    choice = ExtractConfig(encoder=str(deep_run))
    with pytest.raises(IjepaError, match=r"takes images of 8 channels, and .*rgb-shards has 3; na"):
        extract(deep / "rgb-shards", tmp_path / "x.h5", choice, CPU)
    with pytest.raises(IjepaError, match=r"takes images of 3 channels; .*shards has 8"):
        open_shards(deep / "shards").check_channels(3, "a run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_networks_of_timm_are_adapted_too(name, tmp_path):
    torch.save(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "w.pt")
    encoder = load_encoder(f"timm:{name}@{tmp_path / 'w.pt'}", pixels=STATS)
    assert encoder.features(torch.zeros(1, 4, 224, 224)).shape == (1, 1, encoder.dim)


def test_baselines_have_as_many_channels(deep, tmp_path):
    for name, dim in (("pixels", 8 * 16 * 16), ("random:32x2x2/4@32", 32)):
        choice = ExtractConfig(encoder=name, split="val")
        made = extract(deep / "shards", tmp_path / "x.h5", choice, AGAIN)
        assert made.dim == dim
    weight = load_encoder("random:32x2x2/4@32", pixels=STATS).network.patch_embed.proj.weight
    assert weight.shape[1] == 4
    assert not torch.equal(weight[:, 0], weight[:, 1])  # drawn, not adapted


@pytest.mark.slow
def test_pictures_show_the_channels_that_are_named(deep, deep_run, features, tmp_path):
    recipe = load_recipe("cifar10", [*TINY, "data.batch_size=4"])
    made = [
        (MasksConfig(recipe=recipe, images=2, batches=2, show_channels=(8, 2, 1)), ()),
        (AttentionConfig(encoder=(str(deep_run),), split="val", images=1), ()),
        (PcaConfig(encoder=(str(deep_run),), split="val", images=2, batch=4), ()),
        (NeighborsConfig(queries=2, neighbors=2, show_channels=(5, 5, 5)), (features,)),
        (
            RetrievalConfig(
                encoder=(str(deep_run),), split="val", images=1, measured=2, store_images=4
            ),
            (),
        ),
    ]
    for number, (config, stores) in enumerate(made):
        out = tmp_path / f"{number}.svg"
        visualize(out, config, deep / "shards", stores, CPU)
        shown = config.show_channels or (1, 2, 3)
        written = " ".join(re.sub("<[^>]*>", " ", out.read_text()).split())
        assert f"Channels {', '.join(map(str, shown))} as red" in written
    for channels, data in (((9, 1, 1), deep / "shards"), ((1, 1, 1), None)):
        config = MasksConfig(recipe=recipe, show_channels=channels)
        with pytest.raises(IjepaError, match="--show-channels names"):
            visualize(tmp_path / "bad.png", config, data, runtime=CPU)


def test_a_shown_pixel_is_black_two_deviations_below_the_mean_and_white_two_above(deep):
    data = SimpleNamespace(pixels=STATS)
    levels = np.array([0.1 - 0.4, 0.1, 0.1 + 0.4, 2.0], np.float32)
    pixels = shown(levels[:, None].repeat(4, 1), SimpleNamespace(data=data, channels=(4, 1, 1)))
    assert pixels.tolist() == [[0] * 3, [128] * 3, [255] * 3, [255] * 3]
    rgb = np.arange(6, dtype=np.uint8).reshape(2, 3)
    plain = SimpleNamespace(data=SimpleNamespace(pixels=None), channels=None)
    assert shown(rgb, plain) is rgb


def test_fine_tuning_leaves_randaugment_out_and_says_so(deep, deep_run, tmp_path, caplog):
    config = FinetuneConfig(encoder=str(deep_run), epochs=1, batch_size=16, warmup_epochs=0.5)
    with caplog.at_level(logging.WARNING, "ijepa"):
        (score,) = finetune(deep / "shards", tmp_path / "out", config, CPU).scores
    assert "RandAugment is left out" in caplog.text
    assert any("randaugment" in one for one in score.deviations)


@pytest.mark.slow
def test_training_on_eight_channels_beats_pixels_and_chance(tmp_path):
    write_images(tmp_path / "images", "train", *deep_gratings(2000, seed=0))
    write_images(tmp_path / "images", "val", *deep_gratings(600, seed=1))
    shard(tmp_path / "images", tmp_path / "shards", ShardConfig(channels=CHANNELS), CPU)
    recipe = load_recipe("cifar10", [
        "data.crop_scale=[0.6, 1.0]", "data.flip=false", "data.batch_size=32",
        "encoder.arch=64x2x4", "predictor.dim=32", "predictor.depth=1", "optimization.epochs=4",
        "optimization.warmup_epochs=0.5", "optimization.lr=2e-3", "optimization.ema=[0.98, 1.0]",
    ])  # fmt: skip
    pretrain(tmp_path / "shards", tmp_path / "run", recipe, CPU)
    right = {}
    for name in (str(tmp_path / "run"), "pixels"):
        for split in ("train", "val"):
            out = tmp_path / f"{split}.h5"
            extract(tmp_path / "shards", out, ExtractConfig(encoder=name, split=split),
                    AGAIN)  # fmt: skip
        pair = (tmp_path / "train.h5", tmp_path / "val.h5")
        done = probe(pair, (), tmp_path / "r.json", ProbeConfig(), AGAIN)
        right[name] = done.scores[0]
    trained, pixels = right.values()
    assert trained.top1_interval[0] > 2 / CLASSES
    assert trained.top1_interval[0] > pixels.top1_interval[1]
