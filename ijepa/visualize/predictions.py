"""What a run predicts for hidden blocks, as real patches or as pixels of a decoder."""

from pathlib import Path

import numpy as np
import torch

from ijepa.config import PredictionsConfig, RetrievalConfig
from ijepa.decoder.model import (
    embed,
    held_numbers,
    hold,
    load_decoder,
    noise_of,
    paste_blocks,
    sample_blocks,
)
from ijepa.distributed import pick_device
from ijepa.encoders.own import load_jepa
from ijepa.errors import IjepaError
from ijepa.figures.draw import ORANGE, Section, Tile, box, keep_patches, sheet
from ijepa.figures.retrieval import (
    MEAN,
    PREDICTED,
    TRUE,
    ask,
    fill_blocks,
    retrieval_section,
    store_of,
)
from ijepa.visualize import Drawing, Given
from ijepa.visualize.images import as_pixels, draw_images, more_images, pick_images, views_of

MOST_BYTES = 2**31  # of tokens and pixels of the patches that may be retrieved


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
        (height, width), (rows, columns) = run.data.image_size, run.grid
        most = MOST_BYTES // (4 * rows * columns * jepa.encoder.embed_dim + 3 * height * width)
        if len(stored) > most:
            raise IjepaError(
                f"A store of {len(stored):,} images takes more than {MOST_BYTES / 2**30:g} GiB of "
                f"memory; --store-images {most} is the most for this encoder."
            )
        jepa.to(device)
        views = views_of(split, numbers, run.data)
        asked = ask(jepa, run, views, as_pixels(views, given), config.seed)
        views = views_of(store_split, stored, run.data)
        store = store_of(jepa, run, views, as_pixels(views, given))
        filled = fill_blocks(asked, store, np.random.default_rng(config.seed))
        title = f"{name}: context encoder ({len(jepa.encoder.blocks)} blocks) and predictor"
        sections.append(retrieval_section(asked, filled, len(shown))._replace(title=title))
        figures |= {f"cosine of {way}, {name}": f.cosine for way, f in filled.items()}
        figures |= {f"difference of {way}, {name}": f.difference for way, f in filled.items()}
        given.progress("retrieve patches for runs", place, len(config.encoder))
    captions = (
        "One hidden block, each of its patches shown by the nearest real patch (cosine of "
        f"layer-normed target tokens) of {config.store_images} other images of split "
        f"{config.store_split}. {PREDICTED}: from the context alone; {TRUE}: the best to be had; "
        f"{MEAN}: the mean token at that place, whatever the image.",
        f"Numbers, over {len(numbers)} images: cosine to the true tokens; mean difference of "
        f"colour to the real block, 0 to 1.",
        given.source(config),
    )
    drawn = sheet(sections, captions, 144)
    facts = {"encoders": config.encoder, "images": len(shown), "keys": split.keys(shown)}
    return drawn, {**facts, "figures": figures}


def draw_predictions(config: PredictionsConfig, given: Given) -> Drawing:
    """Decoded samples in their place; sample k of prediction and truth begin with the same noise.

    Spread: standard deviation over the samples of one embedding, mean over pixels of the block, in
    levels of 255; None for a single sample.
    """
    device, (jepa, run) = pick_device(given.runtime.device), load_jepa(config.encoder)
    decoder = load_decoder(Path(config.decoder), jepa, config.encoder).to(device)
    jepa.to(device)
    split, made = given.split(config.split), decoder.config
    numbers = held_numbers(len(split), config.images, config.seed)
    images = views_of(split, numbers, run.data).to(device)
    masks, boxes = hold(run, images, config.seed)
    whole, contexts = as_pixels(images, given), masks.context.cpu().numpy()
    context = np.stack([keep_patches(w, c, run.grid) for w, c in zip(whole, contexts, strict=True)])
    seen = torch.from_numpy(context).permute(0, 3, 1, 2).to(device)
    columns, spreads = [whole, context], []
    headings, total = ["image", "context"], config.samples + config.target_samples
    for title, count, of in (
        ("prediction, decoded", config.samples, "predictions"),
        ("true embedding, decoded", config.target_samples, "targets"),
    ):
        condition = embed(jepa, run.data, images, masks, of)
        samples = []
        for number in range(count):
            noise = noise_of(number, len(images), made.image_px, config.seed).to(device)
            samples.append(sample_blocks(decoder, condition, noise, made.sampling_steps))
            columns.append(as_pixels(paste_blocks(seen, boxes, samples[-1]), given))
            headings.append("" if number else title)
            given.progress("draw samples", len(columns) - 2, total)
        several = len(samples) > 1
        spreads.append(torch.stack(samples).std(dim=0).mean().item() * 127.5 if several else None)
    assert given.data is not None
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
