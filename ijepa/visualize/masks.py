"""Masks of a recipe on images."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ijepa.config import RUNTIME, Config, PretrainConfig, Runtime, StrPath
from ijepa.data.shards import ShardSet, open_shards
from ijepa.errors import IjepaError
from ijepa.files import write_bytes
from ijepa.progress import Progress, silent
from ijepa.records import read_record
from ijepa.stage import StagePlan
from ijepa.visualize.images import drawing

if TYPE_CHECKING:
    from ijepa.jepa.masks import MaskStatistics

VERSION = 2
MOST_IMAGES = 2**18  # whose masks are held in memory, about 2 KB each on a grid of 14 x 14


class MaskSheetConfig(Config):
    """Whose masks to draw, and how many.

    Attributes:
        recipe: its masks, grid, batch and crops.
        num_images: rows of the sheet.
        num_batches: over which ratios and coverage are taken.
    """

    recipe: PretrainConfig
    num_images: int = 4
    num_batches: int = 100


class MaskFigures(Config):
    """Masks in numbers, means over the sampled batches.

    Attributes:
        context_patches: after the cut; `context_ratio` of all patches; likewise one target block.
        covered_ratio: of the patches that belong to any target of an image.
        rarest_in_context: how often the patch that is seldom there is in the context, 0 to 1;
            likewise in a target.
    """

    out: Path
    cached: bool
    grid: tuple[int, int]
    context_patches: float
    context_ratio: float
    target_patches: float
    target_ratio: float
    covered_ratio: float
    rarest_in_context: float
    rarest_in_target: float


def visualize_masks(
    out: StrPath,
    config: MaskSheetConfig,
    shards: StrPath | None = None,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> MaskFigures:
    """Draw a recipe's masks on images, and how often each patch is seen, as a PNG.

    Args:
        out: the picture to make.
        config: whose masks, how many.
        shards: where the images come from; None draws plain patches.
        runtime: `force` makes it again.
        progress: told when the picture is done.

    Raises:
        IjepaError: the masks do not fit the grid, are too many, or the shard set lacks the split.
    """
    batch_size = config.recipe.data.batch_size
    if config.num_batches * batch_size > MOST_IMAGES:
        raise IjepaError(
            f"{config.num_batches:,} batches of {batch_size:,} images are more than the "
            f"{MOST_IMAGES:,} whose masks can be counted; lower --batches or data.batch_size."
        )
    out = Path(out)
    shards = Path(shards) if shards is not None else None
    data = open_shards(shards) if shards else None
    inputs = {"data": data.fingerprint} if data else {}
    plan = StagePlan("visualize masks", VERSION, config, inputs, out)
    with drawing(plan, runtime) as work:
        if not work.cached:
            from ijepa.jepa.masks import mask_statistics

            statistics = mask_statistics(config.recipe, config.num_batches)
            write_bytes(work.folder / out.name, _draw(config, statistics, data))
            figures = _figures(config.recipe, statistics)
            facts = {"seed": config.recipe.seed, "command": runtime.command, "figures": figures}
            work.publish_file(facts)
        progress("draw masks", 1, 1)
    record = read_record(out)
    assert record is not None
    return MaskFigures(out=out, cached=work.cached, **record["figures"])


def _draw(config: MaskSheetConfig, statistics: "MaskStatistics", data: ShardSet | None) -> bytes:
    """The sheet as a PNG: masks of step 0 on the images of step 0."""
    from ijepa.data.loader import RandomCropBatches, StepPlan
    from ijepa.figures.mask_sheet import mask_sheet
    from ijepa.jepa.masks import batch_masks

    recipe, images = config.recipe, None
    masks = batch_masks(recipe, 0)[0].images(slice(config.num_images))
    if data:
        split = data.split(recipe.data.split)
        batch = RandomCropBatches(split, StepPlan(len(split), recipe.data, recipe.seed))[0]
        images = [image.permute(1, 2, 0).numpy() for image in batch.images[: len(masks.context)]]
    seen = {
        "in the context, share of images": statistics.context_seen,
        "in a target, share of images": statistics.target_seen,
    }
    buffer = io.BytesIO()
    captions = _captions(config, statistics)
    mask_sheet(recipe.grid, images, masks, seen, captions).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _captions(config: MaskSheetConfig, statistics: "MaskStatistics") -> tuple[str, str]:
    recipe = config.recipe
    rows, columns = recipe.grid
    context, target = statistics.context_patches, statistics.target_patches
    return (
        f"{recipe.masks.kind}, draw {recipe.masks.draw}: {rows}x{columns} patches, contexts cut "
        f"over {min(recipe.masks.group_size, recipe.data.batch_size)} images",
        f"context {context:.1f} patches ({context / rows / columns:.3f} of all), target block "
        f"{target:.1f} ({target / rows / columns:.3f}); {config.num_batches} batches of "
        f"{recipe.data.batch_size}, seed {recipe.seed}",
    )


def _figures(recipe: PretrainConfig, statistics: "MaskStatistics") -> dict[str, Any]:
    num_patches = recipe.grid[0] * recipe.grid[1]
    return {
        "grid": recipe.grid,
        "context_patches": statistics.context_patches,
        "context_ratio": statistics.context_patches / num_patches,
        "target_patches": statistics.target_patches,
        "target_ratio": statistics.target_patches / num_patches,
        "covered_ratio": float(statistics.target_seen.mean()),
        "rarest_in_context": float(statistics.context_seen.min()),
        "rarest_in_target": float(statistics.target_seen.min()),
    }
