"""Released models by the names of files, timm and the hub, where it is known what they are.

A name stands here only if the file that it was converted from is known, and that file's training.
Left out are `facebook/vit-mae-*`, converted from MAE's weights for its demonstration (with decoder,
raw pixels as targets), not from those of its paper; and `facebook/data2vec-vision-large`, of which
nobody says whether it saw 800 or 1600 epochs.
Source: `convert_*.py` in huggingface/transformers (ijepa, vit_msn, vit_mae, and dino under vit);
timm `default_cfgs`, which name the files; the epochs of I-JEPA and MSN stand in the files' names,
those of MAE (1600) and DINO ViT-B/8 (300) in the paper's table 1.
"""

from typing import NamedTuple

from ijepa.provenance import Provenance


class Model(NamedTuple):
    """What stands behind a name.

    Attributes:
        method: as the paper's tables have it, likewise `arch`.
        epochs: as the published files count them; None where nobody says.
        data: see `Provenance`.
        which: encoder that the hub's file holds; `target` also where a method has one alone.
    """

    method: str | None
    arch: str
    epochs: int | None
    data: str | None = "IN1k"
    which: str = "target"

    @property
    def provenance(self) -> Provenance:
        """The same, for records."""
        return Provenance(method=self.method, arch=self.arch, epochs=self.epochs, data=self.data)


IJEPA = {
    "vith14_1k": Model("I-JEPA", "ViT-H/14", 300),
    "vith14_22k": Model("I-JEPA", "ViT-H/14", 900, "IN22k"),
    "vith16_1k": Model("I-JEPA", "ViT-H/16 448", 300),
    "vitg16_22k": Model("I-JEPA", "ViT-G/16", 600, "IN22k"),
}
DINO = {
    "vits16": Model("DINO", "ViT-S/16", None),
    "vits8": Model("DINO", "ViT-S/8", None),
    "vitb16": Model("DINO", "ViT-B/16", None),
    "vitb8": Model("DINO", "ViT-B/8", 300),
}

# I-JEPA's files by their names at dl.fbaipublicfiles.com/ijepa: within, they do not say what data
# they saw.
FILES = {
    "IN1K-vit.h.14-300e.pth.tar": IJEPA["vith14_1k"],
    "IN22K-vit.h.14-900e.pth.tar": IJEPA["vith14_22k"],
    "IN1K-vit.h.16-448px-300e.pth.tar": IJEPA["vith16_1k"],
    "IN22K-vit.g.16-600e.pth.tar": IJEPA["vitg16_22k"],
}

# By the name of the repository: transformers took I-JEPA's context encoders, MSN's targets.
HUB = {
    **{f"facebook/ijepa_{name}": model._replace(which="context") for name, model in IJEPA.items()},
    **{f"facebook/dino-{name}": model for name, model in DINO.items()},
    "facebook/vit-msn-small": Model("MSN", "ViT-S/16", 800),
    "facebook/vit-msn-base": Model("MSN", "ViT-B/16", 600),
    "facebook/vit-msn-large": Model("MSN", "ViT-L/16", 600),
    "facebook/vit-msn-base-4": Model("MSN", "ViT-B/4", 300),
    "facebook/vit-msn-large-7": Model("MSN", "ViT-L/7", 200),
}

# Of I-JEPA, these names lead to the published files, which hold both encoders.
TIMM = {
    "vit_huge_patch14_gap_224.in1k_ijepa": IJEPA["vith14_1k"],
    "vit_huge_patch14_gap_224.in22k_ijepa": IJEPA["vith14_22k"],
    "vit_huge_patch16_gap_448.in1k_ijepa": IJEPA["vith16_1k"],
    "vit_giant_patch16_gap_224.in22k_ijepa": IJEPA["vitg16_22k"],
    "vit_base_patch16_224.mae": Model("MAE", "ViT-B/16", 1600),
    "vit_large_patch16_224.mae": Model("MAE", "ViT-L/16", 1600),
    "vit_huge_patch14_224.mae": Model("MAE", "ViT-H/14", 1600),
    "vit_small_patch16_224.dino": DINO["vits16"],
    "vit_small_patch8_224.dino": DINO["vits8"],
    "vit_base_patch16_224.dino": DINO["vitb16"],
    "vit_base_patch8_224.dino": DINO["vitb8"],
}
