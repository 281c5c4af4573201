"""The four kinds of masks (paper, section 3 and table 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from ijepa.config.values import AscendingFractions, AscendingRange, Batch, Few, Settings


class _Masks(Settings):
    """What all masks share; scales are fractions of the grid's area, aspect is height / width.

    Attributes:
        draw: `published` keeps the released sampler's quirks: one random number for scale and
            aspect, last row and column out of reach, contexts cut to one length by keeping the
            first patches. `symmetric` has none of them.
        min_keep: every context keeps more than this many patches.
        context_patches: every context of the run is cut to exactly this many patches, so that all
            steps have one length, and keeps at least as many before the cut. None cuts each group
            of images to the shortest context in it, as published.
        group_size: images over which contexts are cut to one length. The released code cuts over
            those of one GPU, 128 in configs/in1k_vith14_ep300.yaml.
    """

    draw: Literal["published", "symmetric"] = "published"
    min_keep: Annotated[int, Field(ge=0, le=2**14)] = 10
    context_patches: Annotated[int, Field(ge=1, le=2**14)] | None = None
    group_size: Batch = 128

    @property
    def fewest_context_patches(self) -> int:
        """Patches that every context keeps at least, before the cut."""
        return max(self.min_keep + 1, self.context_patches or 0)


class MultiblockMasks(_Masks):
    """I-JEPA's own masks: several target blocks, and one context block less the targets.

    The published sampler accepts fewer patches than `min_keep` after 20 tries by letting the last
    target overlap; `symmetric` never does.
    """

    kind: Literal["multiblock"] = "multiblock"
    num_targets: Few = 4
    target_scale: AscendingRange = (0.15, 0.2)
    target_aspect: AscendingRange = (0.75, 1.5)
    context_scale: AscendingRange = (0.85, 1.0)


class RasterizedMasks(_Masks):
    """One quadrant of the image predicts the three others (paper, table 6)."""

    kind: Literal["rasterized"] = "rasterized"


class BlockMasks(_Masks):
    """One large block is predicted from all the rest (paper, table 6, which names no aspect)."""

    kind: Literal["block"] = "block"
    target_scale: AscendingRange = (0.6, 0.6)
    target_aspect: AscendingRange = (0.75, 1.5)


class RandomMasks(_Masks):
    """Patches anywhere are predicted from all the rest (paper, table 6)."""

    kind: Literal["random"] = "random"
    target_ratio: AscendingFractions = (0.6, 0.6)  # drawn once a batch


def _mask_kind(body: object) -> str:
    if isinstance(body, Mapping):
        return str(body.get("kind", "multiblock"))
    return str(getattr(body, "kind", ""))


MaskConfig = Annotated[
    Annotated[MultiblockMasks, Tag("multiblock")]
    | Annotated[RasterizedMasks, Tag("rasterized")]
    | Annotated[BlockMasks, Tag("block")]
    | Annotated[RandomMasks, Tag("random")],
    Discriminator(_mask_kind),
]
MASK_KINDS = ("multiblock", "rasterized", "block", "random")
