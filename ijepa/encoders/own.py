"""Encoders of ours: runs, published files, random weights, and pixels."""

import logging
import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ijepa.config import DataConfig, EncoderConfig, PretrainConfig, architecture
from ijepa.encoders.base import Encoder
from ijepa.encoders.formats import Networks, read_networks
from ijepa.encoders.pooling import PATCH_AVERAGE, Pooling, token_pool
from ijepa.encoders.spec import PART_NAMES, EncoderSpec, checkpoint_path, released
from ijepa.errors import IjepaError
from ijepa.files import LAST, fingerprint_of
from ijepa.jepa.model import IJepa, build_ijepa
from ijepa.jepa.vit import build_encoder, patchify
from ijepa.provenance import NO_POOLING, Provenance, paper_arch, run_provenance
from ijepa.weights import load_weights

PIXELS_PATCH_PX = 4  # side of the patches that are its tokens, unless it is named
PIXELS_PX = 16  # side to which `pixels` shrinks an image: 768 numbers, no more than a ViT-B gives

log = logging.getLogger(__name__)


def load(spec: EncoderSpec) -> Encoder:
    """Load a run, checkpoint or published file, exactly or not at all, or make random weights."""
    if spec.kind == "pixels":  # shrunk: the baseline that knows no network
        side_px = spec.image_px or PIXELS_PX
        patch = f"/{spec.name}" if spec.name else ""
        return Encoder(
            None,
            Pooling(partial(_flat, int(spec.name or PIXELS_PATCH_PX)), 1, NO_POOLING),
            DataConfig(image_px=side_px, eval_crop_fraction=1.0).fitted(spec.pixels),
            name=f"pixels{patch}@{side_px}",
            provenance=Provenance(family=fingerprint_of(["pixels", side_px])),
        )
    if spec.kind == "random" and not spec.file:
        return _random(spec)
    assert spec.file is not None
    networks = read_networks(checkpoint_path(spec.file), spec.arch)
    if spec.kind != "random":
        return encoder_of(networks, spec.which)
    config = networks.config  # of a run, for the weights that it started from
    if networks.provenance.origin != "run":
        size = f"{config.encoder.arch}/{config.encoder.patch_px}@{config.data.image_px}"
        raise IjepaError(
            f"{spec.file} does not say from which seed it was trained; take random:{size} instead."
        )
    vit, known = build_ijepa(config).encoder, run_provenance(config, trained=False)
    pooling = token_pool(vit, PATCH_AVERAGE)
    return Encoder(vit, pooling, config.data, name=spec.text, provenance=known, which=spec.which)


def encoder_of(networks: Networks, which: str, text: str = "", hub: str = "") -> Encoder:
    """The `target` or `context` encoder of weights that were read.

    `text` is its name, if not that of the file; `hub` the repository that it comes from.
    """
    path, vit = Path(networks.source), networks.encoder(which)
    is_of_run = path.match(str(LAST)) and path.parent.parent.name not in ("", "..")
    path = path.parent.parent if is_of_run else path
    pooling, known = token_pool(vit, PATCH_AVERAGE), provenance_of(networks)
    if hub:
        known = released("hub", hub, known)
    name, data = text or f"{path} ({which})", networks.config.data
    return Encoder(vit, pooling, data, name=name, provenance=known, which=which)


def provenance_of(networks: Networks) -> Provenance:
    """Where weights come from: as recorded in their file, or known from its released name."""
    known, config = networks.provenance, networks.config
    if known.settings:
        return known
    arch = paper_arch(config.encoder.arch, config.encoder.patch_px, config.data.image_px)
    known = known.model_copy(update={"arch": arch})
    by_name = released("files", Path(networks.source).name, known)
    # On ImageNet-22K, names of files count in epochs of ImageNet-1K, which files may not.
    if by_name is known or (by_name.data == "IN1k" and known.epochs not in (None, by_name.epochs)):
        return known
    log.info(
        "%s is taken for the released weights: %s, %s epochs of %s",
        networks.source, arch, by_name.epochs, by_name.data,
    )  # fmt: skip
    return by_name


def _random(spec: EncoderSpec) -> Encoder:
    parts = re.fullmatch(r"([^/@]+)(?:/(\d+))?(?:@(\d+))?", spec.name)
    if not parts:
        raise IjepaError(
            f"{spec.text} is neither a run nor ARCH[/PATCH][@PX], such as vit_small/16@224."
        )
    arch, patch_px, side_px = parts[1], int(parts[2] or 16), int(parts[3] or 224)
    architecture(arch)
    if not patch_px or not side_px or side_px % patch_px:
        raise IjepaError(
            f"{spec.text}: {side_px} pixels are no multiple of the patch's {patch_px} pixels."
        )
    config = EncoderConfig(arch=arch, patch_px=patch_px)
    data = DataConfig(image_px=side_px).fitted(spec.pixels)
    generator = torch.Generator().manual_seed(spec.seed)
    vit = build_encoder(config, (side_px, side_px), generator, data.num_channels)
    channels = [data.channels] if data.channels else []
    family = fingerprint_of(["random", arch, patch_px, side_px, *channels])
    return Encoder(
        vit,
        token_pool(vit, PATCH_AVERAGE),
        data,
        name=f"random:{arch}/{patch_px}@{side_px} seed {spec.seed}",
        provenance=Provenance(arch=paper_arch(arch, patch_px), family=family, seed=spec.seed),
        which=spec.which,
    )


def _flat(patch_px: int, _: None, images: Tensor, num_layers: int) -> tuple[Tensor, Tensor | None]:
    del num_layers  # there is one
    divides = not any(side % patch_px for side in images.shape[-2:])
    return images.flatten(1).unsqueeze(1), patchify(images, patch_px) if divides else None


def load_jepa(name: str) -> tuple[IJepa, PretrainConfig]:
    """Context encoder, predictor and target encoder of a run, frozen, on the CPU; and its config.

    They are loaded exactly or not at all. `name` is a run folder, a checkpoint file of a run, or
    `random:RUN`, the networks that the run started from.
    """
    path = Path(name.removeprefix("random:"))
    if not path.exists():
        raise IjepaError(
            f"{name} has no predictor; name a run folder, a checkpoint of a run, or random:RUN."
        )
    networks = read_networks(checkpoint_path(path))
    jepa, parts = build_ijepa(networks.config), networks.parts
    if not name.startswith("random:"):
        if lost := next((words for part, words in PART_NAMES.items() if part not in parts), None):
            raise IjepaError(f"{name} holds no {lost}; name a run, or a checkpoint of one.")
        weights = {f"{part}.{key}": parts[part][key] for part in parts for key in parts[part]}
        load_weights(jepa, weights, path)
    return jepa.eval().requires_grad_(False), networks.config
