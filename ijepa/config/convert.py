"""Weights from one kind of file to another."""

from __future__ import annotations

from typing import Literal

from ijepa.config.values import Settings


class ConvertConfig(Settings):
    """What `ijepa convert` writes.

    Attributes:
        to: `published` (facebookresearch/ijepa), `timm`, `hf` (transformers) or `ours`.
        which: encoder, for formats that have room for one: `target` (the paper's) or `context`.
        arch: of weights whose shapes do not tell it, a name or DIMxDEPTHxHEADS.
    """

    to: Literal["published", "timm", "hf", "ours"]
    which: Literal["target", "context"] = "target"
    arch: str | None = None
