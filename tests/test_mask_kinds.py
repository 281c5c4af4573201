"""Masks of every kind, and the groups over which contexts are cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ijepa.config import BlockMasks, MultiblockMasks, RandomMasks, RasterizedMasks
from ijepa.errors import IjepaError
from ijepa.method.masking import check_masks, sample_masks
from ijepa.method.training import micro_batches

seed = st.integers(0, 2**32 - 1)
draw = st.sampled_from(["published", "symmetric"])
kind = st.sampled_from([RasterizedMasks, BlockMasks, RandomMasks])
GRID = (8, 10)


@given(kind=kind, draw=draw, seed=seed)
@settings(max_examples=60, deadline=None)
def test_context_and_targets_divide_the_image_and_never_overlap(kind, draw, seed):
    [masks] = sample_masks(GRID, 6, kind(draw=draw), np.random.default_rng(seed))
    targets = masks.targets.permute(1, 0, 2).flatten(1)
    patches = torch.cat([masks.context, targets], dim=1).sort(dim=1).values
    assert (patches == torch.arange(80)).all()


def test_rasterized_masks_are_quadrants_each_as_often_the_context():
    [masks] = sample_masks((4, 6), 128, RasterizedMasks(min_keep=3), np.random.default_rng(0))
    corners = torch.tensor([[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]])
    corners = torch.cat([corners, corners + 12])
    assert masks.targets.shape == (3, 128, 6)
    which = (masks.context[:, None] == corners).all(-1)
    assert which.any(1).all()
    assert which.sum(0).min() > 16
    assert len({tuple(row) for row in masks.targets[:, 0].tolist()}) == 3


def test_a_block_covers_its_share_of_the_grid():
    sizes = [
        sample_masks((14, 14), 2, BlockMasks(), np.random.default_rng(step))[0].targets.shape[2]
        for step in range(50)
    ]
    assert np.mean(sizes) / 196 == pytest.approx(0.6, rel=0.05)


def test_random_targets_are_anywhere_and_as_many_as_asked_for():
    [masks] = sample_masks((14, 14), 64, RandomMasks(), np.random.default_rng(0))
    assert masks.context.shape == (64, 78)  # int(196 * 0.4), as in the released masks/random.py
    assert len(masks.targets.unique()) == 196


def test_a_ratio_in_a_range_is_drawn_once_a_batch():
    config = RandomMasks(target_ratio=(0.4, 0.6))
    sizes = {
        sample_masks((14, 14), 4, config, np.random.default_rng(step))[0].targets.shape[2]
        for step in range(40)
    }
    assert min(sizes) >= 78
    assert max(sizes) <= 118
    assert len(sizes) > 10


@pytest.mark.parametrize("grid", [(7, 8), (8, 7)])
def test_quadrants_of_an_odd_grid_are_refused(grid):
    with pytest.raises(IjepaError, match="even number of rows and columns"):
        check_masks(grid, RasterizedMasks())


@pytest.mark.parametrize("config", [BlockMasks(min_keep=40), RandomMasks(min_keep=40)])
def test_what_leaves_too_small_a_context_is_refused(config):
    with pytest.raises(IjepaError, match="do not fit a grid of 8x8"):
        check_masks((8, 8), config)


@given(size=st.integers(1, 40), batch=st.integers(1, 40), draw=draw, seed=seed)
@settings(max_examples=60, deadline=None)
def test_groups_share_the_targets_of_the_batch_and_cut_for_themselves(size, batch, draw, seed):
    config = MultiblockMasks(draw=draw, group_size=size)
    groups = sample_masks((14, 14), batch, config, np.random.default_rng(seed))
    assert [len(masks.context) for masks in groups] == [
        min(size, batch - start) for start in range(0, batch, size)
    ]
    [whole] = sample_masks(
        (14, 14),
        batch,
        config.model_copy(update={"group_size": batch}),
        np.random.default_rng(seed),
    )
    assert torch.equal(torch.cat([masks.targets for masks in groups], dim=1), whole.targets)
    assert min(masks.context.shape[1] for masks in groups) == whole.context.shape[1]


@pytest.mark.parametrize(
    ("group_size", "kept"), [(1, 0.418), (8, 0.32), (32, 0.29), (64, 0.28), (128, 0.264)]
)
def test_small_groups_keep_more_of_the_context(group_size, kept):
    config = MultiblockMasks(group_size=group_size)
    shares = [
        np.mean([len(image) for masks in groups for image in masks.context]) / 196
        for groups in (
            sample_masks((14, 14), 128, config, np.random.default_rng([3, step]))
            for step in range(150)
        )
    ]
    assert np.mean(shares) == pytest.approx(kept, rel=0.04)


@given(group=st.integers(1, 12), micro=st.integers(1, 12), seed=seed)
@settings(max_examples=60, deadline=None)
def test_micro_batches_are_the_same_masks_in_the_same_order(group, micro, seed):
    config = MultiblockMasks(group_size=group)
    groups = sample_masks((14, 14), 20, config, np.random.default_rng(seed))
    parts = list(micro_batches(groups, micro))
    assert [part.start for part, _ in parts] == list(range(0, 20, micro))
    assert all(
        sum(len(masks.context) for masks in pieces) == part.stop - part.start
        for part, pieces in parts
    )
    images = [image.tolist() for _, pieces in parts for masks in pieces for image in masks.context]
    assert images == [image.tolist() for masks in groups for image in masks.context]
    targets = torch.cat([masks.targets for _, pieces in parts for masks in pieces], dim=1)
    assert torch.equal(targets, torch.cat([masks.targets for masks in groups], dim=1))
