"""Predictions shown by the real patches nearest to them, pasted where the block was hidden."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ijepa.figures.draw import (
    ORANGE,
    Floats,
    Ints,
    Line,
    Pixels,
    Section,
    Tile,
    keep_patches,
    sheet,
)
from ijepa.figures.neighbors import Nearest

PREDICTED, TRUE, MEAN, RANDOM = "prediction", "true tokens", "mean at place", "random"


class PatchStore(NamedTuple):
    """Real patches: tokens of the target encoder, as predictions should be, and pixels.

    Attributes:
        tokens: (images * N, dim) float32, layer-normed.
        patches: (images * N, patch, patch, 3) uint8.
        num_patches: N, of an image.
    """

    tokens: Floats
    patches: Pixels
    num_patches: int

    def mean_at_places(self) -> Floats:
        """(N, dim): mean token of all images at each place of the grid."""
        found: Floats = self.tokens.reshape(-1, self.num_patches, self.tokens.shape[1]).mean(axis=0)
        return found


class Asked(NamedTuple):
    """One hidden block in each of n images, and what is known of it.

    Attributes:
        pixels: (n, height, width, 3) uint8 images.
        contexts: (K,) patches of each image; K may differ.
        blocks: (n, T) patches of the block.
        predicted: (n, T, dim) by the predictor, from the context.
        true: (n, T, dim) by the target encoder.
    """

    pixels: Pixels
    contexts: list[Ints]
    blocks: Ints
    predicted: Floats
    true: Floats


class Filled(NamedTuple):
    """Blocks filled with real patches.

    Attributes:
        patches: (n, T, patch, patch, 3) uint8.
        cosine: of the tokens that chose them to the true tokens, mean over all patches.
        difference: of colour to the real patches, mean, 0 to 1.
    """

    patches: Pixels
    cosine: float
    difference: float


def fill_blocks(asked: Asked, store: PatchStore, rng: np.random.Generator) -> dict[str, Filled]:
    """Put real patches in place of each block, chosen in each of the four ways."""
    means = store.mean_at_places()[asked.blocks]
    ways = {PREDICTED: asked.predicted, TRUE: asked.true, MEAN: means}
    chosen = {way: nearest_patches(tokens, store.tokens) for way, tokens in ways.items()}
    chosen[RANDOM] = rng.integers(0, len(store.tokens), asked.blocks.shape)
    ways[RANDOM] = store.tokens[chosen[RANDOM]]
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
    found = Nearest(queries.reshape(-1, queries.shape[-1]), 1)
    found.add(tokens)
    return found.numbers.reshape(queries.shape[:-1])


def cut_patches(images: Pixels, patch_px: int) -> Pixels:
    """(n * N, patch, patch, 3) of (n, height, width, 3) images: row-major, image after image."""
    num, height, width, _ = images.shape
    rows, columns = height // patch_px, width // patch_px
    tiles = images.reshape(num, rows, patch_px, columns, patch_px, 3).swapaxes(2, 3)
    return tiles.reshape(-1, patch_px, patch_px, 3)


def with_patches(image: Pixels, numbers: Ints, patches: Pixels) -> Pixels:
    """A copy of the image (height, width, 3) with these patches at these places of its grid."""
    side = patches.shape[1]
    columns = image.shape[1] // side
    filled = image.copy()
    for number, patch in zip(numbers.tolist(), patches, strict=True):
        row, column = divmod(number, columns)
        filled[row * side : (row + 1) * side, column * side : (column + 1) * side] = patch
    return filled


def retrieval_figure(
    sections: Sequence[tuple[str, Asked, Mapping[str, Filled]]],
    shown: int,
    captions: Sequence[str],
) -> Figure:
    """Draw one row an image: image, context, and each way to fill the block; a section a run.

    Args:
        sections: title, images and blocks, and what `fill_blocks` gives for them.
        shown: how many of the images, the first ones.
        captions: sentences that stand above.
    """
    drawn = []
    for title, asked, filled in sections:
        side = next(iter(filled.values())).patches.shape[2]
        grid = asked.pixels.shape[1] // side, asked.pixels.shape[2] // side
        rows = []
        for number, image in enumerate(asked.pixels[:shown]):
            block, seen = asked.blocks[number], keep_patches(image, asked.contexts[number], grid)
            pasted = [with_patches(seen, block, way.patches[number]) for way in filled.values()]
            lines = [
                [(x / grid[1], y / grid[0]) for x, y in edge] for edge in outline(block, grid[1])
            ]
            rows.append([Tile(tile, (), lines, ORANGE) for tile in (image, seen, *pasted)])
        notes = [(way, f"{f.cosine:.3f}, {f.difference:.3f}") for way, f in filled.items()]
        drawn.append(Section(title, [["image"], ["context"], *notes], rows))
    return sheet(drawn, captions, 144)


def outline(block: Ints, columns: int) -> list[Line]:
    """Edges between patches of a block and others, in patches from the upper left corner."""
    inside = {divmod(number, columns) for number in block.tolist()}
    edges: list[Line] = []
    for row, column in sorted(inside):
        sides = {
            (row - 1, column): ((column, row), (column + 1, row)),
            (row + 1, column): ((column, row + 1), (column + 1, row + 1)),
            (row, column - 1): ((column, row), (column, row + 1)),
            (row, column + 1): ((column + 1, row), (column + 1, row + 1)),
        }
        edges += [edge for neighbour, edge in sides.items() if neighbour not in inside]
    return edges
