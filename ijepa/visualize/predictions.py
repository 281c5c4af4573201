"""What a run predicts for hidden blocks, as real patches or as pixels of a decoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ijepa.config import PredictionsConfig, RetrievalConfig, Runtime
from ijepa.data.shards import ShardSet, SplitReader
from ijepa.decoder.blocks import paste_blocks
from ijepa.decoder.honesty import held_numbers, hold, noise_of
from ijepa.decoder.model import embed, load_decoder, sample_blocks
from ijepa.distributed import pick_device
from ijepa.encoders.base import weights_sha256
from ijepa.encoders.own import TrainedJepa, load_jepa
from ijepa.errors import IjepaError
from ijepa.figures.draw import Ints, keep_patches
from ijepa.figures.predictions import prediction_figure
from ijepa.figures.retrieval import (
    MEAN,
    PREDICTED,
    TRUE,
    Asked,
    Filled,
    PatchStore,
    cut_patches,
    fill_blocks,
    retrieval_figure,
)
from ijepa.jepa.masks import Masks, sample_masks
from ijepa.jepa.model import last_layer, target_tokens
from ijepa.jepa.rng import MASKS, stream
from ijepa.progress import Progress
from ijepa.visualize import Shows, Sources
from ijepa.visualize.images import (
    as_input,
    as_pixels,
    draw_images,
    more_images,
    pick_images,
    source_of,
    views_of,
)

AT_ONCE = 32  # images in the device's memory
MOST_BYTES = 2**31  # of tokens and pixels in a patch store


def draw_retrieval(
    config: RetrievalConfig, sources: Sources, runtime: Runtime, progress: Progress
) -> Shows:
    """Each token of a hidden block takes the look of the nearest real patch.

    Beside the predictions: what the block's true tokens retrieve, the best that a prediction can
    do; what the mean token at each place retrieves, which knows nothing of the image; and patches
    at random.
    """
    data, device = sources.images, pick_device(runtime.device)
    split = data.split(config.split)
    shown = pick_images(split, config)
    numbers = more_images(split, shown, config.measured, config.seed)
    sections: list[tuple[str, Asked, Mapping[str, Filled]]] = []
    figures: dict[str, float] = {}
    for place, name in enumerate(config.encoder, start=1):
        trained = load_jepa(name)
        if trained.config.targets.space != "embeddings":
            raise IjepaError(f"{name} predicts {trained.config.targets.space}, not embeddings.")
        trained.jepa.to(device)
        asked = _ask(trained, split, numbers, config.seed, device)
        store = _store(trained, data, config, numbers, device)
        filled = fill_blocks(asked, store, np.random.default_rng(config.seed))
        depth = len(trained.jepa.encoder.blocks)
        title = f"{name}: context encoder ({depth} blocks) and predictor"
        sections.append((title, asked, filled))
        figures |= {f"cosine of {way}, {name}": f.cosine for way, f in filled.items()}
        figures |= {f"difference of {way}, {name}": f.difference for way, f in filled.items()}
        progress("retrieve patches for runs", place, len(config.encoder))
    captions = (
        "One hidden block, each of its patches shown by the nearest real patch (cosine of "
        f"layer-normed target tokens) of {config.store_images} other images of split "
        f"{config.store_split}. {PREDICTED}: from the context alone; {TRUE}: the best to be had; "
        f"{MEAN}: the mean token at that place, whatever the image.",
        f"Numbers, over {len(numbers)} images: cosine to the true tokens; mean difference of "
        f"colour to the real block, 0 to 1.",
        source_of(data, config),
    )
    drawn = retrieval_figure(sections, len(shown), captions)
    return Shows(drawn, config.encoder, len(shown), split.keys(shown), figures)


def _ask(
    trained: TrainedJepa,
    split: SplitReader,
    numbers: Sequence[int],
    seed: int,
    device: torch.device,
) -> Asked:
    """Draw a context and a block for each image by the run's own masks, and predict the block."""
    config = trained.config
    views = views_of(split, numbers, config.data)
    groups = sample_masks(config.grid, len(numbers), config.masks, stream(seed, MASKS, 0))
    contexts: list[Ints] = []
    blocks, predictions, truths = [], [], []
    for masks in groups:
        for first in range(0, len(masks.context), AT_ONCE):
            part = masks.images(slice(first, first + AT_ONCE))
            part = Masks(part.context, part.targets[:1])
            some = views[len(contexts) : len(contexts) + len(part.context)]
            with torch.inference_mode():
                images = as_input(some, config.data, device)
                [(predicted, true)] = trained.jepa(images, [part.to(device)])
            blocks.append(part.targets[0].numpy())
            predictions.append(last_layer(predicted, config.targets).float().cpu().numpy())
            truths.append(last_layer(true, config.targets).float().cpu().numpy())
            contexts += list(part.context.numpy())
    together = (np.concatenate(arrays) for arrays in (blocks, predictions, truths))
    return Asked(as_pixels(views), contexts, *together)


def _store(
    trained: TrainedJepa,
    data: ShardSet,
    config: RetrievalConfig,
    asked: Sequence[int],
    device: torch.device,
) -> PatchStore:
    """Tokens and pixels of all patches of some images, none of which is asked about."""
    run, encoder = trained.config, trained.jepa.target_encoder
    split = data.split(config.store_split)
    without = asked if config.store_split == config.split else []
    numbers = draw_images(split, config.store_images, config.seed, without)
    (rows, columns), (height, width) = run.grid, run.data.image_size
    most = MOST_BYTES // (4 * rows * columns * encoder.embed_dim + 3 * height * width)
    if len(numbers) > most:
        raise IjepaError(
            f"A store of {len(numbers):,} images takes more than {MOST_BYTES / 2**30:g} GiB of "
            f"memory; --store-images {most} is the most for this encoder."
        )
    views = views_of(split, numbers, run.data)
    found = []
    with torch.inference_mode():
        for some in torch.split(views, AT_ONCE):
            images = as_input(some, run.data, device)
            found.append(last_layer(target_tokens(run.targets, encoder, images), run.targets).cpu())
    tokens = torch.cat(found)
    patches = cut_patches(as_pixels(views), run.encoder.patch_px)
    return PatchStore(tokens.flatten(0, 1).float().numpy(), patches, tokens.shape[1])


def draw_predictions(
    config: PredictionsConfig, sources: Sources, runtime: Runtime, progress: Progress
) -> Shows:
    """Decoded samples in their place; sample k of prediction and truth begin with the same noise.

    Spread: standard deviation over the samples of one embedding, mean over pixels of the block, in
    levels of 255; None for a single sample.
    """
    device, trained = pick_device(runtime.device), load_jepa(config.encoder)
    run, sha256 = trained.config, weights_sha256(trained.jepa.state_dict())
    decoder = load_decoder(Path(config.decoder), trained.jepa, trained.name, sha256).to(device)
    trained.jepa.to(device)
    data, made = sources.images, decoder.config
    split = data.split(config.split)
    numbers = held_numbers(len(split), config.images, config.seed)
    images = views_of(split, numbers, run.data).to(device)
    masks, boxes = hold(run, images, config.seed)
    whole, contexts = as_pixels(images), masks.context.cpu().numpy()
    context = np.stack([keep_patches(w, c, run.grid) for w, c in zip(whole, contexts, strict=True)])
    seen = torch.from_numpy(context).permute(0, 3, 1, 2).to(device)
    columns, spreads = [("image", whole), ("context", context)], []
    total = config.samples + config.target_samples
    for title, count, of in (
        ("prediction, decoded", config.samples, "predictions"),
        ("true embedding, decoded", config.target_samples, "targets"),
    ):
        condition = embed(trained.jepa, run.data, images, masks, of)
        samples = []
        for number in range(count):
            noise = noise_of(number, len(images), made.image_px, config.seed).to(device)
            blocks = sample_blocks(decoder, condition, noise, made.sampling_steps)
            samples.append(blocks)
            columns.append((title, as_pixels(paste_blocks(seen, boxes, blocks))))
            progress("draw samples", len(columns) - 2, total)
        several = len(samples) > 1
        spreads.append(torch.stack(samples).std(dim=0).mean().item() * 127.5 if several else None)
    layer = f"block {run.targets.layers[-1]}" if run.targets.layers else "last layer"
    captions = (
        f"Encoder {trained.name}, {layer}; data {data.source}, {config.split}; {run.masks.kind} "
        f"blocks, seed {config.seed}.",
        f"Decoder {config.decoder}: of {made.condition}, {made.image_px} px, {made.steps:,} steps, "
        f"seed {made.seed}; {made.sampling_steps} Euler steps a sample.",
    )
    places = [(top, left, height, width) for top, left, height, width in boxes.tolist()]
    figures = {"spread_predicted": spreads[0], "spread_target": spreads[1]}
    drawn = prediction_figure(columns, places, captions)
    return Shows(drawn, [trained.name], len(numbers), split.keys(numbers), figures)
