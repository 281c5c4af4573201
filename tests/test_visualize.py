"""Mask sheets and drawing: the right numbers, names as text, files that repeat to the byte."""

import io
import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from PIL import Image
from runs import CPU, changed

from ijepa.config import MasksConfig, Runtime
from ijepa.data.shards import SplitReader, open_shards
from ijepa.errors import IjepaError
from ijepa.figures.draw import HIDDEN, Section, Tile, encoded, fitted, keep_patches, sheet, style
from ijepa.jepa.masks import batch_masks, mask_statistics
from ijepa.recipes import load_recipe
from ijepa.train.pretraining import PretrainTask
from ijepa.visualize import visualize

PAPER = load_recipe("in1k_vitb16_ep300", ["data.batch_size=128", "optimization.lr=6e-5"])


def test_the_published_draw_has_the_published_ratios(tmp_path):
    config = MasksConfig(recipe=PAPER, batches=150)
    figures = visualize(tmp_path / "m.png", config).figures
    assert figures["context_patches"] == pytest.approx(51.7, rel=0.04)
    assert figures["target_patches"] == pytest.approx(33.4, rel=0.01)
    assert figures["context_ratio"] == pytest.approx(figures["context_patches"] / 196)
    rarest = figures["rarest_in_context"], figures["rarest_in_target"]
    assert rarest == (0, 0)  # the last row and column


@pytest.mark.parametrize(("batch_size", "batches"), [(2**20, 1), (256, 2**31)])
def test_more_masks_than_fit_into_memory_are_refused_at_once(tmp_path, batch_size, batches):
    recipe = load_recipe("cifar10", [f"data.batch_size={batch_size}"])
    with pytest.raises(IjepaError, match=r"lower --batches or data\.batch_size"):
        visualize(tmp_path / "m.png", MasksConfig(recipe=recipe, batches=batches))


def test_statistics_count_an_image_once_however_many_targets_share_a_patch():
    recipe = load_recipe("scenes-mini")
    statistics = mask_statistics(recipe, 20)
    seen = np.zeros(64)
    for step in range(20):
        for masks in batch_masks(recipe, step):
            for image in range(len(masks.context)):
                seen[np.unique(masks.targets[:, image].numpy())] += 1
    np.testing.assert_allclose(statistics.target_seen.ravel(), seen / (20 * 32))
    assert statistics.context_seen.sum() == pytest.approx(statistics.context_patches)
    assert statistics.largest_target == 12


def test_patches_that_are_kept_are_shown_and_the_rest_is_grey():
    image = np.zeros((8, 16, 3), dtype=np.uint8)
    shown = keep_patches(image, np.array([0, 5]), (2, 4))
    assert (shown[:4, :4] == 0).all()
    assert (shown[4:, 4:8] == 0).all()
    assert (shown == HIDDEN).sum() == 6 * 16 * 3


def drawn(suffix, name="name", *, dark=False):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    with style(dark=dark):
        rows = [[Tile(pixels, (name,), [[(0, 0), (1, 1)]])]]
        return encoded(sheet([Section(name, [["image"]], rows)], [name]), suffix)


def test_a_tile_shows_its_pixels_in_squares():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    with style():
        figure = sheet([Section("", [["a"]], [[Tile(pixels)]])], ["caption"])
        shown = np.asarray(Image.open(io.BytesIO(encoded(figure, ".png"))).convert("RGB"))
    first = np.flatnonzero((shown == pixels[0, 0]).all(axis=2).any(axis=1))[0]
    block = shown[first : first + 192, 20:276]
    np.testing.assert_array_equal(block[16::32, 16::32], pixels)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_pictures_repeat_to_the_byte_and_have_a_dark_twin(suffix, monkeypatch):
    content = drawn(suffix)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)  # the user's own
    assert drawn(suffix) == content != drawn(suffix, dark=True)
    assert b"matplotlib" not in content.lower().replace(b"matplotlib.org", b"")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("$x^2$ a_b {c}", "$x^2$ a_b {c}"),
        ("<b>&amp;</b>", "<b>&amp;</b>"),
        ("\x1b[31mred\x9b\u202e", r"\u001b[31mred\u009b\u202e"),
        ("--> two\nlines", r"--> two\nlines"),
    ],
)
def test_names_are_drawn_as_they_are_stored_and_never_obeyed(name, shown):
    text = drawn(".svg", name).decode()
    texts = [one.text for one in ET.fromstring(text).iter() if one.tag.endswith("}text")]
    assert texts.count(shown) >= 2
    drawn(".png", name)


def test_what_is_too_long_keeps_the_end_that_tells_it_apart():
    key = "train/cat/" + 30 * "0" + "17.png"
    assert fitted("short", 100) == "short"
    assert re.fullmatch(r"\.\.\.0+17\.png", fitted(key, 100))
    assert fitted(key, 100, "start").startswith("train/cat/")


def test_letters_that_the_font_lacks_are_named_once_and_stay_text_in_an_svg(caplog):
    drawn(".png", "café 猫犬猫")
    [message] = [record.getMessage() for record in caplog.records]
    assert "lacks 犬 猫: boxes" in message
    caplog.clear()
    assert "猫犬猫" in drawn(".svg", "猫犬猫").decode()
    assert not caplog.records


def test_a_sheet_of_real_crops_decodes_what_it_shows_and_is_made_once(
    shards, tiny_config, tmp_path, monkeypatch
):
    decoded, read = [], SplitReader.read_image
    monkeypatch.setattr(
        SplitReader, "read_image", lambda self, n: decoded.append(n) or read(self, n)
    )
    out = tmp_path / "masks.png"
    config = MasksConfig(recipe=tiny_config, images=3, batches=2)
    assert not visualize(out, config, shards).cached
    assert len(decoded) == 3
    assert visualize(out, config, shards).cached
    assert not visualize(out, config, shards, runtime=Runtime(force=True)).cached
    with Image.open(out) as picture:
        assert picture.width == 2 * (6 * 154 + 10)


def test_masks_lie_on_the_images_of_the_first_step_also_where_some_are_held_out(
    shards, tiny_config, tmp_path, monkeypatch
):
    held = changed(tiny_config, "watch.held_out=true", "watch.num_images=64")
    images, read = open_shards(shards).split("train"), SplitReader.read_image
    decoded = []
    monkeypatch.setattr(
        SplitReader, "read_image", lambda self, n: decoded.append(n) or read(self, n)
    )
    visualize(tmp_path / "m.png", MasksConfig(recipe=held, images=3, batches=2), shards)
    shown = sorted(decoded)
    batch = next(PretrainTask(held, images, CPU).batches(range(1)))
    assert shown == sorted(batch.numbers[:3].tolist())


def test_masks_that_do_not_fit_leave_no_picture(shards, tmp_path):
    recipe = load_recipe("cifar10", ["encoder.patch_px=16"])
    with pytest.raises(IjepaError, match="do not fit a grid of 2x2"):
        visualize(tmp_path / "m.png", MasksConfig(recipe=recipe))
    with pytest.raises(IjepaError, match="holds 256 images, fewer than one batch of 2,048"):
        visualize(tmp_path / "m.png", MasksConfig(recipe=load_recipe("in1k_vitb16_ep300")), shards)
    assert not list(tmp_path.iterdir())
