"""Masks: what always holds, and what the published sampler does."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ijepa.config import MultiblockMasks
from ijepa.errors import IjepaError
from ijepa.jepa.masks import check_masks, possible_sizes, sample_masks

side = st.integers(6, 20)
seed = st.integers(0, 2**32 - 1)
draw = st.sampled_from(["published", "symmetric"])


def config_for(draw):
    return MultiblockMasks(draw=draw, min_keep=3)


def sees_a_target(masks):
    """Does the context of any image see one of its targets?"""
    pairs = zip(masks.context.numpy(), masks.targets.permute(1, 0, 2).numpy(), strict=True)
    return any(np.isin(context, targets).any() for context, targets in pairs)


@given(rows=side, columns=side, seed=seed, draw=draw)
@settings(max_examples=60)
def test_masks_are_sorted_in_the_grid_and_symmetric_contexts_large_enough_without_a_target(
    rows, columns, seed, draw
):
    config = config_for(draw)
    [masks] = sample_masks((rows, columns), 16, config, np.random.default_rng(seed))
    for patches in (masks.context.numpy(), *masks.targets.numpy()):
        assert patches.dtype == np.int64
        assert patches.min() >= 0
        assert patches.max() < rows * columns
        assert (np.diff(patches, axis=1) > 0).all()  # without repeats
    assert masks.context.shape[1] > config.min_keep
    assert draw == "published" or not sees_a_target(masks)


@given(seed=seed)
@settings(max_examples=40)
def test_the_published_context_never_sees_a_target_on_the_papers_grid_and_repeats_itself(seed):
    masks, again = (
        sample_masks((14, 14), 32, MultiblockMasks(), np.random.default_rng(seed))[0]
        for _ in range(2)
    )
    assert not sees_a_target(masks)
    assert torch.equal(masks.context, again.context)
    assert torch.equal(masks.targets, again.targets)


@given(seed=seed, draw=draw)
@settings(max_examples=40)
def test_targets_are_filled_rectangles_of_one_size_for_the_batch(seed, draw):
    grid, config = (14, 14), config_for(draw)
    targets = sample_masks(grid, 8, config, np.random.default_rng(seed))[0].targets.numpy()
    rows, columns = targets // grid[1], targets % grid[1]
    heights = rows.max(-1) - rows.min(-1) + 1
    widths = columns.max(-1) - columns.min(-1) + 1
    assert (heights == heights[0, 0]).all()
    assert (widths == widths[0, 0]).all()
    assert (heights * widths == targets.shape[-1]).all()
    sizes = possible_sizes(grid, config.target_scale, config.target_aspect, draw)
    assert (heights[0, 0], widths[0, 0]) in sizes


@given(rows=st.integers(2, 12), columns=st.integers(2, 12), seed=seed, draw=draw)
@settings(max_examples=100)
def test_sampling_ends_on_every_grid_that_the_check_lets_through(rows, columns, seed, draw):
    config = MultiblockMasks(draw=draw, min_keep=4)
    try:
        check_masks((rows, columns), config)
    except IjepaError:
        return
    [masks] = sample_masks((rows, columns), 8, config, np.random.default_rng(seed))
    assert masks.context.shape[1] > config.min_keep


def test_crowded_grids_end_with_all_targets_in_one_place():
    config = MultiblockMasks(draw="symmetric", min_keep=45, context_scale=(1.0, 1.0))
    [masks] = sample_masks((8, 8), 4, config, np.random.default_rng(0))  # one of 13 just fits in 64
    assert masks.context.shape[1] > 45


@pytest.mark.parametrize("draw", ["symmetric", "published"])
def test_a_context_that_is_too_small_after_all_rounds_is_refused(draw):
    """`check_masks` would not have let this grid through."""
    config = MultiblockMasks(draw=draw, min_keep=60)
    with pytest.raises(IjepaError, match=r"8x8 patches leave a context fewer than the 61 patches"):
        sample_masks((8, 8), 4, config, np.random.default_rng(0))


def coverage(draw, batches=150):
    """How often each patch of a 14x14 grid is seen, as context and as target."""
    seen = {"context": np.zeros(196), "targets": np.zeros(196)}
    for step in range(batches):
        rng = np.random.default_rng([7, step])
        [masks] = sample_masks((14, 14), 64, MultiblockMasks(draw=draw), rng)
        for name, patches in masks._asdict().items():
            seen[name] += np.bincount(patches.numpy().ravel(), minlength=196)
    return {name: (counts / counts.sum()).reshape(14, 14) for name, counts in seen.items()}


def test_published_masks_never_reach_the_last_row_and_column_and_see_mostly_the_top():
    shares = coverage("published")
    for share in shares.values():
        assert share[-1].sum() == share[:, -1].sum() == 0
    published = [0.20, 0.16, 0.13, 0.10, 0.07, 0.06, 0.05, 0.05, 0.05, 0.05, 0.04, 0.02, 0.005, 0]
    # The recorded shares are for 128 images a batch; 64 cut a little later.
    np.testing.assert_allclose(shares["context"].sum(axis=1), published, atol=0.02)


def test_symmetric_masks_reach_every_patch_and_prefer_no_side():
    for share in coverage("symmetric").values():
        assert share.min() > 0
        np.testing.assert_allclose(share, share[::-1], atol=6e-4)
        np.testing.assert_allclose(share, share[:, ::-1], atol=6e-4)


@pytest.mark.parametrize(
    ("grid", "context", "target"), [((14, 14), 51.7, 33.4), ((16, 16), 68.1, 44.6)]
)
def test_published_masks_have_the_published_sizes(grid, context, target):
    sizes = []
    for step in range(300):
        [masks] = sample_masks(grid, 128, MultiblockMasks(), np.random.default_rng([1, step]))
        sizes.append((masks.context.shape[1], masks.targets.shape[2]))
    assert np.mean(sizes, axis=0) == pytest.approx((context, target), rel=0.04)


def test_published_block_sizes_are_the_five_of_the_papers_grid():
    sizes = possible_sizes((14, 14), (0.15, 0.2), (0.75, 1.5), "published")
    assert sizes == {(5, 6), (6, 5), (6, 6), (7, 5), (8, 5)}
