"""Configurations of experiments: one YAML file each, here or of the user's.

A recipe names only what differs from the defaults, or from another recipe that it calls its `base`.
`--recipe auto` takes one that fits the images, with settings for their number.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from ijepa.config import Config, PretrainConfig, StrPath, flat, validated
from ijepa.config.pretrain import MaskConfig
from ijepa.errors import IjepaError
from ijepa.files import no_file
from ijepa.text import did_you_mean

MOST_BASES = 20  # one on top of the other
MOST_VALUES = 10_000  # in one file; the largest recipe has a hundred

GLOBAL_BATCH = 2048  # of the published runs; their files say only how many images one GPU takes
BFLOAT16 = "meta.use_bfloat16"

log = logging.getLogger(__name__)


def load_recipe(name_or_path: StrPath, overrides: Iterable[str] = ()) -> PretrainConfig:
    """Read a recipe by name or from a YAML file, and apply `a.b=c` overrides.

    Files of facebookresearch/ijepa (`configs/*.yaml`) are taken as they are.

    Raises:
        IjepaError: no such recipe, no YAML, an unknown key or a value out of range.
    """
    source = os.fspath(name_or_path)
    body = _read(source)
    if is_published(body):
        body = translate(body, source)
    before = validated(PretrainConfig, body, f"recipe {source}")
    typed: dict[str, Any] = {}
    for override in overrides:
        apply_override(body, override)
        apply_override(typed, override)
    masks, asked = body.get("masks"), typed.get("masks")
    if isinstance(masks, dict) and isinstance(asked, dict):
        named = masks.get("kind", before.masks.kind)
        kinds = [one for one in get_args(get_args(MaskConfig)[0]) if one().kind == named]
        if kinds and kinds[0] is not type(before.masks):
            # What the recipe says of masks of its own kind is left out where another is asked for.
            known = {*kinds[0].model_fields, *asked}
            for name in [one for one in masks if one not in known]:
                del masks[name]
                log.info("masks.%s of the recipe is left out: %s masks have none", name, named)
    config = validated(PretrainConfig, body, f"recipe {source}")
    _warn(before, config)
    return config


def is_published(body: Mapping[str, Any]) -> bool:
    """Is it a file of the released code? Theirs say `mask` and `meta`, ours `masks`."""
    return "mask" in body and "meta" in body


def translate(body: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A released configuration as one of ours.

    The batch of one GPU becomes `masks.group_size`, over which the released code cuts contexts;
    the batch of all GPUs, which no file states, becomes the published 2,048. An `IjepaError`
    refuses settings that the released files do not have, and a value that is not supported.
    """
    settings = {n: value for n, value in flat(body).items() if "." in n or value is not None}
    theirs = yaml.safe_load(resources.files("ijepa").joinpath("released_settings.yaml").read_text())
    known = {*theirs["ours"], *theirs["places"], *theirs["only"], BFLOAT16}
    unknown = [name for name in settings if name not in known]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise IjepaError(
            f"recipe {source}: not settings of facebookresearch/ijepa: {', '.join(unknown[:5])}"
            f"{more}. Remove them; `ijepa recipes NAME` prints the settings of this package."
        )
    for name, only in theirs["only"].items():
        if settings.get(name, only) != only:
            raise IjepaError(
                f"recipe {source}: {name} is {settings[name]!r}, but only {only!r} is supported."
            )
    ours: dict[str, Any] = {}
    for name, value in settings.items():
        if name in theirs["ours"]:
            group, _, setting = theirs["ours"][name].rpartition(".")
            (ours.setdefault(group, {}) if group else ours)[setting] = value
    if BFLOAT16 in settings:
        precision = "bf16" if settings[BFLOAT16] else "fp32"
        ours.setdefault("optimization", {})["precision"] = precision
    ours.setdefault("data", {})["batch_size"] = GLOBAL_BATCH
    return ours


def recipe_note(name_or_path: str, config: PretrainConfig) -> str:
    """What a released configuration leaves open and how it is filled in; empty for any other."""
    if config.data.batch_size != GLOBAL_BATCH or not is_published(_read(name_or_path)):
        return ""
    return (
        f"data.batch_size is {GLOBAL_BATCH:,} images over all devices: the recipe only says how "
        f"many each GPU takes ({config.masks.group_size:,}, here masks.group_size), and the "
        f"published runs took {GLOBAL_BATCH:,}. Change it with --set data.batch_size=N."
    )


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("ijepa.recipes")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith("yaml"))


def recipe_title(name: str) -> str:
    """What a recipe of the package is, from the comment on its first line."""
    return _text(name).partition("\n")[0].lstrip("# ")


def dump_yaml(config: Config) -> str:
    """The complete configuration as YAML that `load_recipe` takes back."""
    body = json.loads(config.model_dump_json())
    if isinstance(config, PretrainConfig):  # which leaves this out, as no result depends on it
        body["stream"]["max_bad"] = config.stream.max_bad
    return yaml.safe_dump(body, sort_keys=False)


def _read(name_or_path: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's settings on top of those of its base; a base that is a file stands beside it."""
    try:
        body = parse_yaml(_text(name_or_path))
    except ValueError as error:
        raise IjepaError(f"recipe {name_or_path} is not YAML: {error}.") from error
    body = {} if body is None else body
    if not isinstance(body, dict):
        raise IjepaError(
            f"recipe {name_or_path} holds a {type(body).__name__}; expected keys and values."
        )
    if (base := body.pop("base", None)) is None:
        return body
    below = str(base)
    if _is_file(below):
        below = str(Path(name_or_path).parent / below)
    if len(above) == MOST_BASES:
        raise IjepaError(
            f"recipe {above[0]} goes back over more than {MOST_BASES} bases, {below!r:.200} among "
            f"them. A recipe cannot be its own base."
        )
    return _merged(_read(below, (*above, name_or_path)), body)


def _is_file(name_or_path: str) -> bool:
    return name_or_path.endswith((".yaml", ".yml"))


def _text(name_or_path: str) -> str:
    if not _is_file(name_or_path):
        if name_or_path not in (known := recipe_names()):
            near, there = did_you_mean(name_or_path, known), ", ".join(known)
            raise IjepaError(f"There is no recipe {name_or_path!r}{near}; there are {there}.")
        return resources.files("ijepa.recipes").joinpath(f"{name_or_path}.yaml").read_text()
    path = Path(name_or_path)
    if not path.is_file():
        raise IjepaError(f"{no_file(path, 'recipe file')}.")
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise IjepaError(f"recipe {path} is not UTF-8 text ({error.reason}).") from error


def parse_yaml(text: str) -> Any:  # noqa: ANN401  # whatever it holds
    """Read YAML that may be damaged, or made to do harm.

    Raises:
        ValueError: not YAML, nested too deeply, with a number of thousands of digits, or with
            references (`*name`) that stand for too much: a few, one in the other, make gigabytes.
    """
    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    waiting, values = [body], 0
    while waiting:
        value, values = waiting.pop(), values + 1
        if values > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values")
        if isinstance(value, dict | list):
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return body


def _warn(recipe: PretrainConfig, config: PretrainConfig) -> None:
    """A warm-up to the end has only rising learning rates; another batch asks for another one."""
    meant_to, asked = recipe.optimization, config.optimization
    if asked.warmup_epochs >= asked.epochs and meant_to.warmup_epochs < meant_to.epochs:
        log.warning(
            "the learning rate rises to the end of training: optimization.warmup_epochs is %g and "
            "optimization.epochs %d; lower the first.", asked.warmup_epochs, asked.epochs,
        )  # fmt: skip
    batch, meant = config.data.batch_size, recipe.data.batch_size
    if batch == meant:
        return
    lr = asked.lr
    if lr == meant_to.lr:
        log.warning(
            "optimization.lr %g is meant for batches of %d; for %d people take %.2g (in proportion "
            "to the batch) or %.2g (to its square root).",
            lr, meant, batch, lr * batch / meant, lr * (batch / meant) ** 0.5,
        )  # fmt: skip
    was, now = (min(c.masks.group_size, c.data.batch_size) for c in (recipe, config))
    if now != was:
        log.warning(
            "contexts are cut to one length over %d images instead of %d: they become %s.",
            now, was, "longer" if now < was else "shorter",
        )  # fmt: skip


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Groups of settings are joined, values replaced; masks of another kind start afresh."""
    result = dict(below)
    for name, value in above.items():
        old = result.get(name)
        afresh = not isinstance(value, dict) or "kind" in value
        result[name] = _merged(old, value) if isinstance(old, dict) and not afresh else value
    return result


def apply_override(body: dict[str, Any], override: str) -> None:
    """Set one `a.b=c` in nested mappings; c is YAML, so `1e-3`, `true` and `[1, 2]` work."""
    keys, equals, value = override.partition("=")
    if not equals:
        raise IjepaError(f"--set {override!r} has no '='; write it as a.b=c.")
    *parents, last = keys.strip().split(".")
    for parent in parents:
        child = body.setdefault(parent, {})
        if not isinstance(child, dict):
            raise IjepaError(f"--set {override!r}: {parent} is a value, not a group of settings.")
        body = child
    try:
        body[last] = parse_yaml(value)
    except ValueError as error:
        raise IjepaError(f"--set {override!r:.200}: {value!r:.80} is not a YAML value.") from error


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
