"""Mask sheets: the right numbers, and a picture that shows the masks."""

import numpy as np
import pytest
from PIL import Image

from ijepa.config import Runtime
from ijepa.errors import IjepaError
from ijepa.figures.mask_sheet import GAP_PX, HIDDEN, LINE_PX, mask_sheet
from ijepa.jepa.masks import batch_masks, mask_statistics
from ijepa.recipes import load_recipe
from ijepa.visualize import MaskSheetConfig, visualize_masks

PAPER = load_recipe("in1k_vitb16_ep300", ["data.batch_size=128", "optimization.lr=6e-5"])


def test_the_published_draw_has_the_published_ratios(tmp_path):
    figures = visualize_masks(tmp_path / "m.png", MaskSheetConfig(recipe=PAPER, num_batches=150))
    assert figures.context_patches == pytest.approx(51.7, rel=0.04)
    assert figures.target_patches == pytest.approx(33.4, rel=0.01)
    assert figures.context_ratio == pytest.approx(figures.context_patches / 196)
    assert figures.rarest_in_context == figures.rarest_in_target == 0  # the last row and column


@pytest.mark.parametrize(("batch_size", "batches"), [(2**20, 1), (256, 2**40)])
def test_more_masks_than_fit_into_memory_are_refused_at_once(tmp_path, batch_size, batches):
    recipe = load_recipe("cifar10", [f"data.batch_size={batch_size}"])
    with pytest.raises(IjepaError, match=r"lower --batches or data\.batch_size"):
        visualize_masks(tmp_path / "m.png", MaskSheetConfig(recipe=recipe, num_batches=batches))


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


def test_the_sheet_shows_the_context_and_hides_the_rest():
    [masks] = batch_masks(load_recipe("scenes-mini"), 0)
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    maps = {"a": np.ones((8, 8)), "b": np.eye(8)}
    sheet = np.asarray(mask_sheet((8, 8), [picture], masks.images(slice(1)), maps, ["caption"]))
    tile, top = 168, LINE_PX + GAP_PX + LINE_PX
    context = sheet[top : top + tile, 2 * GAP_PX + tile : 2 * GAP_PX + 2 * tile]
    centres = context[10::21, 10::21].reshape(64, 3)
    seen = np.flatnonzero((centres == 0).all(axis=1))
    assert seen.tolist() == masks.context[0].tolist()
    assert (np.delete(centres, seen, axis=0) == HIDDEN).all()


def test_a_sheet_of_real_crops_is_made_once(shards, tiny_config, tmp_path):
    out = tmp_path / "masks.png"
    config = MaskSheetConfig(recipe=tiny_config, num_images=3, num_batches=2)
    assert not visualize_masks(out, config, shards).cached
    assert visualize_masks(out, config, shards).cached
    assert not visualize_masks(out, config, shards, Runtime(force=True)).cached
    with Image.open(out) as picture:
        assert picture.size == (6 * 178 + 10, 3 * 178 + 178 + 4 * LINE_PX + 32)


def test_masks_that_do_not_fit_leave_no_picture(tmp_path):
    recipe = load_recipe("cifar10", ["encoder.patch_px=16"])
    with pytest.raises(IjepaError, match="do not fit a grid of 2x2"):
        visualize_masks(tmp_path / "m.png", MaskSheetConfig(recipe=recipe))
    assert not list(tmp_path.iterdir())
