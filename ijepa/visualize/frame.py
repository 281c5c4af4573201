"""The frame of a picture of encoders and images: open, plan, draw, publish."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ijepa.config import Config, Runtime
from ijepa.data.shards import ShardSet, open_shards
from ijepa.figures.sheet import Sheet
from ijepa.stage import StagePlan
from ijepa.visualize.images import (
    EncoderChoice,
    ImageChoice,
    Picture,
    cached_picture,
    check_format,
    drawing,
    encoder_inputs,
    pick_images,
    publish_sheet,
)


class ChoiceOfBoth(Config):
    """Which encoders, and which images."""

    encoder: EncoderChoice
    images: ImageChoice = ImageChoice()


class Drawn(NamedTuple):
    """A sheet, the encoders in it, and the numbers that it shows."""

    sheet: Sheet
    encoders: tuple[str, ...]
    figures: dict[str, float]


class Order(NamedTuple):
    """What to draw, on whose images, and where to.

    Attributes:
        name: of the picture, as the command line has it, and `version` of how it is drawn.
        config: says which encoders and images.
    """

    name: str
    version: int
    shards: Path
    out: Path
    config: ChoiceOfBoth
    runtime: Runtime


def draw_encoders(order: Order, draw: Callable[[ShardSet, list[int]], Drawn]) -> Picture:
    """Draw, unless the picture is there.

    Args:
        order: what and where.
        draw: given the shard set and the places of the chosen images in their split.

    Raises:
        IjepaError: no such encoder, split or image, or a name that is no picture's.
    """
    config, out = order.config, order.out
    check_format(out)
    data = open_shards(order.shards)
    split = data.split(config.images.split)
    inputs = {"data": data.fingerprint} | encoder_inputs(config.encoder, config.images.seed)
    plan = StagePlan(f"visualize {order.name}", order.version, config, inputs, out)
    with drawing(plan, order.runtime) as work:
        if work.cached:
            return cached_picture(out)
        shown = pick_images(split, config.images)
        drawn = draw(data, shown)
        picture = Picture(
            out=out,
            cached=False,
            encoders=drawn.encoders,
            images=len(shown),
            figures=drawn.figures,
        )
        publish_sheet(work, drawn.sheet, picture, order.runtime)
        return picture
