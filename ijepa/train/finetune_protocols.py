"""Protocols of fine-tuning by name, and in what a fine-tuning is not of its own."""

from collections.abc import Iterable
from typing import Any

from ijepa.config import FinetuneConfig, validated
from ijepa.errors import IjepaError
from ijepa.recipes import apply_override

# Paper, A.2. Learning rate and weight decay are those of ViT-L/16 there; ViT-H has others.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "imagenet-1pct": {},
    "imagenet-1pct-huge": {"weight_decay": 4e-1},
    "imagenet-full": {
        "batch_size": 528,
        "lr": 1e-4,
        "weight_decay": 0.04,
        "drop_path": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
}
ASIDE = {  # what a protocol leaves open, or what results say elsewhere
    "protocol", "encoder", "which", "label", "split", "test_split", "subset", "holdout", "image_px",
    "precision", "seed",
}  # fmt: skip


def finetune_config(
    protocol: str, settings: dict[str, Any], overrides: Iterable[str]
) -> FinetuneConfig:
    """A protocol's settings, those of the command line, and `a=b` overrides.

    Raises:
        IjepaError: no such protocol, an unknown setting or a value out of range.
    """
    if protocol not in PROTOCOLS:
        raise IjepaError(f"There is no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}.")
    body = {"protocol": protocol} | PROTOCOLS[protocol] | settings
    for override in overrides:
        apply_override(body, override)
    return validated(FinetuneConfig, body, "options")


def changed_settings(config: FinetuneConfig) -> list[str]:
    """What the user chose otherwise than the protocol, each in words."""
    own = finetune_config(config.protocol, {"encoder": config.encoder}, ())
    return [
        f"{name} {chosen}, not {wanted}"
        for name, chosen in config
        if name not in ASIDE and chosen != (wanted := getattr(own, name))
    ]
