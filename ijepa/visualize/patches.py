"""What encoders make of patches: attention, principal components of tokens."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ijepa.arrays import Pixels
from ijepa.config import AttentionConfig, DataConfig, EncodersConfig, PcaConfig
from ijepa.distributed import pick_device
from ijepa.encoders.base import Encoder
from ijepa.encoders.spec import EncoderSpec
from ijepa.figures.attention import HOW, attention_section, block_number, query_of
from ijepa.figures.draw import sheet
from ijepa.figures.pca import colour_figure, patch_colours
from ijepa.jepa.augment import normalise
from ijepa.visualize import Drawing, Given
from ijepa.visualize.images import as_pixels, more_images, pick_images, views_of

AT_ONCE = 16  # images in the device's memory


def _encoder(name: str, config: EncodersConfig, given: Given) -> Encoder:
    assert given.data is not None
    spec = EncoderSpec.parse(name, which=config.which, seed=config.seed)
    loaded = spec._replace(pixels=given.data.pixels).load(pick_device(given.runtime.device))
    return loaded.fit_channels(given.data.pixels, given.data.folder)


def draw_attention(config: AttentionConfig, given: Given) -> Drawing:
    """Attention of a block's heads for some queries, on each image."""
    split, device = given.split(config.split), pick_device(given.runtime.device)
    shown, sections = pick_images(split, config), []
    names: list[str] = []

    def images(data: DataConfig) -> Iterator[tuple[Tensor, Pixels]]:
        for done, number in enumerate(shown, start=1 + len(names) * len(shown)):
            views = views_of(split, [number], data)
            yield normalise(views.to(device), data.mean, data.std), as_pixels(views, given)[0]
            given.progress("draw attention of images", done, len(shown) * len(config.encoder))

    for name in config.encoder:
        encoder = _encoder(name, config, given)
        vit, layer = encoder.vit, block_number(config.layer, encoder.num_layers)
        queries = [query_of(text, vit, encoder.name) for text in config.query]
        title = f"{encoder.name}: block {layer} (of blocks 0 to {encoder.num_layers - 1})"
        found = attention_section(vit, images(encoder.data), queries, layer)
        sections.append(found._replace(title=title))
        names.append(encoder.name)
    drawn = sheet(sections, (given.source(config), HOW))
    facts = {"encoders": names, "images": len(shown), "keys": split.keys(shown)}
    return drawn, {**facts, "figures": {}}


def draw_pca(config: PcaConfig, given: Given) -> Drawing:
    """Patch tokens as colours, an encoder and layer a column."""
    split, device = given.split(config.split), pick_device(given.runtime.device)
    shown = pick_images(split, config)
    numbers = more_images(split, shown, config.batch, config.seed)
    images: list[Pixels] = []
    columns, names = [], []
    for place, name in enumerate(config.encoder, start=1):
        encoder = _encoder(name, config, given)
        layers = [block_number(layer, encoder.num_layers) for layer in config.layer]
        data, views = encoder.data, views_of(split, numbers, encoder.data)
        images = images or list(as_pixels(views[: len(shown)], given))
        for layer in layers:
            parts = [
                encoder.patch_tokens(normalise(some.to(device), data.mean, data.std), layer).cpu()
                for some in torch.split(views, AT_ONCE)
            ]
            tokens = torch.cat(parts).numpy().reshape(len(views), *encoder.grid, -1)
            colours, explained = patch_colours(tokens, config.foreground)
            columns.append((f"{place}: block {layer}", explained, colours[: len(shown)]))
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
    figures = {f"variance explained, {title}": explained for title, explained, _ in columns}
    drawn = colour_figure(images, columns, captions)
    facts = {"encoders": names, "images": len(shown), "keys": split.keys(shown)}
    return drawn, {**facts, "figures": figures}
