"""Predictions shown by the real patches nearest to them, pasted where the block was hidden.

Beside the predictions: what the block's true tokens retrieve, the best that a prediction can do;
what the mean token at each place retrieves, which knows nothing of the image; and patches at
random.
"""

from collections.abc import Mapping
from typing import NamedTuple

import faiss
import numpy as np
import torch
from torch import Tensor

from ijepa.arrays import Floats, Ints, Pixels
from ijepa.config import PretrainConfig
from ijepa.figures.draw import ORANGE, Line, Section, Tile, keep_patches
from ijepa.figures.neighbors import unit
from ijepa.jepa.augment import normalise
from ijepa.jepa.masks import Masks, sample_masks
from ijepa.jepa.model import IJepa, last_layer, target_tokens
from ijepa.jepa.rng import MASKS, stream

PREDICTED, TRUE, MEAN, RANDOM = "prediction", "true tokens", "mean at place", "random"
AT_ONCE = 32  # images in the device's memory


class PatchStore(NamedTuple):
    """Real patches: tokens of the target encoder, as predictions should be, and pixels."""

    tokens: Floats  # (images, N, dim) float32, layer-normed
    patches: Pixels  # (images * N, patch, patch, 3)


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
def store_of(jepa: IJepa, config: PretrainConfig, views: Tensor, pixels: Pixels) -> PatchStore:
    """Tokens and pixels of all patches of some images; views and pixels as for `ask`."""
    found, device = [], next(jepa.parameters()).device
    for some in torch.split(views, AT_ONCE):
        images = normalise(some.to(device), config.data.mean, config.data.std)
        tokens = target_tokens(config.targets, jepa.target_encoder, images)
        found.append(last_layer(tokens, config.targets).float().cpu())
    patches = cut_patches(pixels, config.encoder.patch_px)
    return PatchStore(torch.cat(found).numpy(), patches)


def fill_blocks(asked: Query, store: PatchStore, rng: np.random.Generator) -> dict[str, Filled]:
    """Put real patches in place of each block, chosen in each of the four ways."""
    flat = store.tokens.reshape(-1, store.tokens.shape[-1])
    means = store.tokens.mean(axis=0)[asked.blocks]
    ways = {PREDICTED: asked.predicted, TRUE: asked.true, MEAN: means}
    chosen = {way: nearest_patches(tokens, flat) for way, tokens in ways.items()}
    chosen[RANDOM] = rng.integers(0, len(flat), asked.blocks.shape)
    ways[RANDOM] = flat[chosen[RANDOM]]
    every = cut_patches(asked.pixels, store.patches.shape[1])
    starts = np.arange(len(asked.pixels)) * (len(every) // len(asked.pixels))
    real = every[starts[:, np.newaxis] + asked.blocks].astype(np.float32)
    found = {}
    for way, tokens in ways.items():
        patches = store.patches[chosen[way]]
        lengths = np.linalg.norm(tokens, axis=-1) * np.linalg.norm(asked.true, axis=-1)
        cosine = float(((tokens * asked.true).sum(axis=-1) / lengths).mean())
        difference = float(np.abs(patches.astype(np.float32) - real).mean() / 255)
        found[way] = Filled(patches, cosine, difference)
    return found


def nearest_patches(queries: Floats, tokens: Floats) -> Ints:
    """Number of the token nearest to each query by cosine: (...) for (..., dim) queries."""
    flat = unit(queries.reshape(-1, queries.shape[-1]))
    numbers: Ints = faiss.knn(flat, unit(tokens), 1, metric=faiss.METRIC_INNER_PRODUCT)[1]
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


def retrieval_section(asked: Query, filled: Mapping[str, Filled], shown: int) -> Section:
    """One row for each of the first `shown` images: image, context, and each way to fill it."""
    side = filled[PREDICTED].patches.shape[2]
    grid = asked.pixels.shape[1] // side, asked.pixels.shape[2] // side
    rows = []
    for number, image in enumerate(asked.pixels[:shown]):
        block, seen = asked.blocks[number], keep_patches(image, asked.contexts[number], grid)
        pasted = [with_patches(seen, block, way.patches[number]) for way in filled.values()]
        lines = outline(block, grid)
        rows.append([Tile(tile, (), lines, ORANGE) for tile in (image, seen, *pasted)])
    notes = [(way, f"{f.cosine:.3f}, {f.difference:.3f}") for way, f in filled.items()]
    return Section("", [["image"], ["context"], *notes], rows)


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
