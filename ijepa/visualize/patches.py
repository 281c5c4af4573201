"""What encoders make of patches: attention and principal components of tokens."""

import re

import torch
from torch import Tensor

from ijepa.config import AttentionConfig, PcaConfig, Runtime
from ijepa.distributed import pick_device
from ijepa.encoders.base import Encoder
from ijepa.encoders.spec import load_encoder
from ijepa.errors import IjepaError
from ijepa.figures.attention import QueryRow, attention_figure, attention_of, block_number
from ijepa.figures.draw import Floats, Pixels
from ijepa.figures.pca import colour_figure, patch_colours
from ijepa.progress import Progress
from ijepa.visualize import Shows, Sources
from ijepa.visualize.images import (
    as_input,
    as_pixels,
    more_images,
    pick_images,
    source_of,
    views_of,
)

AT_ONCE = 16  # images in the device's memory


def draw_attention(
    config: AttentionConfig, sources: Sources, runtime: Runtime, progress: Progress
) -> Shows:
    """Attention of a block's heads for some queries, on each image."""
    data, device = sources.images, pick_device(runtime.device)
    split = data.split(config.split)
    shown = pick_images(split, config)
    names: list[str] = []
    sections = []
    for name in config.encoder:
        encoder = load_encoder(name, which=config.which, seed=config.seed, device=device)
        layer = block_number(config.layer, encoder.num_layers)
        queries = [query_of(text, encoder) for text in config.query]
        rows = []
        for number in shown:
            views = views_of(split, [number], encoder.data)
            found = attention_of(encoder.vit, as_input(views, encoder.data, device), layer)
            shares = {f"head {n}": heads for n, heads in enumerate(found.heads[0])}
            shares["mean of heads"] = found.heads[0].mean(dim=0)
            if config.rollout:
                shares["rollout"] = found.rollout[0]
            for text, patch, tokens in queries:
                maps = {title: _map(one[tokens], encoder) for title, one in shares.items()}
                rows.append(QueryRow(as_pixels(views)[0], text, patch, maps, found.heads.shape[-1]))
            done = len(names) * len(shown) + len(rows) // len(queries)
            progress("draw attention of images", done, len(shown) * len(config.encoder))
        sections.append((f"{encoder.name}: block {layer} of 0 to {encoder.num_layers - 1}", rows))
        names.append(encoder.name)
    how = (
        "Each map is darkest at its largest share outside of the query, the number below it: times "
        "an even share among all tokens."
    )
    drawn = attention_figure(sections, (source_of(data, config), how))
    return Shows(drawn, names, len(shown), split.keys(shown))


def query_of(text: str, encoder: Encoder) -> tuple[str, tuple[int, int] | None, slice]:
    """What `center`, `mean`, `class` or `ROW,COL` means for an encoder.

    Returns:
        The query's name, its patch if it is a single one, and the tokens whose rows of attention
        are averaged.

    Raises:
        IjepaError: none of these, a patch outside the grid, or a class token that is not there.
    """
    rows, columns = encoder.grid
    prefix = encoder.vit.num_prefix_tokens
    if text == "mean":
        return "mean", None, slice(prefix, None)
    if text == "class":
        if encoder.vit.cls_token is None:
            raise IjepaError(f"{encoder.name} has no class token; use center, mean or ROW,COL.")
        return "class token", None, slice(0, 1)
    numbers = re.fullmatch(r"(\d+),(\d+)", text)
    if text != "center" and not numbers:
        raise IjepaError(f"There is no query {text!r}; use center, mean, class or ROW,COL.")
    row, column = (int(numbers[1]), int(numbers[2])) if numbers else (rows // 2, columns // 2)
    if row >= rows or column >= columns:
        raise IjepaError(
            f"Query {text} is outside the {rows}x{columns} patches of {encoder.name}; rows and "
            f"columns count from 0."
        )
    token = prefix + row * columns + column
    return f"{row},{column}", (row, column), slice(token, token + 1)


def _map(shares: Tensor, encoder: Encoder) -> Floats:
    """(rows, columns): the mean of some rows (Q, T) of attention, its patches alone."""
    patches = shares.mean(dim=0)[encoder.vit.num_prefix_tokens :]
    found: Floats = patches.reshape(encoder.grid).cpu().numpy()
    return found


def draw_pca(config: PcaConfig, sources: Sources, runtime: Runtime, progress: Progress) -> Shows:
    """Patch tokens as colours, an encoder and layer a column."""
    data, device = sources.images, pick_device(runtime.device)
    split = data.split(config.split)
    shown = pick_images(split, config)
    numbers = more_images(split, shown, config.batch, config.seed)
    images: list[Pixels] = []
    columns, names = [], []
    for place, name in enumerate(config.encoder, start=1):
        encoder = load_encoder(name, which=config.which, seed=config.seed, device=device)
        layers = [block_number(layer, encoder.num_layers) for layer in config.layer]
        views = views_of(split, numbers, encoder.data)
        images = images or list(as_pixels(views[: len(shown)]))
        for layer in layers:
            parts = [
                encoder.patch_tokens(as_input(some, encoder.data, device), layer).cpu()
                for some in torch.split(views, AT_ONCE)
            ]
            tokens = torch.cat(parts).numpy().reshape(len(views), *encoder.grid, -1)
            colours, explained = patch_colours(tokens, config.foreground)
            columns.append((f"{place}: block {layer}", explained, colours[: len(shown)]))
        names.append(encoder.name)
        progress("draw encoders", place, len(config.encoder))
    kept = ""
    if config.foreground is not None:
        kept = f", of patches above {config.foreground:g} on a first component alone"
    captions = (
        *(f"{number}: {name}" for number, name in enumerate(names, start=1)),
        f"Principal components 1, 2, 3 of the patch tokens of {len(numbers)} images{kept} as red, "
        f"green, blue; below each block, their share of the variance.",
        source_of(data, config),
    )
    figures = {f"variance explained, {title}": explained for title, explained, _ in columns}
    drawn = colour_figure(images, columns, captions)
    return Shows(drawn, names, len(shown), split.keys(shown), figures)
