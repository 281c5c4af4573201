"""`--recipe auto`: the recipe for images of some size, and its settings for their number."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ijepa.config import PretrainConfig, flat, validated
from ijepa.errors import IjepaError
from ijepa.recipes import apply_override, load_recipe


class Choice(NamedTuple):
    """A recipe that may be chosen, and for what."""

    recipe: str
    from_px: int  # smallest median short side of the images
    needs_gpu: bool
    images_seen: int  # images that the recipe shows in all, on the data that it was made for


CHOICES = (  # the first one that fits is taken
    Choice("own-224", from_px=160, needs_gpu=True, images_seen=200 * 9_469),
    Choice("own-128", from_px=96, needs_gpu=True, images_seen=100 * 10_000),
    Choice("own-64", from_px=48, needs_gpu=False, images_seen=16 * 10_000),
    Choice("cifar10-gpu", from_px=0, needs_gpu=True, images_seen=200 * 50_000),
    Choice("cifar10", from_px=0, needs_gpu=False, images_seen=12 * 50_000),
)
MOST_EPOCHS = 10**6
LEAST_HELD_OUT = 8  # images of a health check; of fewer than ten times that, none is held out


def choose(image_px: int, *, on_gpu: bool) -> Choice:
    """The recipe for images of this median short side on this device."""
    return next(one for one in CHOICES if image_px >= one.from_px and (on_gpu or not one.needs_gpu))


def begun_with(config: Path, num_images: int, overrides: Sequence[str] = ()) -> Choice | None:
    """The choice that gave a run's `config.yaml`; None if no choice gives it, or there is none."""
    begun = load_recipe(config).model_copy(update={"init": None}) if config.is_file() else None
    for choice in CHOICES if begun else ():
        body = load_recipe(choice.recipe).model_dump(mode="json")
        with contextlib.suppress(IjepaError):  # overrides that do not fit this recipe
            for override in [*settings_for(choice, num_images, overrides), *overrides]:
                apply_override(body, override)
            if begun and begun.data.channels:  # filled in from the shard set
                body["data"] |= begun.data.model_dump(include={"channels", "mean", "std"})
            if begun == validated(PretrainConfig, body, choice.recipe):
                return choice
    return None


def settings_for(choice: Choice, num_images: int, overrides: Sequence[str] = ()) -> list[str]:
    """Settings, as `a.b=c`, that fit a chosen recipe to a number of images.

    The epochs show as many images as the recipe shows of its own data; warm-up and checkpoints stay
    in proportion to them. At most a tenth of the images is held out. A batch that is larger than
    the rest is halved until it fits, with the learning rate. What `overrides` set is left out.
    """
    recipe = load_recipe(choice.recipe)
    given = {one.partition("=")[0].strip(): one for one in overrides}
    batch, watch, tenth = recipe.data.batch_size, recipe.watch, num_images // 10
    holds_out = watch.held_out and tenth >= LEAST_HELD_OUT
    watched = min(watch.num_images, tenth) if holds_out else watch.num_images
    trained = max(1, num_images - watched if holds_out else num_images)
    epochs = min(max(1, round(choice.images_seen / trained)), MOST_EPOCHS)
    if "optimization.epochs" in given:
        asked = [given["optimization.epochs"], "optimization.warmup_epochs=0"]  # which follows them
        epochs = load_recipe(choice.recipe, asked).optimization.epochs
    while batch > trained and "data.batch_size" not in given:
        batch //= 2
    part, smaller = epochs / recipe.optimization.epochs, batch / recipe.data.batch_size
    settings = {
        "optimization.epochs": epochs,
        "optimization.warmup_epochs": round(recipe.optimization.warmup_epochs * part, 4),
        "checkpoint_epochs": max(1, round(recipe.checkpoint_epochs * part)),
        "data.batch_size": batch,
        "watch.held_out": holds_out,
        "watch.num_images": watched,
        "optimization.lr": recipe.optimization.lr * smaller,
        "optimization.start_lr": recipe.optimization.start_lr * smaller,
    }
    own = flat(recipe.model_dump())
    changed = {name: value for name, value in settings.items() if value != own[name]}
    return [f"{name}={value}" for name, value in changed.items() if name not in given]
