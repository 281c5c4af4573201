"""What each patch attends to in Vision Transformers, ours or timm's: per head and rolled out.

The networks compute as they always do, except that the fused kernel, which never writes attention
down, is off while somebody looks.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ijepa.errors import IjepaError
from ijepa.figures.draw import Floats, Pixels, Section, Tile, box, heat, sheet
from ijepa.jepa.vit import Encoder

FAINT = 0.45  # how much of the image's contrast stays under a map

See = Callable[[int, Tensor], None]


class QueryRow(NamedTuple):
    """Where one query of one image attends to.

    Attributes:
        image: (height, width, 3) uint8.
        name: of the query.
        patch: (row, column) of the query; None for queries that are no single patch.
        maps: title -> (rows, columns) attention of that query to each patch.
        num_tokens: among which attention is shared out, prefix tokens too.
    """

    image: Pixels
    name: str
    patch: tuple[int, int] | None
    maps: Mapping[str, Floats]
    num_tokens: int


class Attention(NamedTuple):
    """Attention in one batch of images.

    Attributes:
        heads: (B, heads, T, T) of one block; row q says how query q shares its attention among all
            T tokens, prefix tokens (class, registers) first. Rows sum to 1.
        rollout: (B, T, T) from the input to that block; rows sum to 1.
    """

    heads: Tensor
    rollout: Tensor


@torch.no_grad()
def attention_of(
    network: VisionTransformer | Encoder, images: Tensor, layer: int = -1
) -> Attention:
    """Attention of one block, and rolled out from the first block to it.

    Args:
        network: with a class token or without.
        images: (B, 3, height, width) float, normalised, on the network's device.
        layer: number of the block; negative ones count from the last.

    Raises:
        IjepaError: no such block, or blocks whose attention cannot be seen.
    """
    number = block_number(layer, len(network.blocks))
    heads: list[Tensor] = []
    mixed: list[Tensor] = []

    def see(block: int, shares: Tensor) -> None:
        if block <= number:
            mixed[:] = [rolled_out(shares.float(), *mixed)]
        if block == number:
            heads.append(shares.float())

    with attention_seen_by(network, see):
        network.eval()(images)
    return Attention(heads[0], mixed[0])


@contextlib.contextmanager
def attention_seen_by(network: VisionTransformer | Encoder, see: See) -> Iterator[None]:
    """Call `see(block number, (B, heads, T, T))` whenever a block has shared out its attention.

    Fused attention is off inside, and as it was afterwards.

    Raises:
        IjepaError: a block whose attention is not timm's.
    """
    modules = [_looked_at(network, number) for number in range(len(network.blocks))]
    fused = [module.fused_attn for module in modules]
    hooks = [
        module.attn_drop.register_forward_hook(_told(see, number))
        for number, module in enumerate(modules)
    ]
    try:
        for module in modules:
            module.fused_attn = False
        yield
    finally:
        for module, was, hook in zip(modules, fused, hooks, strict=True):
            module.fused_attn = was
            hook.remove()


def rolled_out(heads: Tensor, before: Tensor | None = None) -> Tensor:
    """Attention from the input through one more block: (B, T, T), rows sum to 1.

    Args:
        heads: (B, heads, T, T) of the block. Their mean is one half of where a token comes from,
            the token itself, by the residual connection, the other.
        before: (B, T, T) through all blocks below; None for the first block.

    Source: Abnar and Zuidema, ACL 2020, section 3.
    """
    mean = heads.mean(dim=1)
    step = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
    return step if before is None else step @ before


def attention_figure(
    sections: Sequence[tuple[str, Sequence[QueryRow]]], captions: Sequence[str]
) -> Figure:
    """Draw one row a query: the image, and over it each map, in a section for each encoder.

    Args:
        sections: title and rows of each, the rows with the same maps.
        captions: sentences that stand above.
    """
    drawn = []
    for title, rows in sections:
        tiles = []
        for row in rows:
            high, wide = next(iter(row.maps.values())).shape
            lines = []
            if row.patch:
                lines = [box(row.patch[1] / wide, row.patch[0] / high, 1 / wide, 1 / high)]
            line = [Tile(row.image, (f"query: {row.name}",), lines)]
            for shares in row.maps.values():
                ceiling = largest_elsewhere(shares, row.patch)
                words = (f"max {ceiling * row.num_tokens:.1f}x",)
                line.append(Tile(overlay(row.image, shares, ceiling), words, lines))
            tiles.append(line)
        headings = ["image", *rows[0].maps]
        drawn.append(Section(title, [[heading] for heading in headings], tiles))
    return sheet(drawn, captions)


def largest_elsewhere(shares: Floats, query: tuple[int, int] | None) -> float:
    """Largest share of a patch that is not the query: by its residual it mostly keeps itself."""
    others = shares.copy()
    if query is not None and shares.size > 1:
        others[query] = 0
    return float(others.max())


def overlay(image: Pixels, shares: Floats, ceiling: float) -> Pixels:
    """The image in faint grey, coloured by each patch's share, darkest from `ceiling` on.

    Args:
        image: (height, width, 3) uint8.
        shares: (rows, columns), not negative.
        ceiling: share that is darkest.
    """
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32) / 255
    faint = 1 - FAINT * (1 - grey[..., np.newaxis])
    colours = Image.fromarray(heat(shares / max(ceiling, 1e-12)))
    size = image.shape[1], image.shape[0]
    patches = np.asarray(colours.resize(size, Image.Resampling.NEAREST))
    found: Pixels = (patches * faint).round().astype(np.uint8)
    return found


def block_number(layer: int, depth: int) -> int:
    """Place of a block in [0, depth); -1 is the last.

    Raises:
        IjepaError: there is no such block.
    """
    if not -depth <= layer < depth:
        raise IjepaError(
            f"There is no layer {layer}; this encoder has layers 0 to {depth - 1}, or -{depth} to "
            f"-1 from the end."
        )
    return layer % depth


def _told(see: See, number: int) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda _module, _inputs, shares: see(number, shares)


def _looked_at(network: VisionTransformer | Encoder, number: int) -> Any:  # noqa: ANN401  # any attention of timm's
    module = getattr(network.blocks[number], "attn", None)
    if not (hasattr(module, "fused_attn") and hasattr(module, "attn_drop")):
        raise IjepaError(
            f"Attention of {type(network).__name__} cannot be shown: its block {number} is not one "
            f"of timm's Vision Transformers."
        )
    return module
