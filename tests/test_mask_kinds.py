"""Masks of every kind, and the groups over which contexts are cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import changed

from ijepa.config import BlockMasks, MultiblockMasks, RandomMasks, RasterizedMasks
from ijepa.errors import IjepaError
from ijepa.jepa.masks import batch_masks, check_masks, mask_statistics, sample_masks
from ijepa.jepa.step import micro_batches
from ijepa.recipes import load_recipe

seed = st.integers(0, 2**32 - 1)
DRAWS = ["published", "symmetric"]
KINDS = [MultiblockMasks, RasterizedMasks, BlockMasks, RandomMasks]
draw, kind = st.sampled_from(DRAWS), st.sampled_from(KINDS[1:])
GRID = (8, 10)


@given(kind=kind, draw=draw, seed=seed)
@settings(max_examples=60)
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


def target_sizes(config, steps):
    return [
        sample_masks((14, 14), 2, config, np.random.default_rng(step))[0].targets.shape[2]
        for step in range(steps)
    ]


def test_a_block_covers_its_share_of_the_grid():
    assert np.mean(target_sizes(BlockMasks(), 50)) / 196 == pytest.approx(0.6, rel=0.05)


def test_random_targets_are_anywhere_and_as_many_as_asked_for_in_a_range_once_a_batch():
    [masks] = sample_masks((14, 14), 64, RandomMasks(), np.random.default_rng(0))
    assert masks.context.shape == (64, 78)  # int(196 * 0.4), as in the released masks/random.py
    assert len(masks.targets.unique()) == 196
    sizes = target_sizes(RandomMasks(target_ratio=(0.4, 0.6)), 40)
    assert 78 <= min(sizes) <= max(sizes) <= 118
    assert len(set(sizes)) > 10


@pytest.mark.parametrize(
    ("grid", "config", "message"),
    [
        ((7, 8), RasterizedMasks(), "a target may have only 0, .* even number of rows and columns"),
        ((8, 7), RasterizedMasks(), "even number of rows and columns"),
        ((8, 8), BlockMasks(min_keep=40), "do not fit a grid of 8x8"),
        ((8, 8), RandomMasks(min_keep=40), "do not fit a grid of 8x8"),
        ((8, 8), MultiblockMasks(), "a target may have only 9, .* ask for 11 and 11"),
        (
            (8, 8),
            MultiblockMasks(draw="symmetric", target_scale=(0.9, 0.9)),
            "the context keep only 0; .* ask for 1 and 11",
        ),
        ((14, 14), MultiblockMasks(min_keep=47, context_patches=48), r"masks\.min_keep"),
        *(((3, 3), MultiblockMasks(draw=draw), "do not fit a grid of 3x3") for draw in DRAWS),
        *(
            ((14, 14), kind(draw=draw, context_patches=170), r"context_patches ask for \d+ and 170")
            for kind in KINDS
            for draw in DRAWS
        ),
    ],
)
def test_masks_that_do_not_fit_a_grid_are_refused_with_what_it_has_and_they_ask_for(
    grid, config, message
):
    with pytest.raises(IjepaError, match=message):
        check_masks(grid, config)


def test_published_targets_need_not_be_as_large_as_the_contexts():
    check_masks((14, 14), MultiblockMasks(context_patches=48))


@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(2, 14),
    columns=st.integers(2, 14),
    context=st.integers(1, 60),
    group=st.integers(1, 9),
    draw=draw,
    seed=seed,
)
@settings(max_examples=200)
def test_all_contexts_have_the_length_that_is_asked_for(
    kind, rows, columns, context, group, draw, seed
):
    config = kind(draw=draw, min_keep=0, context_patches=context, group_size=group)
    try:
        check_masks((rows, columns), config)
    except IjepaError:
        return
    for masks in sample_masks((rows, columns), 8, config, np.random.default_rng(seed)):
        contexts, targets = masks.context.numpy(), masks.targets.numpy()
        assert contexts.shape[1] == context
        assert (np.diff(contexts, axis=1) > 0).all()
        for image, kept in enumerate(contexts):
            hidden = np.isin(kept, targets[:, image]).any()
            assert not hidden or (draw, config.kind) == ("published", "multiblock")


@given(draw=draw, seed=seed)
@settings(max_examples=30)
def test_a_context_length_keeps_the_first_patches_or_any_as_the_draw_says(draw, seed):
    free = MultiblockMasks(draw=draw, min_keep=19, group_size=1)
    cut = free.model_copy(update={"context_patches": 20})
    whole, some = (
        sample_masks((14, 14), 16, config, np.random.default_rng(seed)) for config in (free, cut)
    )
    for before, after in zip(whole, some, strict=True):
        assert torch.equal(before.targets, after.targets)
        assert torch.isin(after.context, before.context).all()
        if draw == "published":
            assert torch.equal(after.context, before.context[:, :20])


def test_shapes_are_those_of_the_first_batches_and_one_context_length_holds_them_together():
    config = load_recipe("cifar10", ["masks.group_size=12"])
    drawn = [masks for step in range(3) for masks in batch_masks(config, step)]
    shapes = mask_statistics(config, 3).shapes
    assert shapes == {(*m.context.shape, m.targets.shape[2]) for m in drawn}
    assert {images for images, _, _ in shapes} == {12, 8}
    free, held = (
        mask_statistics(load_recipe("imagenette-vits16", overrides), 50).shapes
        for overrides in ([], ["masks.context_patches=61"])
    )
    assert len({context for _, context, _ in free}) > 10
    assert {(images, context) for images, context, _ in held} == {(128, 61)}


@given(size=st.integers(1, 40), batch=st.integers(1, 40), draw=draw, seed=seed)
@settings(max_examples=60)
def test_groups_share_the_targets_of_the_batch_and_cut_for_themselves(size, batch, draw, seed):
    config = MultiblockMasks(draw=draw, group_size=size)
    groups = sample_masks((14, 14), batch, config, np.random.default_rng(seed))
    sizes = [min(size, batch - start) for start in range(0, batch, size)]
    assert [len(masks.context) for masks in groups] == sizes
    together = config.model_copy(update={"group_size": batch})
    [whole] = sample_masks((14, 14), batch, together, np.random.default_rng(seed))
    assert torch.equal(torch.cat([masks.targets for masks in groups], dim=1), whole.targets)
    assert min(masks.context.shape[1] for masks in groups) == whole.context.shape[1]


@pytest.mark.parametrize(
    ("group_size", "kept"), [(1, 0.418), (8, 0.32), (32, 0.29), (64, 0.28), (128, 0.264)]
)
def test_small_groups_keep_more_of_the_context(group_size, kept):
    config, shares = MultiblockMasks(group_size=group_size), []
    for step in range(150):
        groups = sample_masks((14, 14), 128, config, np.random.default_rng([3, step]))
        shares.append(sum(masks.context.numel() for masks in groups) / 128 / 196)
    assert np.mean(shares) == pytest.approx(kept, rel=0.04)


def rows_of(groups):
    """Context and targets of each image."""
    pairs = ((m.context.tolist(), m.targets.transpose(0, 1).tolist()) for m in groups)
    return [row for contexts, targets in pairs for row in zip(contexts, targets, strict=True)]


@given(draws=st.integers(1, 3), group=st.integers(1, 12), micro=st.integers(1, 12))
@settings(max_examples=60)
def test_each_draw_masks_all_images_anew_and_parts_of_a_batch_have_all_draws_in_order(
    draws, group, micro
):
    config = load_recipe("cifar10", [f"masks.draws_per_image={draws}", f"masks.group_size={group}"])
    groups = batch_masks(config, 3)
    per_draw, batch = -(-32 // group), config.data.batch_size
    assert len(groups) == draws * per_draw
    rows = [rows_of(groups[n * per_draw :][:per_draw]) for n in range(draws)]
    assert [len(of_draw) for of_draw in rows] == [batch] * draws
    assert rows[0] == rows_of(batch_masks(changed(config, "masks.draws_per_image=1"), 3))
    assert draws == 1 or rows[0] != rows[1]
    parts = list(micro_batches(groups, batch, micro))
    sizes = [images.stop - images.start for images, _ in parts]
    assert len(sizes) == -(-batch // micro)
    assert max(sizes) <= min(micro, min(sizes) + 1)
    for images, pieces in parts:
        assert rows_of(pieces) == [row for of_draw in rows for row in of_draw[images]]
