"""What a run predicts for hidden blocks, as real patches or as pixels of a decoder.

Retrieval shows predictions by the real patches nearest to them, pasted where the block was hidden.
Beside the predictions: what the block's true tokens retrieve, the best that a prediction can do;
what the mean token at each place retrieves, which knows nothing of the image; and patches at
random.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ijepa.arrays import Floats, Ints, Pixels
from ijepa.config import PredictionsConfig, PretrainConfig, RetrievalConfig
from ijepa.data.loader import read_views
from ijepa.decoder.model import (
    HELD_OUT,
    draw_blocks,
    draw_flow,
    embed,
    held_numbers,
    load_decoder,
    paste_blocks,
    sample_blocks,
)
from ijepa.distributed import pick_device
from ijepa.encoders.own import load_jepa
from ijepa.errors import IjepaError
from ijepa.figures.draw import ORANGE, Line, Section, Tile, box, keep_patches, sheet
from ijepa.jepa.augment import normalise
from ijepa.jepa.masks import Masks, sample_masks
from ijepa.jepa.model import IJepa, last_layer, target_tokens
from ijepa.jepa.rng import MASKS, stream
from ijepa.visualize import Drawing, Given
from ijepa.visualize.images import (
    as_pixels,
    cosine_knn,
    draw_images,
    more_images,
    pick_images,
)

PREDICTED, TRUE, MEAN, RANDOM = "prediction", "true tokens", "mean at place", "random"
AT_ONCE = 32  # images in the device's memory


class Query(NamedTuple):
    """One hidden block in each of n images, and what is known of it."""

    pixels: Pixels  # (n, height, width, 3)
    contexts: list[Ints]  # (K,) patches of each image; K may differ
    blocks: Ints  # (n, T) patches
    predicted: Floats  # (n, T, dim) by the predictor, from the context
    true: Floats  # (n, T, dim) by the target encoder


class Filled(NamedTuple):
    """Blocks filled with real patches."""

    patches: Pixels  # (n, T, patch, patch, 3)
    cosine: float  # of the tokens that chose them to the true tokens, mean over all patches
    difference: float  # of colour to the real patches, mean, 0 to 1


def draw_retrieval(config: RetrievalConfig, given: Given) -> Drawing:
    """Each token of a hidden block takes the look of the nearest real patch."""
    split, store_split = given.split(config.split), given.split(config.store_split)
    shown, device = pick_images(split, config), pick_device(given.runtime.device)
    numbers = more_images(split, shown, config.measured, config.seed)
    without = numbers if config.store_split == config.split else ()
    stored = draw_images(store_split, config.store_images, config.seed, without)
    if not stored:
        raise IjepaError(f"No image of split {store_split.name} is left to take patches from.")
    sections = []
    figures: dict[str, float] = {}
    for place, name in enumerate(config.encoder, start=1):
        jepa, run = load_jepa(name)
        if run.targets.space != "embeddings":
            raise IjepaError(f"{name} predicts {run.targets.space}, not embeddings.")
        assert given.data is not None
        given.data.check_channels(run.data.num_channels, name)
        jepa.to(device)
        views = read_views(split, numbers, run.data)
        asked = ask(jepa, run, views, as_pixels(views, given), config.seed)
        views = read_views(store_split, stored, run.data)
        patches = cut_patches(as_pixels(views, given), run.encoder.patch_px)
        rng = np.random.default_rng(config.seed)
        filled = fill_blocks(asked, store_of(jepa, run, views), patches, rng)
        title = f"{name}: context encoder ({len(jepa.encoder.blocks)} blocks) and predictor"
        notes = [(way, f"{f.cosine:.3f}, {f.difference:.3f}") for way, f in filled.items()]
        tiles = _rows(asked, filled, run.grid, len(shown))
        sections.append(Section(title, [["image"], ["context"], *notes], tiles))
        figures |= {f"cosine of {way}, {name}": f.cosine for way, f in filled.items()}
        figures |= {f"difference of {way}, {name}": f.difference for way, f in filled.items()}
        given.progress("retrieve patches for runs", place, len(config.encoder))
    captions = (
        "One hidden block, each of its patches shown by the nearest real patch (cosine of "
        f"layer-normed target tokens) of {len(stored)} other images of split "
        f"{config.store_split}. {PREDICTED}: from the context alone; {TRUE}: the best to be had; "
        f"{MEAN}: the mean token at that place, whatever the image.",
        f"Numbers, over {len(numbers)} images: cosine to the true tokens; mean difference of "
        f"colour to the real block, 0 to 1.",
        given.source(config),
    )
    drawn = sheet(sections, captions, 144)
    facts = {"encoders": config.encoder, "images": len(shown), "keys": split.keys(shown)}
    return drawn, {**facts, "figures": figures}


def _rows(
    asked: Query, filled: dict[str, Filled], grid: tuple[int, int], count: int
) -> list[list[Tile]]:
    """One row for each of the first images: image, context, and each way to fill its block."""
    rows = []
    for number, image in enumerate(asked.pixels[:count]):
        block, seen = asked.blocks[number], keep_patches(image, asked.contexts[number], grid)
        pasted = [with_patches(seen, block, way.patches[number]) for way in filled.values()]
        lines = outline(block, grid)
        rows.append([Tile(tile, (), lines, ORANGE) for tile in (image, seen, *pasted)])
    return rows


def outline(block: Ints, grid: tuple[int, int]) -> list[Line]:
    """Edges between patches of a block and others, from 0 to 1 across and down the image."""
    rows, columns = grid
    inside = {divmod(number, columns) for number in block.tolist()}
    edges: list[Line] = []
    for row, column in sorted(inside):
        left, right = column / columns, (column + 1) / columns
        top, bottom = row / rows, (row + 1) / rows
        sides = {
            (row - 1, column): ((left, top), (right, top)),
            (row + 1, column): ((left, bottom), (right, bottom)),
            (row, column - 1): ((left, top), (left, bottom)),
            (row, column + 1): ((right, top), (right, bottom)),
        }
        edges += [edge for neighbour, edge in sides.items() if neighbour not in inside]
    return edges


@torch.inference_mode()
def ask(jepa: IJepa, config: PretrainConfig, views: Tensor, pixels: Pixels, seed: int) -> Query:
    """Draw a context and a block for each image by the run's own masks, and predict the block.

    Views are (n, C, height, width), shown as pixels (n, height, width, 3) uint8; the seed is that
    of the masks.
    """
    device = next(jepa.parameters()).device
    groups = sample_masks(config.grid, len(views), config.masks, stream(seed, MASKS, 0))
    contexts: list[Ints] = []
    blocks, predictions, truths = [], [], []
    for masks in groups:
        for first in range(0, len(masks.context), AT_ONCE):
            part = masks.images(slice(first, first + AT_ONCE))
            part = Masks(part.context, part.targets[:1])
            some = views[len(contexts) : len(contexts) + len(part.context)]
            images = normalise(some.to(device), config.data.mean, config.data.std)
            [(predicted, true)] = jepa(images, [part.to(device)])
            blocks.append(part.targets[0].numpy())
            predictions.append(last_layer(predicted, config.targets).float().cpu().numpy())
            truths.append(last_layer(true, config.targets).float().cpu().numpy())
            contexts += list(part.context.numpy())
    together = (np.concatenate(arrays) for arrays in (blocks, predictions, truths))
    return Query(pixels, contexts, *together)


@torch.inference_mode()
def store_of(jepa: IJepa, config: PretrainConfig, views: Tensor) -> Floats:
    """(images, N, dim) float32 tokens of the target encoder, as predictions should be, of views."""
    found, device = [], next(jepa.parameters()).device
    for some in torch.split(views, AT_ONCE):
        images = normalise(some.to(device), config.data.mean, config.data.std)
        tokens = target_tokens(config.targets, jepa.target_encoder, images)
        found.append(last_layer(tokens, config.targets).float().cpu())
    return torch.cat(found).numpy()


def fill_blocks(
    asked: Query, store: Floats, patches: Pixels, rng: np.random.Generator
) -> dict[str, Filled]:
    """Put real patches in place of each block, chosen in each of the four ways.

    The `store` (images, N, dim) holds tokens of as many `patches` (images * N, patch, patch, 3).
    """
    flat = store.reshape(-1, store.shape[-1])
    ways = {
        PREDICTED: asked.predicted,
        TRUE: asked.true,
        MEAN: store.mean(axis=0)[asked.blocks],
    }
    chosen = {way: nearest_patches(tokens, flat) for way, tokens in ways.items()}
    chosen[RANDOM] = rng.integers(0, len(flat), asked.blocks.shape)
    ways[RANDOM] = flat[chosen[RANDOM]]
    every = cut_patches(asked.pixels, patches.shape[1])
    starts = np.arange(len(asked.pixels)) * (len(every) // len(asked.pixels))
    real = every[starts[:, np.newaxis] + asked.blocks].astype(np.float32)
    found = {}
    for way, tokens in ways.items():
        pasted = patches[chosen[way]]
        lengths = np.linalg.norm(tokens, axis=-1) * np.linalg.norm(asked.true, axis=-1)
        cosine = float(((tokens * asked.true).sum(axis=-1) / lengths).mean())
        difference = float(np.abs(pasted.astype(np.float32) - real).mean() / 255)
        found[way] = Filled(pasted, cosine, difference)
    return found


def nearest_patches(queries: Floats, tokens: Floats) -> Ints:
    """Number of the token nearest to each query by cosine: (...) for (..., dim) queries."""
    _, numbers = cosine_knn(queries.reshape(-1, queries.shape[-1]), tokens, 1)
    return numbers.reshape(queries.shape[:-1])


def cut_patches(images: Pixels, patch_px: int) -> Pixels:
    """(n * N, patch, patch, 3) of (n, height, width, 3) images: row-major, image after image."""
    num, height, width, _ = images.shape
    rows, columns = height // patch_px, width // patch_px
    tiles = images.reshape(num, rows, patch_px, columns, patch_px, 3).swapaxes(2, 3)
    return tiles.reshape(-1, patch_px, patch_px, 3)


def with_patches(image: Pixels, numbers: Ints, patches: Pixels) -> Pixels:
    """A copy of the image (height, width, 3) with these patches at these places of its grid."""
    filled, side = image.copy(), patches.shape[1]
    for number, patch in zip(numbers.tolist(), patches, strict=True):
        row, column = (side * place for place in divmod(number, image.shape[1] // side))
        filled[row : row + side, column : column + side] = patch
    return filled


def draw_predictions(config: PredictionsConfig, given: Given) -> Drawing:
    """Decoded samples in their place; sample k of prediction and truth begin with the same noise.

    Spread: standard deviation over the samples of one embedding, mean over pixels of the block, in
    levels of 255; None for a single sample.
    """
    assert given.data is not None
    if given.data.pixels:
        raise IjepaError(f"A decoder draws 8-bit RGB; {given.data.folder} is of other images.")
    device, (jepa, run) = pick_device(given.runtime.device), load_jepa(config.encoder)
    decoder = load_decoder(Path(config.decoder), jepa, config.encoder).to(device)
    jepa.to(device)
    split, made = given.split(config.split), decoder.config
    numbers = held_numbers(len(split), config.images, config.seed)
    images = read_views(split, numbers, run.data).to(device)
    masks, boxes = draw_blocks(run, len(images), config.seed, HELD_OUT)
    whole, contexts = as_pixels(images, given), masks.context.numpy()
    context = np.stack([keep_patches(w, c, run.grid) for w, c in zip(whole, contexts, strict=True)])
    seen = torch.from_numpy(context).permute(0, 3, 1, 2).to(device)
    masks, columns, spreads = masks.to(device), [whole, context], []
    headings, total = ["image", "context"], config.samples + config.target_samples
    for title, count, of in (
        ("prediction, decoded", config.samples, "predictions"),
        ("true embedding, decoded", config.target_samples, "targets"),
    ):
        condition = embed(jepa, run.data, images, masks, of)
        samples = []
        for number in range(count):
            noise, _ = draw_flow(len(images), made.image_px, config.seed, HELD_OUT + number)
            samples.append(sample_blocks(decoder, condition, noise.to(device), made.sampling_steps))
            columns.append(as_pixels(paste_blocks(seen, boxes, samples[-1]), given))
            headings.append("" if number else title)
            given.progress("draw samples", len(columns) - 2, total)
        several = len(samples) > 1
        spreads.append(torch.stack(samples).std(dim=0).mean().item() * 127.5 if several else None)
    layer = f"block {run.targets.layers[-1]}" if run.targets.layers else "last layer"
    captions = (
        f"Encoder {config.encoder}, {layer}; data {given.data.source}, {config.split}; "
        f"{run.masks.kind} blocks, seed {config.seed}.",
        f"Decoder {config.decoder}: of {made.condition}, {made.image_px} px, {made.steps:,} steps, "
        f"seed {made.seed}; {made.sampling_steps} Euler steps a sample.",
    )
    rows, (high, wide) = [], whole.shape[1:3]
    for number, (top, left, height, width) in enumerate(boxes.tolist()):
        line = box(left / wide, top / high, width / wide, height / high)
        rows.append([Tile(pictures[number], (), [line], ORANGE) for pictures in columns])
    drawn = sheet([Section("", [[heading] for heading in headings], rows)], captions, 144)
    figures = {"spread_predicted": spreads[0], "spread_target": spreads[1]}
    facts = {"encoders": [config.encoder], "images": len(numbers), "keys": split.keys(numbers)}
    return drawn, {**facts, "figures": figures}
