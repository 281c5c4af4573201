"""A recipe's masks on images."""

from ijepa.config import MasksConfig, Runtime
from ijepa.data.loader import RandomCropBatches, StepPlan
from ijepa.errors import IjepaError
from ijepa.figures.masks import mask_figure
from ijepa.jepa.masks import batch_masks, mask_statistics
from ijepa.progress import Progress
from ijepa.visualize import Shows, Sources
from ijepa.visualize.images import as_pixels

MOST_MASKED = 2**18  # images whose masks are held in memory, about 2 KB each on a grid of 14 x 14


def draw_masks(config: MasksConfig, sources: Sources, _: Runtime, __: Progress) -> Shows:
    """Masks of step 0 on the images of step 0."""
    recipe, images = config.recipe, None
    if config.batches * recipe.data.batch_size > MOST_MASKED:
        raise IjepaError(
            f"{config.batches:,} batches of {recipe.data.batch_size:,} images are more than the "
            f"{MOST_MASKED:,} whose masks can be counted; lower --batches or data.batch_size."
        )
    counted = mask_statistics(recipe, config.batches)
    masks = batch_masks(recipe, 0)[0].images(slice(config.images))
    if sources.data:
        split = sources.data.split(recipe.data.split)
        batch = RandomCropBatches(split, StepPlan(len(split), recipe.data, recipe.seed))[0]
        images = list(as_pixels(batch.images[: len(masks.context)]))
    rows, columns = recipe.grid
    num_patches = rows * columns
    context, target = counted.context_patches, counted.target_patches
    figures: dict[str, float | tuple[int, ...] | None] = {
        "grid": recipe.grid,
        "context_patches": context,
        "context_ratio": context / num_patches,
        "target_patches": target,
        "target_ratio": target / num_patches,
        "covered_ratio": float(counted.target_seen.mean()),
        "rarest_in_context": float(counted.context_seen.min()),
        "rarest_in_target": float(counted.target_seen.min()),
    }
    captions = (
        f"{recipe.masks.kind}, draw {recipe.masks.draw}: {rows}x{columns} patches, "
        f"contexts cut over {min(recipe.masks.group_size, recipe.data.batch_size)} images.",
        f"Context {context:.1f} patches ({context / num_patches:.3f} of all), target block "
        f"{target:.1f} ({target / num_patches:.3f}); {config.batches} batches of "
        f"{recipe.data.batch_size}, seed {recipe.seed}.",
    )
    seen = {"in the context": counted.context_seen, "in a target": counted.target_seen}
    numbers = masks.context.numpy(), masks.targets.numpy()
    drawn = mask_figure(recipe.grid, images, *numbers, seen, captions)
    return Shows(drawn, (), len(masks.context), (), figures)
