"""What encoders make of patches: the attention of each head, and tokens as colours.

Networks are Vision Transformers, ours or timm's. They compute as they always do, except that the
fused kernel of the block that is shown, which never writes attention down, is off while it is seen.
"""

import re
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ijepa.arrays import Floats, Pixels
from ijepa.config import AttentionConfig, EncodersConfig, PcaConfig
from ijepa.data.loader import read_views
from ijepa.distributed import pick_device
from ijepa.encoders.base import Encoder
from ijepa.encoders.spec import EncoderSpec
from ijepa.errors import IjepaError
from ijepa.figures.draw import Section, Tile, box, heat, sheet
from ijepa.figures.pca import patch_colours
from ijepa.jepa.augment import normalise
from ijepa.visualize import Drawing, Given
from ijepa.visualize.images import as_pixels, more_images, pick_images

AT_ONCE = 16  # images in the device's memory
FAINT = 0.45  # how much of the image's contrast stays under a map of attention

Vit = Any  # ours or timm's
# Name, the patch if it is a single one, and the tokens whose rows of attention are averaged.
Query = tuple[str, tuple[int, int] | None, slice]


def _encoder(name: str, config: EncodersConfig, given: Given) -> Encoder:
    assert given.data is not None
    spec = EncoderSpec.parse(name, which=config.which, seed=config.seed)
    loaded = spec._replace(pixels=given.data.pixels).load(pick_device(given.runtime.device))
    return loaded.fit_channels(given.data.pixels, given.data.folder)


def draw_attention(config: AttentionConfig, given: Given) -> Drawing:
    """A row an image and query: the image, and over it each head of a block, and their mean."""
    split, device = given.split(config.split), pick_device(given.runtime.device)
    shown, sections = pick_images(split, config), []
    names: list[str] = []
    for name in config.encoder:
        encoder = _encoder(name, config, given)
        vit, data, rows = encoder.vit, encoder.data, []
        layer = block_number(config.layer, encoder.num_layers)
        high, wide = vit.patch_embed.grid_size
        queries = [query_of(text, vit, encoder.name) for text in config.query]
        for done, number in enumerate(shown, start=1 + len(names) * len(shown)):
            views = read_views(split, [number], data)
            image = as_pixels(views, given)[0]
            heads = attention_of(vit, normalise(views.to(device), data.mean, data.std), layer)[0]
            for query, patch, tokens in queries:
                frame = [box(patch[1] / wide, patch[0] / high, 1 / wide, 1 / high)] if patch else []
                row = [Tile(image, (f"query: {query}",), frame)]
                for share in (*heads, heads.mean(dim=0)):
                    patches = share[tokens].mean(dim=0)[vit.num_prefix_tokens :]
                    seen = patches.reshape(high, wide).cpu().numpy()
                    ceiling = largest_elsewhere(seen, patch)
                    words = (f"max {ceiling * heads.shape[-1]:.1f}x",)
                    row.append(Tile(overlay(image, seen, ceiling), words, frame))
                rows.append(row)
            given.progress("draw attention of images", done, len(shown) * len(config.encoder))
        title = f"{encoder.name}: block {layer} (of blocks 0 to {encoder.num_layers - 1})"
        columns = [f"head {number}" for number in range(len(heads))]
        headings = [[one] for one in ("image", *columns, "mean of heads")]
        sections.append(Section(title, headings, rows))
        names.append(encoder.name)
    how = (
        "Each map is darkest at its largest share outside of the query, the number below it: times "
        "an even share among all tokens."
    )
    facts = {"encoders": names, "images": len(shown), "keys": split.keys(shown), "figures": {}}
    return sheet(sections, (given.source(config), how)), facts


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
def attention_of(network: Vit, images: Tensor, block: int) -> Tensor:
    """Attention of one block, (B, heads, T, T), of normalised images (B, 3, height, width).

    Row q says how query q shares its attention among all T tokens, prefix tokens (class, registers)
    first. Rows sum to 1. An `IjepaError` refuses a block that is not timm's.
    """
    module: Any = getattr(network.blocks[block], "attn", None)
    if not (hasattr(module, "fused_attn") and hasattr(module, "attn_drop")):
        raise IjepaError(
            f"Attention of {type(network).__name__} cannot be shown: its block {block} is not one "
            f"of timm's Vision Transformers."
        )
    seen: list[Tensor] = []
    was_fused, module.fused_attn = module.fused_attn, False
    hook = module.attn_drop.register_forward_hook(lambda _, __, shares: seen.append(shares.float()))
    try:
        network.eval()(images)
    finally:
        hook.remove()
        module.fused_attn = was_fused
    return seen[0]


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


def draw_pca(config: PcaConfig, given: Given) -> Drawing:
    """A row an image: the image, then its patches for each encoder and layer."""
    split, device = given.split(config.split), pick_device(given.runtime.device)
    shown = pick_images(split, config)
    numbers = more_images(split, shown, config.batch, config.seed)
    rows: list[list[Tile]] = []
    headings, names = [["image"]], []
    figures: dict[str, float] = {}
    for place, name in enumerate(config.encoder, start=1):
        encoder = _encoder(name, config, given)
        layers = [block_number(layer, encoder.num_layers) for layer in config.layer]
        data, views = encoder.data, read_views(split, numbers, encoder.data)
        rows = rows or [[Tile(image)] for image in as_pixels(views[: len(shown)], given)]
        for layer in layers:
            parts = [
                encoder.patch_tokens(normalise(some.to(device), data.mean, data.std), layer).cpu()
                for some in torch.split(views, AT_ONCE)
            ]
            tokens = torch.cat(parts).numpy().reshape(len(views), *encoder.grid, -1)
            colours, explained = patch_colours(tokens, config.foreground)
            headings.append([f"{place}: block {layer}", f"{explained:.0%}"])
            figures[f"variance explained, {place}: block {layer}"] = explained
            for row, patches in zip(rows, colours[: len(shown)], strict=True):
                row.append(Tile(patches))
        names.append(encoder.name)
        given.progress("draw encoders", place, len(config.encoder))
    kept = ""
    if config.foreground is not None:
        kept = f", of patches above {config.foreground:g} on a first component alone"
    captions = (
        *(f"{number}: {name}" for number, name in enumerate(names, start=1)),
        f"Principal components 1, 2, 3 of the patch tokens of {len(numbers)} images{kept} as red, "
        f"green, blue; below each block, their share of the variance.",
        given.source(config),
    )
    facts = {"encoders": names, "images": len(shown), "keys": split.keys(shown), "figures": figures}
    return sheet([Section("", headings, rows)], captions), facts
