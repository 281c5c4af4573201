"""Sizes of Vision Transformers by name, without torch."""

import re
from typing import NamedTuple

from ijepa.errors import IjepaError


class Architecture(NamedTuple):
    """Size of a Vision Transformer; `mlp_ratio` times `dim` is the hidden width."""

    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


ARCHITECTURES = {
    "vit_tiny": Architecture(192, 12, 3),
    "vit_small": Architecture(384, 12, 6),
    "vit_base": Architecture(768, 12, 12),
    "vit_large": Architecture(1024, 24, 16),
    "vit_huge": Architecture(1280, 32, 16),
    "vit_giant": Architecture(1408, 40, 16, 48 / 11),
}

MOST_DIM, MOST_DEPTH = 16_384, 1_024  # several times the largest Vision Transformers


def architecture(name: str) -> Architecture:
    """Look up a name of `ARCHITECTURES`, or read `DIMxDEPTHxHEADS` such as `128x4x4`.

    Raises:
        IjepaError: neither, or a width that the heads do not divide.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    numbers = re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", name, re.ASCII)
    if not numbers:
        known = ", ".join(ARCHITECTURES)
        raise IjepaError(
            f"There is no architecture {name!r:.80}; there are {known}, and DIMxDEPTHxHEADS "
            f"(128x4x4)."
        )
    dim, depth, heads = (int(number) for number in numbers.groups())
    if min(dim, depth, heads) < 1 or dim % heads or dim % 4:
        raise IjepaError(
            f"Architecture {name}: the width must be a multiple of 4 and of the heads."
        )
    if dim > MOST_DIM or depth > MOST_DEPTH:
        raise IjepaError(
            f"Architecture {name}: the width is at most {MOST_DIM:,}, the depth {MOST_DEPTH:,}."
        )
    return Architecture(dim, depth, heads)
