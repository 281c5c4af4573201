"""What an encoder attends to, head by head and rolled out."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ijepa.config import RUNTIME, Runtime, StrPath
from ijepa.data.shards import ShardSet, SplitReader
from ijepa.errors import IjepaError
from ijepa.figures.sheet import Sheet
from ijepa.progress import Progress, silent
from ijepa.visualize.frame import ChoiceOfBoth, Drawn, Order, draw_encoders
from ijepa.visualize.images import Picture, as_pixels, caption_of, evaluation_views, seen_by

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ijepa.encoders.base import Encoder
    from ijepa.figures.attention_sheet import QueryRow
    from ijepa.figures.sheet import Pixels

    Section = tuple[str, list[QueryRow]]

VERSION = 2


class AttentionConfig(ChoiceOfBoth):
    """Whose attention, in which images, from where.

    Attributes:
        encoder: encoders side by side.
        images: which are shown.
        layer: number of the block whose heads are shown; negative ones count from the last.
        queries: `center` (the middle patch), `mean` (over all patches, as the average-pooled
            feature reads them), `class` (the class token, where there is one), or `ROW,COL`.
        rollout: also show attention rolled out from the first block to that one.
    """

    layer: int = -1
    queries: tuple[str, ...] = Field(("center", "mean"), min_length=1)
    rollout: bool = True


def visualize_attention(
    shards: StrPath,
    out: StrPath,
    config: AttentionConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> Picture:
    """Draw attention maps of a block's heads for some queries, as a PNG or SVG.

    Raises:
        IjepaError: no such encoder, layer, query, split or image.
    """
    shards, out = Path(shards), Path(out)

    def draw(data: ShardSet, shown: list[int]) -> Drawn:
        split = data.split(config.images.split)
        sections, names = _sections(config, split, shown, runtime, progress)
        return Drawn(_sheet(sections, caption_of(data, config.images)), names, {})

    return draw_encoders(Order("attention", VERSION, shards, out, config, runtime), draw)


def _sheet(sections: "list[Section]", data: str) -> Sheet:
    from ijepa.figures.attention_sheet import attention_sheet

    how = (
        "Each map is darkest at its largest share outside of the query, the number below it: times "
        "an even share among all tokens."
    )
    return attention_sheet(sections, (data, how))


def _sections(
    config: AttentionConfig,
    split: SplitReader,
    numbers: list[int],
    runtime: Runtime,
    progress: Progress,
) -> "tuple[list[Section], tuple[str, ...]]":
    import torch

    from ijepa.distributed import pick_device
    from ijepa.encoders.spec import load_encoder
    from ijepa.figures.attention_maps import block_number

    device = pick_device(runtime.device)
    names: list[str] = []
    sections: list[Section] = []
    done = 0
    total = len(numbers) * len(config.encoder.encoders)
    for name in config.encoder.encoders:
        network = load_encoder(
            name, which=config.encoder.which, seed=config.images.seed, device=device
        )
        layer = block_number(config.layer, network.num_layers)
        queries = [query_of(text, network) for text in config.queries]
        rows: list[QueryRow] = []
        views = evaluation_views(split, numbers, network.data)
        for view, pixels in zip(torch.split(views, 1), as_pixels(views), strict=True):
            rows += _rows(network, seen_by(network, view, device), pixels, layer, queries, config)
            done += 1
            progress("draw attention of images", done, total)
        title = f"{network.name}: block {layer} of 0 to {network.num_layers - 1}"
        sections.append((title, rows))
        names.append(network.name)
    return sections, tuple(names)


class Query(NamedTuple):
    """From where attention is looked at: some tokens, whose rows are averaged."""

    name: str
    patch: tuple[int, int] | None
    tokens: slice


def query_of(text: str, network: "Encoder") -> Query:
    """What `center`, `mean`, `class` or `ROW,COL` means for a network.

    Raises:
        IjepaError: none of these, a patch outside the grid, or a class token that is not there.
    """
    rows, columns = network.grid
    prefix = network.vit.num_prefix_tokens
    if text == "mean":
        return Query("mean", None, slice(prefix, None))
    if text == "class":
        if network.vit.cls_token is None:
            raise IjepaError(f"{network.name} has no class token; use center, mean or ROW,COL.")
        return Query("class token", None, slice(0, 1))
    numbers = re.fullmatch(r"(\d+),(\d+)", text)
    if text != "center" and not numbers:
        raise IjepaError(f"There is no query {text!r}; use center, mean, class or ROW,COL.")
    row, column = (int(numbers[1]), int(numbers[2])) if numbers else (rows // 2, columns // 2)
    if row >= rows or column >= columns:
        raise IjepaError(
            f"Query {text} is outside the {rows}x{columns} patches of {network.name}; rows and "
            f"columns count from 0."
        )
    token = prefix + row * columns + column
    return Query(f"{row},{column}", (row, column), slice(token, token + 1))


def _rows(
    network: "Encoder",
    images: "Tensor",
    pixels: "Pixels",
    layer: int,
    queries: list[Query],
    config: AttentionConfig,
) -> "list[QueryRow]":
    """Rows of the sheet for one image (1, 3, height, width)."""
    from ijepa.figures.attention_maps import attention_of
    from ijepa.figures.attention_sheet import QueryRow

    found = attention_of(network.vit, images, layer)
    rows = []
    for query in queries:
        maps = {
            f"head {number}": _map(heads, query, network)
            for number, heads in enumerate(found.heads[0])
        }
        maps["mean of heads"] = _map(found.heads[0].mean(dim=0), query, network)
        if config.rollout:
            maps["rollout"] = _map(found.rollout[0], query, network)
        arrays = {name: value.cpu().numpy() for name, value in maps.items()}
        rows.append(QueryRow(pixels, query.name, query.patch, arrays, found.heads.shape[-1]))
    return rows


def _map(shares: "torch.Tensor", query: Query, network: "Encoder") -> "torch.Tensor":
    """(rows, columns) of (T, T) attention: what the query's tokens give to each patch."""
    row = shares[query.tokens].mean(dim=0)
    return row[network.vit.num_prefix_tokens :].reshape(network.grid)
