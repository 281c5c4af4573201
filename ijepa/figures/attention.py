"""What each patch attends to in Vision Transformers, ours or timm's, head by head.

The networks compute as they always do, except that the fused kernel, which never writes attention
down, is off while somebody looks.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ijepa.arrays import Floats, Pixels
from ijepa.errors import IjepaError
from ijepa.figures.draw import Section, Tile, box, heat

FAINT = 0.45  # how much of the image's contrast stays under a map
HOW = (
    "Each map is darkest at its largest share outside of the query, the number below it: times an "
    "even share among all tokens."
)

Vit = Any  # ours or timm's: importing timm for its name takes two seconds


# Name, the patch if it is a single one, and the tokens whose rows of attention are averaged.
Query = tuple[str, tuple[int, int] | None, slice]


def attention_section(
    network: Vit,
    images: Iterable[tuple[Tensor, Pixels]],
    queries: Sequence[Query],
    layer: int,
) -> Section:
    """One row an image and query: the image, and over it each head of a block, and their mean.

    An image comes as the network takes it, (1, 3, height, width), and as it is shown.
    """
    rows, (high, wide) = [], network.patch_embed.grid_size
    for views, image in images:
        heads = attention_of(network, views, layer)
        shares = {f"head {number}": head for number, head in enumerate(heads[0])}
        shares["mean of heads"] = heads[0].mean(dim=0)
        for name, patch, tokens in queries:
            frame = [box(patch[1] / wide, patch[0] / high, 1 / wide, 1 / high)] if patch else []
            row = [Tile(image, (f"query: {name}",), frame)]
            for share in shares.values():
                patches = share[tokens].mean(dim=0)[network.num_prefix_tokens :]
                seen = patches.reshape(high, wide).cpu().numpy()
                ceiling = largest_elsewhere(seen, patch)
                words = (f"max {ceiling * heads.shape[-1]:.1f}x",)
                row.append(Tile(overlay(image, seen, ceiling), words, frame))
            rows.append(row)
    return Section("", [["image"], *([name] for name in shares)], rows)


def query_of(text: str, network: Vit, encoder: str) -> Query:
    """What `center`, `mean`, `class` or `ROW,COL` means for a network; refuses what it lacks."""
    (rows, columns), prefix = network.patch_embed.grid_size, network.num_prefix_tokens
    if text == "mean":
        return "mean", None, slice(prefix, None)
    if text == "class":
        if network.cls_token is None:
            raise IjepaError(f"{encoder} has no class token; use center, mean or ROW,COL.")
        return "class token", None, slice(0, 1)
    numbers = re.fullmatch(r"(\d+),(\d+)", text)
    if text != "center" and not numbers:
        raise IjepaError(f"There is no query {text!r}; use center, mean, class or ROW,COL.")
    row, column = (int(numbers[1]), int(numbers[2])) if numbers else (rows // 2, columns // 2)
    if row >= rows or column >= columns:
        raise IjepaError(
            f"Query {text} is outside the {rows}x{columns} patches of {encoder}; rows and columns "
            f"count from 0."
        )
    token = prefix + row * columns + column
    return f"{row},{column}", (row, column), slice(token, token + 1)


@torch.no_grad()
def attention_of(network: Vit, images: Tensor, layer: int = -1) -> Tensor:
    """Attention of one block, (B, heads, T, T).

    Row q says how query q shares its attention among all T tokens, prefix tokens (class, registers)
    first. Rows sum to 1. Images are (B, 3, height, width) float, normalised.

    Raises:
        IjepaError: no such block, or blocks whose attention cannot be seen.
    """
    number = block_number(layer, len(network.blocks))
    seen: list[Tensor] = []

    def see(block: int, shares: Tensor) -> None:
        if block == number:
            seen.append(shares.float())

    with attention_seen_by(network, see):
        network.eval()(images)
    return seen[0]


@contextlib.contextmanager
def attention_seen_by(network: Vit, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call `see(block number, (B, heads, T, T))` whenever a block has shared out its attention.

    Fused attention is off inside, and as it was afterwards. An `IjepaError` refuses a block whose
    attention is not timm's.
    """
    with contextlib.ExitStack() as undo:
        for number, block in enumerate(network.blocks):
            module: Any = getattr(block, "attn", None)
            if not (hasattr(module, "fused_attn") and hasattr(module, "attn_drop")):
                raise IjepaError(
                    f"Attention of {type(network).__name__} cannot be shown: its block {number} is "
                    f"not one of timm's Vision Transformers."
                )
            hook = module.attn_drop.register_forward_hook(
                lambda _module, _inputs, shares, number=number: see(number, shares)
            )
            undo.callback(hook.remove)
            undo.callback(setattr, module, "fused_attn", module.fused_attn)
            module.fused_attn = False
        yield


def largest_elsewhere(shares: Floats, query: tuple[int, int] | None) -> float:
    """Largest share of a patch that is not the query: by its residual it mostly keeps itself."""
    others = shares.copy()
    if query is not None and shares.size > 1:
        others[query] = 0
    return float(others.max())


def overlay(image: Pixels, shares: Floats, ceiling: float) -> Pixels:
    """The image in faint grey, coloured by shares (rows, columns), darkest at `ceiling`."""
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32) / 255
    faint = 1 - FAINT * (1 - grey[..., np.newaxis])
    colours = Image.fromarray(heat(shares / max(ceiling, 1e-12)))
    size = image.shape[1], image.shape[0]
    patches = np.asarray(colours.resize(size, Image.Resampling.NEAREST))
    found: Pixels = (patches * faint).round().astype(np.uint8)
    return found


def block_number(layer: int, depth: int) -> int:
    """Place of a block in [0, depth); -1 is the last. An `IjepaError` if there is none."""
    if not -depth <= layer < depth:
        raise IjepaError(
            f"There is no layer {layer}; this encoder has layers 0 to {depth - 1}, or -{depth} to "
            f"-1 from the end."
        )
    return layer % depth
