"""Predictions decoded without training: each takes the look of the nearest real patch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import Field

from ijepa.config import RUNTIME, Runtime, StrPath
from ijepa.data.shards import ShardSet, SplitReader
from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent
from ijepa.visualize.frame import ChoiceOfBoth, Drawn, Order, draw_encoders
from ijepa.visualize.images import ImageChoice, Picture, caption_of, draw_images, evaluation_views

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ijepa.encoders.own import TrainedJepa
    from ijepa.figures.nearest import Floats, Ints
    from ijepa.figures.retrieval_sheet import RetrievalRow
    from ijepa.figures.sheet import Pixels
    from ijepa.jepa.masks import Masks
    from ijepa.jepa.model import IJepa

VERSION = 2
AT_ONCE = 32  # images in memory of the device
MOST_BYTES = 2**31  # of tokens and pixels in a patch store
PREDICTED, TRUE, MEAN, RANDOM = "prediction", "true tokens", "mean at place", "random"


class RetrievalConfig(ChoiceOfBoth):
    """Whose predictions, in which images, and among which patches they look for the nearest.

    Attributes:
        encoder: runs side by side; the rest of the name is of no effect.
        images: which are shown.
        measured: over how many images, the shown ones among them, errors are taken.
        store_split: where the patch store's images come from; never an image that is looked at.
        store_images: how many; all their patches are in the store.
    """

    images: ImageChoice = ImageChoice(num_images=6)
    measured: Annotated[int, Field(ge=1)] = 128
    store_split: str = "train"
    store_images: Annotated[int, Field(ge=1)] = 512


class PatchStore(NamedTuple):
    """Real patches: tokens of the target encoder, as predictions should be, and pixels.

    Attributes:
        tokens: (images * N, dim) float32, layer-normed.
        patches: (images * N, patch, patch, 3) uint8.
        num_patches: N, of an image.
    """

    tokens: "Floats"
    patches: "Pixels"
    num_patches: int

    def mean_at_places(self) -> "Floats":
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

    pixels: "Pixels"
    contexts: "list[Ints]"
    blocks: "Ints"
    predicted: "Floats"
    true: "Floats"


class Filled(NamedTuple):
    """Blocks filled with real patches.

    Attributes:
        patches: (n, T, patch, patch, 3) uint8.
        cosine: of the tokens that chose them to the true tokens, mean over all patches.
        difference: of colour to the real patches, mean, 0 to 1.
    """

    patches: "Pixels"
    cosine: float
    difference: float


def visualize_retrieval(
    shards: StrPath,
    out: StrPath,
    config: RetrievalConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> Picture:
    """Draw hidden blocks filled with the real patches nearest to their predictions.

    Beside it what the block's true tokens retrieve, the best that a prediction can do; what the
    mean token at each place retrieves, which knows nothing of the image; and patches at random.

    Raises:
        IjepaError: no such run, split or image, a run that predicts pixels, or too large a store.
    """
    shards, out = Path(shards), Path(out)

    def draw(data: ShardSet, shown: list[int]) -> Drawn:
        from ijepa.figures.retrieval_sheet import retrieval_sheet

        split = data.split(config.images.split)
        missing = min(config.measured, len(split)) - len(shown)
        numbers = shown + draw_images(split, max(missing, 0), config.images.seed, without=shown)
        sections, notes = [], {}
        figures: dict[str, float] = {}
        for place, name in enumerate(config.encoder.encoders):
            title, rows, found = _section(name, data, config, numbers, len(shown), runtime)
            sections.append((title, rows))
            notes[title] = {way: f"{f.cosine:.3f}, {f.difference:.3f}" for way, f in found.items()}
            figures |= {f"cosine of {way}, {name}": f.cosine for way, f in found.items()}
            figures |= {f"difference of {way}, {name}": f.difference for way, f in found.items()}
            progress("retrieve patches for runs", place + 1, len(config.encoder.encoders))
        sheet = retrieval_sheet(sections, notes, _captions(config, data, len(numbers)))
        return Drawn(sheet, config.encoder.encoders, figures)

    return draw_encoders(Order("retrieval", VERSION, shards, out, config, runtime), draw)


def _captions(config: RetrievalConfig, data: ShardSet, measured: int) -> tuple[str, ...]:
    return (
        "One hidden block, each of its patches shown by the nearest real patch (cosine of "
        f"layer-normed target tokens) of {config.store_images} other images of split "
        f"{config.store_split}. {PREDICTED}: from the context alone; {TRUE}: the best to be had; "
        f"{MEAN}: the mean token at that place, whatever the image.",
        f"Numbers, over {measured} images: cosine to the true tokens; mean difference of colour to "
        f"the real block, 0 to 1.",
        caption_of(data, config.images),
    )


def _section(
    name: str,
    data: ShardSet,
    config: RetrievalConfig,
    numbers: list[int],
    shown: int,
    runtime: Runtime,
) -> "tuple[str, list[RetrievalRow], dict[str, Filled]]":
    """Title, rows of the shown images, and what each way to fill blocks gives in all images."""
    from ijepa.distributed import pick_device
    from ijepa.encoders.own import load_jepa
    from ijepa.figures.retrieval_sheet import RetrievalRow

    device = pick_device(runtime.device)
    trained = load_jepa(name)
    if trained.config.targets.space != "embeddings":
        raise IjepaError(f"{name} predicts {trained.config.targets.space}, not embeddings.")
    trained.jepa.to(device)
    split = data.split(config.images.split)
    asked = _ask(trained, split, numbers, config.images.seed, device)
    store = _store(trained, data, config, numbers, device)
    filled = fill_blocks(asked, store, np.random.default_rng(config.images.seed))
    rows = [
        RetrievalRow(
            asked.pixels[n],
            asked.contexts[n],
            asked.blocks[n],
            {way: found.patches[n] for way, found in filled.items()},
        )
        for n in range(shown)
    ]
    depth = len(trained.jepa.encoder.blocks)
    return f"{name}: context encoder ({depth} blocks) and predictor", rows, filled


def fill_blocks(asked: Asked, store: PatchStore, rng: np.random.Generator) -> dict[str, Filled]:
    """Put real patches in place of each block, chosen in each of the four ways."""
    from ijepa.figures.retrieval_sheet import nearest_patches

    ways = {
        PREDICTED: asked.predicted,
        TRUE: asked.true,
        MEAN: store.mean_at_places()[asked.blocks],
    }
    chosen = {way: nearest_patches(tokens, store.tokens) for way, tokens in ways.items()}
    chosen[RANDOM] = rng.integers(0, len(store.tokens), asked.blocks.shape)
    ways[RANDOM] = store.tokens[chosen[RANDOM]]
    real = _real_patches(asked, store.patches.shape[1])
    return {
        way: Filled(
            store.patches[chosen[way]],
            _mean_cosine(tokens, asked.true),
            _difference(store.patches[chosen[way]], real),
        )
        for way, tokens in ways.items()
    }


def _real_patches(asked: Asked, patch_px: int) -> "Pixels":
    """(n, T, patch, patch, 3) uint8: what the blocks hide."""
    from ijepa.figures.retrieval_sheet import cut_patches

    patches = cut_patches(asked.pixels, patch_px)
    starts = np.arange(len(asked.pixels)) * (len(patches) // len(asked.pixels))
    found: Pixels = patches[starts[:, np.newaxis] + asked.blocks]
    return found


def _mean_cosine(tokens: "Floats", true: "Floats") -> float:
    lengths = np.linalg.norm(tokens, axis=-1) * np.linalg.norm(true, axis=-1)
    return float(((tokens * true).sum(axis=-1) / lengths).mean())


def _ask(
    trained: "TrainedJepa",
    split: SplitReader,
    numbers: list[int],
    seed: int,
    device: "torch.device",
) -> Asked:
    """Draw a context and a block for each image by the run's own masks, and predict the block."""
    from ijepa.jepa.masks import sample_masks
    from ijepa.jepa.rng import MASKS, stream

    config = trained.config
    views = evaluation_views(split, numbers, config.data)
    groups = sample_masks(config.grid, len(numbers), config.masks, stream(seed, MASKS, 0))
    contexts: list[Ints] = []
    answers, start = [], 0
    for masks in groups:
        for first in range(0, len(masks.context), AT_ONCE):
            part = masks.images(slice(first, first + AT_ONCE))
            images = _normalised(views[start : start + len(part.context)], trained, device)
            answers.append(_predict(trained.jepa, images, part, device))
            contexts += list(part.context.numpy())
            start += len(part.context)
    return Asked(
        views.permute(0, 2, 3, 1).numpy(),
        contexts,
        np.concatenate([masks.targets[0].numpy() for masks in groups]),
        np.concatenate([predicted for predicted, _ in answers]),
        np.concatenate([true for _, true in answers]),
    )


def _predict(
    jepa: "IJepa", images: "Tensor", masks: "Masks", device: "torch.device"
) -> "tuple[Floats, Floats]":
    """Tokens (B, T, dim) of the first target block: predicted, and by the target encoder."""
    import torch

    from ijepa.jepa.masks import Masks
    from ijepa.jepa.model import last_layer

    with torch.inference_mode():
        [(predicted, true)] = jepa(images, [Masks(masks.context, masks.targets[:1]).to(device)])
    predicted, true = (last_layer(each, jepa.config) for each in (predicted, true))
    return predicted.float().cpu().numpy(), true.float().cpu().numpy()


def _store(
    trained: "TrainedJepa",
    data: ShardSet,
    config: RetrievalConfig,
    asked: list[int],
    device: "torch.device",
) -> PatchStore:
    """Tokens and pixels of all patches of some images, none of which is asked about."""
    import torch

    from ijepa.figures.retrieval_sheet import cut_patches
    from ijepa.jepa.model import last_layer, target_tokens

    split = data.split(config.store_split)
    without = asked if config.store_split == config.images.split else []
    numbers = draw_images(split, config.store_images, config.images.seed, without)
    _check_size(trained, len(numbers))
    views = evaluation_views(split, numbers, trained.config.data)
    targets, encoder = trained.config.targets, trained.jepa.target_encoder
    found = []
    with torch.inference_mode():
        for some in torch.split(views, AT_ONCE):
            images = _normalised(some, trained, device)
            found.append(last_layer(target_tokens(targets, encoder, images), targets).cpu())
    tokens = torch.cat(found)
    patches = cut_patches(views.permute(0, 2, 3, 1).numpy(), trained.config.encoder.patch_px)
    return PatchStore(tokens.flatten(0, 1).float().numpy(), patches, tokens.shape[1])


def _check_size(trained: "TrainedJepa", images: int) -> None:
    rows, columns = trained.config.grid
    height, width = trained.config.data.image_size
    token_bytes = 4 * rows * columns * trained.jepa.target_encoder.embed_dim
    most = MOST_BYTES // (token_bytes + 3 * height * width)
    if images > most:
        raise IjepaError(
            f"A store of {images:,} images takes more than {MOST_BYTES / 2**30:g} GiB of memory; "
            f"--store-images {most} is the most for this encoder."
        )


def _normalised(views: "Tensor", trained: "TrainedJepa", device: "torch.device") -> "Tensor":
    from ijepa.jepa.augment import normalise

    return normalise(views.to(device), trained.config.data.mean, trained.config.data.std)


def _difference(found: "Pixels", real: "Pixels") -> float:
    """Mean absolute difference of colours, 0 to 1."""
    return float(np.abs(found.astype(np.float32) - real.astype(np.float32)).mean() / 255)
