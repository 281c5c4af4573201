"""Images of a split: which are shown, as encoders see them, and a recipe's masks on them."""

from collections.abc import Sequence

import faiss
import numpy as np
from torch import Tensor

from ijepa.arrays import Array, Floats, Ints, Pixels
from ijepa.config import LEVELS, EncodersConfig, MasksConfig
from ijepa.data.loader import RandomCropBatches, StepPlan
from ijepa.data.shards import SplitReader
from ijepa.errors import IjepaError
from ijepa.figures.draw import Line, Section, Tile, heat, keep_patches, sheet
from ijepa.jepa.masks import batch_masks, mask_statistics
from ijepa.jepa.schedules import steps_per_epoch
from ijepa.train.pretraining import chosen_images
from ijepa.visualize import Drawing, Given, places_of

PLAIN = (96, 125, 170)  # a patch, where no image is given
MOST_MASKED = 2**18  # images whose masks are counted, which takes about a second


def draw_masks(config: MasksConfig, given: Given) -> Drawing:
    """Masks of step 0 on the images of step 0, a row each, and how often each patch is seen."""
    recipe, images = config.recipe, None
    (rows, columns), batch = recipe.grid, recipe.data.batch_size
    num_patches = rows * columns
    if config.batches * batch > MOST_MASKED:
        raise IjepaError(
            f"{config.batches:,} batches of {batch:,} images are more than the {MOST_MASKED:,} "
            f"whose masks can be counted; lower --batches or data.batch_size."
        )
    count = min(config.images, recipe.masks.group_size, batch)
    if given.data:
        split = given.split(recipe.data.split)
        steps_per_epoch(len(split), recipe)  # refuses too few images
        _, taken = chosen_images(recipe, len(split))
        every = recipe.masks.group_size if recipe.shared_draws else None
        plan = StepPlan(taken, recipe.data, recipe.seed, slice(0, count), every)
        images = as_pixels(RandomCropBatches(split, plan)[0].images, given)
    counted = mask_statistics(recipe, config.batches)
    context, target = counted.context_patches, counted.target_patches
    captions = (
        f"{recipe.masks.kind}, draw {recipe.masks.draw}: {rows}x{columns} patches, "
        f"contexts cut over {min(recipe.masks.group_size, batch)} images.",
        f"Context {context:.1f} patches ({context / num_patches:.3f} of all), target block "
        f"{target:.1f} ({target / num_patches:.3f}); {config.batches} batches of {batch}, seed "
        f"{recipe.seed}.",
        *([given.note] if given.note else []),
    )
    masks = batch_masks(recipe, 0)[0].images(slice(count))
    plain = np.full((rows, columns, 3), PLAIN, dtype=np.uint8)
    lines: list[Line] = [((n / columns, 0), (n / columns, 1)) for n in range(1, columns)]
    lines += [((0, n / rows), (1, n / rows)) for n in range(1, rows)]
    tiles = []
    for number, seen in enumerate(masks.context.numpy()):
        image = plain if images is None else images[number]
        parts = [np.arange(num_patches), seen, *masks.targets[:, number].numpy()]
        pixels = [keep_patches(image, part, recipe.grid) for part in parts]
        tiles.append([Tile(one, (), lines, "white", 0.6) for one in pixels])
    headings = ["image", "context", *(f"target {n + 1}" for n in range(len(masks.targets)))]
    maps = [
        Tile(
            heat(share / max(float(share.max()), 1e-9)),  # one pixel a patch
            (f"min {share.min():.2f}, max {share.max():.2f}", f"mean {share.mean():.2f}"),
        )
        for share in (counted.context_seen, counted.target_seen)
    ]
    sections = [
        Section("", [[heading] for heading in headings], tiles),
        Section(
            "Share of images in which a patch is", [["in the context"], ["in a target"]], [maps]
        ),
    ]
    figures = {
        "grid": recipe.grid,
        "context_patches": context,
        "context_ratio": context / num_patches,
        "target_patches": target,
        "target_ratio": target / num_patches,
        "covered_ratio": float(counted.target_seen.mean()),
        "rarest_in_context": float(counted.context_seen.min()),
        "rarest_in_target": float(counted.target_seen.min()),
    }
    facts: dict[str, object] = {"encoders": (), "images": count, "figures": figures}
    return sheet(sections, captions, 144), facts


def pick_images(split: SplitReader, config: EncodersConfig) -> list[int]:
    """Places in the split of the images to show; refuses unknown keys."""
    if not config.keys:
        return draw_images(split, config.images, config.seed)
    return places_of(config.keys, split.keys(), f"Split {split.name} of {split.folder}")


def draw_images(
    split: SplitReader, count: int, seed: int, without: Sequence[int] = ()
) -> list[int]:
    """Places of `count` images, or of all there are, in ascending order, none of `without`."""
    there = np.setdiff1d(np.arange(len(split)), np.asarray(without, np.int64))
    count = min(count, len(there))
    return sorted(np.random.default_rng(seed).choice(there, count, replace=False).tolist())


def more_images(split: SplitReader, shown: list[int], count: int, seed: int) -> list[int]:
    """The shown images and others, `count` in all or as many as there are."""
    return shown + draw_images(split, max(count - len(shown), 0), seed, without=shown)


def as_pixels(views: Tensor, given: Given) -> Pixels:
    """(n, height, width, 3) uint8 of (n, C, height, width), see `shown`."""
    return shown(views.permute(0, 2, 3, 1).cpu().numpy(), given)


def shown(pixels: Array, given: Given) -> Pixels:
    """(..., 3) uint8 to look at, of (..., C) of a type of `LEVELS`; see `Given.note`."""
    assert given.data is not None
    stats = given.data.pixels
    if stats is None or given.channels is None:
        return pixels  # already what to show
    chosen = np.array(given.channels) - 1
    mean, std = np.array(stats.mean)[chosen], np.array(stats.std)[chosen]
    shares = (pixels[..., chosen] / LEVELS[pixels.dtype.name] - mean) / (4 * std) + 0.5
    found: Pixels = np.rint(255 * shares.clip(0, 1)).astype(np.uint8)
    return found


def cosine_knn(queries: Floats, vectors: Floats, k: int) -> tuple[Floats, Ints]:
    """For each query (m, dim), the `k` nearest of vectors (n, dim) by cosine.

    Returns (m, k) cosines, descending, and (m, k) numbers; a vector of zeros has cosine 0.
    """
    ours, theirs = (np.array(rows, np.float32, order="C") for rows in (queries, vectors))
    for rows in (ours, theirs):
        faiss.normalize_L2(rows)
    return faiss.knn(ours, theirs, k, metric=faiss.METRIC_INNER_PRODUCT)
