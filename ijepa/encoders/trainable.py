"""From what a user types to a Vision Transformer that can be fine-tuned, whoever trained it."""

from typing import NamedTuple

from ijepa.config import DataConfig, Size
from ijepa.encoders.catalogue import KINDS
from ijepa.encoders.frozen import CLASS_TOKEN, PATCH_AVERAGE, Transformer
from ijepa.encoders.load import load_encoder, load_vit, vit_in
from ijepa.encoders.reading import held_encoder
from ijepa.encoders.released_names import HUB
from ijepa.errors import IjepaError
from ijepa.files import read_json
from ijepa.provenance import Provenance

TUNABLE = (
    "fine-tuning takes Vision Transformers pooled by class token or average: runs, checkpoints and "
    "published files, random:ARCH, mae: dino: ibot: data2vec: cae: msn: and a file, timm:NAME, and "
    "hf: for I-JEPA alone"
)


class Trainable(NamedTuple):
    """A Vision Transformer on the CPU, and how its images are cut and normalised.

    Attributes:
        name: for people.
        encoder: timm's, or ours.
        data: `image_px` is the size at which it is to be used.
        weights_sha256: before any training.
        provenance: where it comes from.
        pooling: `CLASS_TOKEN` or `PATCH_AVERAGE`, as of the frozen encoder.
        which: of two encoders.
    """

    name: str
    encoder: Transformer
    data: DataConfig
    weights_sha256: str
    provenance: Provenance
    pooling: str
    which: str


def load_trainable(
    name: str, *, which: str = "target", image_px: int | Size | None = None, seed: int = 0
) -> Trainable:
    """Make a network from its name; arguments as of `load_encoder`.

    Raises:
        IjepaError: no such encoder, weights that do not load, or none that can be fine-tuned.
    """
    kind, _, rest = name.partition(":")
    if kind == "hf":
        return _of_transformers(name, rest, which, image_px)
    if kind not in KINDS:
        vit = load_vit(name, which=which, image_px=image_px, seed=seed)
        return Trainable(*vit, PATCH_AVERAGE, which)
    found = load_encoder(name, which=which, image_px=image_px, seed=seed)
    if found.network is None or found.pooling not in (CLASS_TOKEN, PATCH_AVERAGE):
        raise IjepaError(f"{name} can be extracted from, not fine-tuned: {TUNABLE}.")
    return Trainable(
        name=found.name,
        encoder=found.network,
        data=found.data,
        weights_sha256=found.weights_sha256,
        provenance=found.provenance,
        pooling=found.pooling,
        which=found.which,
    )


def _of_transformers(name: str, rest: str, which: str, image_px: int | Size | None) -> Trainable:
    """I-JEPA's, whose network is ours; the blocks of others are not timm's."""
    from ijepa.encoders.huggingface import model_folder

    if which == "context":
        raise IjepaError(f"{name} holds one encoder; leave --which context out.")
    folder = model_folder(rest)
    if read_json(folder / "config.json").get("model_type") != "ijepa":
        raise IjepaError(f"{name} can be extracted from, not fine-tuned: {TUNABLE}.")
    held = held_encoder(folder)
    vit = vit_in(folder, held, image_px)
    known, arch = HUB.get(rest), vit.provenance.arch
    provenance = (
        known.provenance if known and known.arch.removesuffix(" 448") == arch else vit.provenance
    )
    return Trainable(name, *vit[1:4], provenance, PATCH_AVERAGE, held)
