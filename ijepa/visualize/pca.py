"""Patch tokens of a batch of images as colours."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ijepa.config import RUNTIME, Runtime, StrPath
from ijepa.data.shards import ShardSet, SplitReader
from ijepa.progress import Progress, silent
from ijepa.visualize.frame import ChoiceOfBoth, Drawn, Order, draw_encoders
from ijepa.visualize.images import (
    Picture,
    as_pixels,
    caption_of,
    draw_images,
    evaluation_views,
    seen_by,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ijepa.encoders.base import Encoder
    from ijepa.figures.patch_colours import Column, Floats
    from ijepa.figures.sheet import Pixels

VERSION = 2
AT_ONCE = 16  # images in memory of the device


class PcaConfig(ChoiceOfBoth):
    """Whose patch tokens, in which images.

    Attributes:
        encoder: encoders side by side.
        images: which are shown.
        batch: images, the shown ones among them, whose patches the components are fitted on; fewer
            where the split has no more.
        layers: numbers of blocks, side by side; negative ones count from the last.
        foreground: colour only patches above it (`ijepa.figures.patch_colours`); None colours all.
    """

    batch: Annotated[int, Field(ge=1)] = 64
    layers: Annotated[tuple[int, ...], Field(min_length=1)] = (-1,)
    foreground: Annotated[float, Field(gt=0, lt=1)] | None = None


def visualize_pca(
    shards: StrPath,
    out: StrPath,
    config: PcaConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> Picture:
    """Draw patch tokens as colours, as a PNG or SVG.

    Raises:
        IjepaError: no such encoder, layer, split or image, or a threshold that leaves no patches.
    """
    shards, out = Path(shards), Path(out)

    def draw(data: ShardSet, shown: list[int]) -> Drawn:
        from ijepa.figures.patch_colours import colour_sheet

        split = data.split(config.images.split)
        images, columns, names, batch = _columns(config, split, shown, runtime, progress)
        captions = (*_captions(config, names, batch), caption_of(data, config.images))
        figures = {f"variance explained, {column.title}": column.explained for column in columns}
        return Drawn(colour_sheet(images, columns, captions), names, figures)

    return draw_encoders(Order("pca", VERSION, shards, out, config, runtime), draw)


def _captions(config: PcaConfig, names: tuple[str, ...], batch: int) -> tuple[str, ...]:
    kept = ""
    if config.foreground is not None:
        kept = f", of patches above {config.foreground:g} on a first component alone"
    return (
        *(f"{number}: {name}" for number, name in enumerate(names, start=1)),
        f"Principal components 1, 2, 3 of the patch tokens of {batch} images{kept} as red, green, "
        f"blue; below each block, their share of the variance.",
    )


def _columns(
    config: PcaConfig, split: SplitReader, shown: list[int], runtime: Runtime, progress: Progress
) -> "tuple[list[Pixels], list[Column], tuple[str, ...], int]":
    """Images, a column an encoder and layer, names of the encoders, images in the batch."""
    from ijepa.distributed import pick_device
    from ijepa.encoders.spec import load_encoder
    from ijepa.figures.attention_maps import block_number

    device, seed = pick_device(runtime.device), config.images.seed
    missing = min(config.batch, len(split)) - len(shown)
    numbers = shown + draw_images(split, max(missing, 0), seed, without=shown)
    images: list[Pixels] = []
    columns, names = [], []
    for place, name in enumerate(config.encoder.encoders, start=1):
        network = load_encoder(name, which=config.encoder.which, seed=seed, device=device)
        layers = [block_number(layer, network.num_layers) for layer in config.layers]
        views = evaluation_views(split, numbers, network.data)
        images = images or as_pixels(views[: len(shown)])
        for layer in layers:
            tokens = _tokens(network, views, layer, device)
            columns.append(_column(config, tokens, f"{place}: block {layer}", len(shown)))
        names.append(network.name)
        progress("draw encoders", place, len(config.encoder.encoders))
    return images, columns, tuple(names), len(numbers)


def _column(config: PcaConfig, tokens: "Floats", title: str, shown: int) -> "Column":
    from ijepa.figures.patch_colours import Column, patch_colours

    found = patch_colours(tokens, config.foreground)
    return Column(title, found.explained, found.colours[:shown])


def _tokens(network: "Encoder", views: "Tensor", layer: int, device: "torch.device") -> "Floats":
    """(images, rows, columns, dim)."""
    import torch

    parts = [
        network.patch_tokens(seen_by(network, some, device), layer).cpu()
        for some in torch.split(views, AT_ONCE)
    ]
    tokens = torch.cat(parts).numpy()
    found: Floats = tokens.reshape(len(tokens), *network.grid, -1)
    return found
