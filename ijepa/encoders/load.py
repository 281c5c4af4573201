"""From what a user types to an encoder."""

import importlib
import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ijepa.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DataConfig,
    EncoderConfig,
    PretrainConfig,
    Size,
    StrPath,
    architecture,
    height_width,
)
from ijepa.encoders.catalogue import KINDS
from ijepa.encoders.frozen import NOTHING, Asked, FrozenEncoder, weights_sha256
from ijepa.encoders.identity import checkpoint_path, published_name
from ijepa.encoders.networks import Networks
from ijepa.encoders.reading import read_networks
from ijepa.encoders.released_names import FILES, Model
from ijepa.errors import IjepaError
from ijepa.files import fingerprint_of
from ijepa.jepa.model import build_ijepa
from ijepa.jepa.vit import Encoder, build_encoder
from ijepa.paper import pretraining_set
from ijepa.provenance import Provenance, run_family
from ijepa.records import read_record

LARGE_PX = 448
PIXELS_PX = 16  # side to which `pixels` shrinks an image: 768 numbers, no more than a ViT-B gives

log = logging.getLogger(__name__)


def load_encoder(
    name: StrPath,
    *,
    which: str = "target",
    image_px: int | Size | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> FrozenEncoder:
    """Make an encoder from its name.

    Args:
        name: a run folder, a checkpoint file of a run, a published file (or
            `published:48x3x3@FILE`, where its shapes do not tell the heads), `random:RUN` (the
            initial weights of that run), `random:ARCH[/PATCH][@PX]` such as
            `random:vit_small/16@224`, `pixels`, or a kind of
            `ijepa.encoders.catalogue.KINDS` such as `mae:FILE`.
        which: `target` or `context`, for runs.
        image_px: another side, or (height, width), than the encoder's own; positions are
            interpolated.
        seed: of `random:ARCH`; a run has its own.
        device: where it computes; the CPU by default.

    Raises:
        IjepaError: no such encoder, or weights that do not load. Never a partly loaded model.
    """
    name = os.fspath(name)
    if name == "pixels":
        return _pixels(image_px)
    kind, _, rest = name.partition(":")
    if kind in KINDS:
        asked = Asked(kind, rest, which, image_px, device or torch.device("cpu"))
        encoder: FrozenEncoder = importlib.import_module(KINDS[kind].home).load(asked)
        return encoder
    return _ours(name, which, image_px, seed, device or torch.device("cpu"))


def _ours(
    name: str, which: str, image_px: int | Size | None, seed: int, device: torch.device
) -> FrozenEncoder:
    vit = load_vit(name, which=which, image_px=image_px, seed=seed)
    encoder = vit.encoder.eval().requires_grad_(False).to(device)
    return FrozenEncoder(
        name=vit.name,
        weights_sha256=vit.weights_sha256,
        image_px=vit.data.image_px,
        crop_fraction=vit.data.eval_crop_fraction,
        mean=vit.data.mean,
        std=vit.data.std,
        num_layers=len(encoder.blocks),
        pool=encoder.pooled_layers,
        provenance=vit.provenance,
        network=encoder,
        which=which,
    )


class Vit(NamedTuple):
    """A Vision Transformer of ours, on the CPU, and how its images are cut and normalised.

    `data.image_px` is the size at which it is to be used.
    """

    name: str
    encoder: Encoder
    data: DataConfig
    weights_sha256: str
    provenance: Provenance


def load_vit(
    name: str, *, which: str = "target", image_px: int | Size | None = None, seed: int = 0
) -> Vit:
    """Make a network of ours from its name, to be frozen or trained.

    Arguments are those of `load_encoder`.

    Raises:
        IjepaError: no such encoder, one that is no network, or weights that do not load.
    """
    if name == "pixels":
        raise IjepaError("pixels are no network; name a run, a checkpoint or random:ARCH.")
    kind, colon, rest = name.partition(":")
    if kind in KINDS:
        raise IjepaError(f"{name} is no network of ours; name a run, a checkpoint or random:ARCH.")
    if colon and kind == "random":
        return _random(rest, image_px, seed)
    if colon and kind == "published":
        arch, path = published_name(rest)
        return vit_in(checkpoint_path(path), which, image_px, arch)
    return vit_in(checkpoint_path(Path(name)), which, image_px)


def vit_in(path: Path, which: str, image_px: int | Size | None, arch: str | None = None) -> Vit:
    """The network in whatever file or folder `ijepa.encoders.reading` reads."""
    networks = read_networks(path, arch)
    name, data = f"{_run_name(path)} ({which})", networks.config.data
    provenance = _provenance_of(networks, _pretraining_data(path))
    return _sized(name, networks.encoder(which), data, image_px, provenance)


def _provenance_of(networks: Networks, data: str | None) -> Provenance:
    """Of weights in whatever file; what is not recorded there stays unknown."""
    known, config = networks.provenance, networks.config
    if known.recorded:
        return _provenance(known.method, config, data)
    arch = _paper_arch(config.encoder.arch, config.encoder.patch_px) + _large(config)
    released = FILES.get(Path(networks.source).name)
    if released and released.arch == arch and _fits(known.epochs, released):
        log.info(
            "%s is taken for the released weights: %s, %s epochs of %s",
            networks.source, arch, released.epochs, released.data,
        )  # fmt: skip
        return released.provenance
    return Provenance(method=known.method, arch=arch, epochs=known.epochs)


def _fits(epochs: int | None, released: Model) -> bool:
    """On ImageNet-22K, names of files count in epochs of ImageNet-1K, which files may not."""
    return released.data != "IN1k" or epochs in (None, released.epochs)


def _random(name: str, image_px: int | Size | None, seed: int) -> Vit:
    if Path(name).exists():
        networks = read_networks(checkpoint_path(Path(name)))
        config = networks.config
        if networks.provenance.origin != "run":
            size = f"{config.encoder.arch}/{config.encoder.patch_px}@{config.data.image_px}"
            raise IjepaError(
                f"{name} does not say from which seed it was trained; take random:{size} instead."
            )
        provenance, encoder = _provenance(None, config), build_ijepa(config).encoder
        return _sized(f"random:{name}", encoder, config.data, image_px, provenance)
    parts = re.fullmatch(r"([^/@]+)(?:/(\d+))?(?:@(\d+))?", name)
    if not parts:
        raise IjepaError(
            f"random:{name} is neither a run nor ARCH[/PATCH][@PX], such as vit_small/16@224."
        )
    arch, patch_px, side_px = parts[1], int(parts[2] or 16), int(parts[3] or 224)
    architecture(arch)
    if not patch_px or not side_px or side_px % patch_px:
        raise IjepaError(
            f"random:{name}: {side_px} pixels are no multiple of the patch's {patch_px} pixels."
        )
    encoder_config = EncoderConfig(arch=arch, patch_px=patch_px)
    encoder = build_encoder(encoder_config, (side_px, side_px), torch.Generator().manual_seed(seed))
    title = f"random:{arch}/{patch_px}@{side_px} seed {seed}"
    family = fingerprint_of(["random", arch, patch_px, side_px])
    provenance = Provenance(arch=_paper_arch(arch, patch_px), family=family, seed=seed)
    return _sized(title, encoder, DataConfig(image_px=side_px), image_px, provenance)


def _pretraining_data(path: Path) -> str | None:
    """What the run of a checkpoint saw, as its record says."""
    record = read_record(path.parent.parent) or {}
    return pretraining_set(str(record.get("source", "")), int(record.get("images", 0)))


def _provenance(method: str | None, config: PretrainConfig, data: str | None = None) -> Provenance:
    """Of a run, or without a method of the weights that it started from."""
    settings = config.model_dump(mode="json", exclude={"seed"})
    return Provenance(
        method=method,
        arch=_paper_arch(config.encoder.arch, config.encoder.patch_px) + _large(config),
        data=None if config.init else data,  # the given weights have seen what nobody knows
        epochs=config.optimization.epochs if method else 0,
        family=run_family(method, settings),
        seed=config.seed,
        settings=settings if method else None,
    )


def _large(config: PretrainConfig) -> str:
    """What the paper's tables put behind a network of large images."""
    return " 448" if config.data.image_px == LARGE_PX else ""


def _paper_arch(arch: str, patch_px: int) -> str:
    """`vit_huge` with patches of 14 pixels is the paper's ViT-H/14."""
    size = arch.removeprefix("vit_")
    return f"{f'ViT-{size[0].upper()}' if size != arch else arch}/{patch_px}"


def _sized(
    name: str,
    encoder: Encoder,
    data: DataConfig,
    image_px: int | Size | None,
    provenance: Provenance,
) -> Vit:
    """Fit the network to another image size, if one is asked for."""
    digest = weights_sha256(encoder.state_dict())
    if image_px and image_px != data.image_px:
        patch_px, size = encoder.patch_embed.patch_size[0], height_width(image_px)
        if any(side % patch_px for side in size):
            raise IjepaError(
                f"--image-size {image_px} is no multiple of the patch's {patch_px} pixels."
            )
        encoder.resize(size)
        data = data.model_copy(update={"image_px": image_px})
    return Vit(name, encoder, data, digest, provenance)


def _pixels(image_px: int | Size | None) -> FrozenEncoder:
    """Raw pixels, shrunk: the baseline that knows no network."""
    side_px = image_px or PIXELS_PX

    def flatten(images: Tensor, num_layers: int) -> Tensor:
        del num_layers  # there is one
        return images.flatten(1).unsqueeze(1)

    return FrozenEncoder(
        name=f"pixels@{side_px}",
        weights_sha256="0" * 64,
        image_px=side_px,
        crop_fraction=1.0,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_layers=1,
        pool=flatten,
        provenance=Provenance(family=fingerprint_of(["pixels", side_px])),
        pooling=NOTHING,
    )


def _run_name(path: Path) -> str:
    return str(path.parent.parent if path.name == "last.pt" else path)
