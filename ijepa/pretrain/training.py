"""What pretraining computes: the plan and the training."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ijepa.config import PretrainConfig, Runtime
from ijepa.data.shards import SplitReader, open_shards
from ijepa.data.stream import RemoteSplit
from ijepa.distributed import from_rank_0, pick_device
from ijepa.encoders.formats import read_networks
from ijepa.errors import IjepaError
from ijepa.figures.draw import keep_patches
from ijepa.figures.pca import patch_colours
from ijepa.files import LAST, write_bytes
from ijepa.jepa.flops import PretrainPlan, plan_training
from ijepa.jepa.masks import batch_masks
from ijepa.jepa.schedules import steps_per_epoch
from ijepa.progress import Progress
from ijepa.recipes import dump_yaml
from ijepa.stage import Work
from ijepa.train import loop
from ijepa.train.metrics import Picture
from ijepa.train.pretraining import PretrainTask, adapted_parts
from ijepa.train.prolong import resume_from
from ijepa.train.watch import CheckedImages
from ijepa.world import World, current_world, stop_requests

BOARD_TILE_PX = 96  # about the side of an image in TensorBoard's pictures

log = logging.getLogger(__name__)


def plan(config: PretrainConfig, images: int, runtime: Runtime) -> PretrainPlan:
    """Sizes, steps, masks, cost, of so many images."""
    on_gpu, processes = pick_device(runtime.device).type == "cuda", current_world().size
    _refuse_uneven(config, processes)
    return plan_training(images, config, runtime, on_gpu=on_gpu, processes=processes)


def _refuse_uneven(config: PretrainConfig, processes: int) -> None:
    if config.data.batch_size % processes:
        raise IjepaError(
            f"data.batch_size {config.data.batch_size} cannot be shared evenly by {processes} "
            f"processes."
        )


def train(
    work: Work,
    world: World,
    config: PretrainConfig,
    images: SplitReader | RemoteSplit,
    runtime: Runtime,
    start: tuple[Path | None, ...],
    progress: Progress,
) -> None:
    """Take the steps that are left, and let rank 0 publish; all processes call it.

    `start` are weights to begin with, and a run to prolong.
    """
    (init, prolong), last = start, work.folder / LAST
    source = open_shards(images.folder).source if isinstance(images, SplitReader) else ""
    facts = {"seed": config.seed, "command": runtime.command, "source": source}
    facts |= {"images": len(images)}
    facts |= {n: str(path) for n, path in {"init": init, "prolonged": prolong}.items() if path}

    def begin() -> None:
        _refuse_uneven(config, world.size)
        if prolong and not last.exists():
            resume_from(prolong, work, config, steps_per_epoch(len(images), config))

    from_rank_0(world, begin)
    networks = None
    if init:
        found = read_networks(init, config.encoder.arch).parts
        parts, adapted = adapted_parts(found, config.data.num_channels)
        networks = None if last.exists() else (str(init), parts)
        facts |= {"adapted": adapted} if adapted else {}
        if adapted and networks and world.is_rank_0:
            log.warning("%s is adapted: %s", init, adapted)
    task = PretrainTask(config, images, runtime, world, networks, progress)
    if runtime.pictures:
        task.render = _drawing(config)
    if world.is_rank_0:
        write_bytes(work.folder / "config.yaml", dump_yaml(config).encode())
        work.note({"source": source})  # for pages of a run that is still training
    with stop_requests():  # a signal after the last step does not keep it from its end
        loop.fit(task, work.folder, progress)
        facts |= {"device": task.device_name, **task.bad_samples()}
        from_rank_0(world, lambda: work.publish(facts))


def _drawing(config: PretrainConfig) -> Callable[[CheckedImages], dict[str, Picture]]:
    """Draws masks, principal components and neighbours of a few images, each as rows of tiles."""
    grid, patch = config.grid, config.encoder.patch_px
    masks = batch_masks(config, 0)[0]  # always the same: what the recipe hides

    def rows(tiles: Iterable[Iterable[Picture]]) -> Picture:
        step = max(1, min(config.data.image_size) // BOARD_TILE_PX)
        return np.concatenate([np.concatenate(list(row), axis=1) for row in tiles])[::step, ::step]

    def render(checked: CheckedImages) -> dict[str, Picture]:
        parts = zip(checked.images, masks.context.numpy(), masks.targets.numpy().swapaxes(0, 1))  # noqa: B905  # a group may be smaller
        colours = patch_colours(checked.tokens)[0].repeat(patch, axis=1).repeat(patch, axis=2)
        return {
            "masks": rows(
                [image, *(keep_patches(image, part, grid) for part in (context, *targets))]
                for image, context, targets in parts
            ),
            "components": rows(zip(checked.images, colours, strict=True)),
            "neighbours": rows(
                [image, *near]
                for image, near in zip(checked.images, checked.neighbours, strict=True)
            ),
        }

    return render
