"""What every picture needs: some images of a split, seen as encoders see them, and its caption."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from ijepa.config import Config, DataConfig, Runtime
from ijepa.config.values import Seed
from ijepa.data.shards import ShardSet, SplitReader
from ijepa.encoders.spec import EncoderSpec
from ijepa.errors import IjepaError
from ijepa.figures.sheet import FORMATS, Pixels, Sheet
from ijepa.files import write_bytes
from ijepa.records import read_record
from ijepa.stage import StagePlan, Work, exclusive_work

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ijepa.encoders.base import Encoder


class ImageChoice(Config):
    """Which images of a split are shown.

    Attributes:
        split: of the shard set.
        keys: these images, in this order; if empty, `num_images` drawn by the seed.
        num_images: how many to draw.
        seed: of the draw, and of everything else that a picture draws at random.
    """

    split: str = "val"
    keys: tuple[str, ...] = ()
    num_images: Annotated[int, Field(ge=1)] = 4
    seed: Seed = 0


class EncoderChoice(Config):
    """Whose view is shown: encoders side by side, and which one of a run."""

    encoders: Annotated[tuple[str, ...], Field(min_length=1)]
    which: Literal["target", "context"] = "target"

    @field_validator("encoders")
    @classmethod
    def _differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("an encoder is named twice; name each once")
        return names


class Picture(Config):
    """A finished picture: where, of what, and the numbers that it shows."""

    out: Path
    cached: bool
    encoders: tuple[str, ...]
    images: int
    figures: dict[str, float]


def check_format(out: Path, formats: Sequence[str] = FORMATS) -> None:
    """Refuse a name that asks for a file that cannot be made.

    Raises:
        IjepaError: naming the endings there are.
    """
    if out.suffix not in formats:
        raise IjepaError(f"{out} must end in {' or '.join(formats)}.")


@contextlib.contextmanager
def drawing(plan: StagePlan, runtime: Runtime) -> Iterator[Work]:
    """Hold a picture alone while making it; what fails leaves nothing, for no picture is resumed.

    Yields and raises as `exclusive_work`.
    """
    with exclusive_work(plan, runtime) as work:
        try:
            yield work
        except BaseException:
            shutil.rmtree(work.folder, ignore_errors=True)
            raise


def publish_sheet(work: Work, sheet: Sheet, picture: Picture, runtime: Runtime) -> None:
    """Make the sheet the output, with what it shows in its record."""
    out = work.plan.out
    write_bytes(work.folder / out.name, sheet.encoded(out.suffix))
    publish_picture(work, picture, runtime)


def publish_picture(work: Work, picture: Picture, runtime: Runtime) -> None:
    """Make the file of the output's name the output, with what it shows in its record."""
    shown = picture.model_dump(mode="json", include={"encoders", "images", "figures"})
    work.publish_file({"picture": shown, "command": runtime.command})


def cached_picture(out: Path) -> Picture:
    """What the record of a picture that is there says of it."""
    record = read_record(out)
    assert record is not None
    return Picture(out=out, cached=True, **record["picture"])


def encoder_inputs(choice: EncoderChoice, seed: int) -> dict[str, str]:
    """Fingerprints of the encoders, by their place; raises as `EncoderSpec.fingerprint`."""
    return {
        f"encoder {place}": EncoderSpec.parse(name, which=choice.which, seed=seed).fingerprint()
        for place, name in enumerate(choice.encoders)
    }


def pick_images(split: SplitReader, choice: ImageChoice) -> list[int]:
    """Places in the split of the chosen images.

    Raises:
        IjepaError: a key that is not there, one named twice, or fewer images than are to be drawn.
    """
    if choice.keys:
        return find_keys(split, choice.keys)
    return draw_images(split, choice.num_images, choice.seed)


def draw_images(
    split: SplitReader, count: int, seed: int, without: Sequence[int] = ()
) -> list[int]:
    """Places of some images in ascending order, none of `without`; raises as `pick_images`."""
    there = np.setdiff1d(np.arange(len(split)), np.asarray(without, np.int64))
    if count > len(there):
        other = f" besides the {len(without)} that are looked at" if len(without) else ""
        raise IjepaError(
            f"Split {split.name} of {split.folder} has {len(there):,} images{other}, not {count:,}."
        )
    chosen = np.random.default_rng(seed).choice(there, count, replace=False)
    return sorted(int(number) for number in chosen)


def find_keys(split: SplitReader, keys: Sequence[str]) -> list[int]:
    """Places of images by their keys; raises as `pick_images`."""
    if len(set(keys)) < len(keys):
        raise IjepaError("An image is named twice; name each key once.")
    found = {key: number for number, key in enumerate(split.keys())}
    missing = [key for key in keys if key not in found]
    if missing:
        raise IjepaError(
            f"Split {split.name} of {split.folder} has no image {missing[0]!r}; its first is "
            f"{split.keys([0])[0]!r}."
        )
    return [found[key] for key in keys]


def evaluation_views(split: SplitReader, numbers: Sequence[int], data: DataConfig) -> "Tensor":
    """(n, 3, height, width) uint8: the images as an encoder is evaluated on them."""
    import torch

    from ijepa.data.decode import decode_rgb
    from ijepa.data.loader import ViewPlan, evaluation_view

    plan = ViewPlan(data.image_px, data.eval_crop_fraction)
    views = [evaluation_view(decode_rgb(split.read_image(number)), plan) for number in numbers]
    return torch.cat(views)


def seen_by(network: "Encoder", views: "Tensor", device: "torch.device") -> "Tensor":
    """(n, 3, height, width) float: views as the network takes them."""
    from ijepa.jepa.augment import normalise

    return normalise(views.to(device), network.data.mean, network.data.std)


def as_pixels(views: "Tensor") -> list[Pixels]:
    """(height, width, 3) uint8 each."""
    return list(views.permute(0, 2, 3, 1).cpu().numpy())


def caption_of(data: ShardSet, choice: ImageChoice) -> str:
    """Where the images come from."""
    drawn = "chosen by key" if choice.keys else f"drawn with seed {choice.seed}"
    return f"Data: {data.source}, split {choice.split} ({data.fingerprint[:12]}), {drawn}."
