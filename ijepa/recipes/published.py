"""Configuration files of facebookresearch/ijepa (`configs/*.yaml`), in our words."""

from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from ijepa.config import flat
from ijepa.errors import IjepaError

GLOBAL_BATCH = 2048  # of the published runs; their files say only how many images one GPU takes

BFLOAT16 = "meta.use_bfloat16"


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
