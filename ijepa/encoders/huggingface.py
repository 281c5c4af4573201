"""Encoders in the format of transformers, from a folder or from what is in its cache."""

import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ijepa.config import IMAGENET_MEAN, IMAGENET_STD, DataConfig, Size, height_width
from ijepa.encoders.base import EVAL_CROP, Encoder
from ijepa.encoders.formats import (
    held_encoder,
    processor_normalisation,
    read_networks,
    warn_of_processor,
)
from ijepa.encoders.own import encoder_of
from ijepa.encoders.pooling import CLASS_TOKEN, Pooling
from ijepa.encoders.spec import HUGGINGFACE, RELEASED, EncoderSpec, released
from ijepa.errors import IjepaError, optional
from ijepa.files import read_json
from ijepa.provenance import Provenance, paper_arch
from ijepa.weights import UNREADABLE, refuse_faults

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
UNUSED = ("decoder.", "classifier.", "lm_head.", "pooler.", "embeddings.mask_token")

log = logging.getLogger(__name__)


class Family(NamedTuple):
    """An architecture of transformers, and how it was trained."""

    method: str | None = None  # as the paper names it; None where one architecture serves several
    trained_alike: bool = True  # with ImageNet's mean and std; if not, the processor says how
    interpolates: bool = True  # positions, when it is told to; if not, it always does
    image_px: int | None = None  # side that its evaluation takes, if not the configuration's
    options: dict[str, Any] | None = None  # of `from_pretrained`


FAMILIES = {kind: Family(**fields) for kind, fields in HUGGINGFACE.items()}


def load(spec: EncoderSpec) -> Encoder:
    """Load a model of `FAMILIES`, exactly or not at all, without reaching for the network."""
    spec.refuse_context()
    folder = model_folder(spec.name)
    if read_json(folder / "config.json").get("model_type") == "ijepa":
        return _own(folder, spec)
    model = _model(folder, spec.text)
    config, family = model.config, FAMILIES[model.config.model_type]
    own_px = config.image_size if isinstance(config.image_size, int) else tuple(config.image_size)
    mean, std = IMAGENET_MEAN, IMAGENET_STD  # as trained, whatever the processor says
    if family.trained_alike:
        warn_of_processor(folder, str(family.method))
    elif said := processor_normalisation(folder):
        mean, std = said
    else:
        log.warning(
            "%s: no preprocessor_config.json says mean and std; ImageNet's are taken", folder
        )
    return Encoder(
        model,
        Pooling(
            partial(_pooled, family, height_width(own_px)), config.num_hidden_layers, CLASS_TOKEN
        ),
        DataConfig(
            image_px=family.image_px or own_px, eval_crop_fraction=EVAL_CROP, mean=mean, std=std
        ),
        name=spec.text,
        provenance=known_provenance(spec.name, config),
    )


def _own(folder: Path, spec: EncoderSpec) -> Encoder:
    """I-JEPA's, whose network is ours, and whose files may hold our notes."""
    encoder = encoder_of(read_networks(folder), held_encoder(folder), spec.text, hub=spec.name)
    if encoder.which == "context" and encoder.provenance == RELEASED["hub"].get(spec.name):
        log.warning(
            "%s is the context encoder, all that the hub has; the paper evaluates the target's, "
            "and no row of its tables is filled with this",
            spec.text,
        )
    return encoder


def weight_files(spec: EncoderSpec) -> list[Path]:
    """All files that decide what such an encoder is: weights, configuration, processor."""
    folder = model_folder(spec.name)
    weights = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
    return [*weights, *sorted(folder.glob("*config.json"))]


def model_folder(name: str) -> Path:
    """The folder of that name, or the snapshot of that model in the hub's cache."""
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except (OSError, ValueError) as error:
            raise IjepaError(
                f"hf:{name} is neither a folder nor in the cache of huggingface_hub. Fetch it "
                f"where there is a network, `hf download {name} --local-dir FOLDER`, and name "
                f"hf:FOLDER."
            ) from error
    if not (folder / "config.json").is_file():
        raise IjepaError(f"{folder} holds no model of transformers: there is no config.json.")
    return folder


def known_provenance(name: str, config: Any) -> Provenance:  # noqa: ANN401  # one class a family
    """What a name is known to be, if its network is that; else what the network tells."""
    side_px = max(height_width(config.image_size))
    size = (config.hidden_size, config.num_hidden_layers)
    arch = paper_arch(size, config.patch_size, side_px)
    seen = Provenance(method=FAMILIES[config.model_type].method, arch=arch)
    return released("hub", name, seen)


def _model(folder: Path, source: str) -> Any:  # noqa: ANN401  # any class of theirs
    """Nothing partly loaded: transformers itself would draw what is missing at random."""
    transformers = optional("transformers", "An hf: encoder")
    transformers.utils.logging.set_verbosity_error()  # what it warns of is refused below
    transformers.utils.logging.disable_progress_bar()
    model_type = str(read_json(folder / "config.json").get("model_type"))
    if model_type not in FAMILIES:
        raise IjepaError(f"{source} is a {model_type}; there are {', '.join(FAMILIES)}.")
    try:
        model, report = transformers.AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            **(FAMILIES[model_type].options or {}),
        )
    except (*UNREADABLE, ArithmeticError, StrictDataclassError) as error:  # of a config, the last
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise IjepaError(f"{source} does not load ({reason}).") from error
    faults = []
    for kind in ("mismatched", "missing", "unexpected"):
        for key in sorted(report[f"{kind}_keys"], key=str):
            name = key if isinstance(key, str) else key[0]
            if not name.startswith(UNUSED):
                faults.append(f"{name} {'of another shape' if kind == 'mismatched' else kind}")
    refuse_faults(source, faults)
    return model


def _pooled(
    family: Family,
    own_size: Size,
    model: Any,  # noqa: ANN401  # any class of theirs
    images: Tensor,
    num_layers: int,
) -> tuple[Tensor, Tensor]:
    wanted: dict[str, Any] = {}
    if family.interpolates and images.shape[-2:] != own_size:
        wanted["interpolate_pos_encoding"] = True
    patch = height_width(model.config.patch_size)
    patches = (images.shape[-2] // patch[0]) * (images.shape[-1] // patch[1])
    if family.method == "MAE":
        # ViTMAE sorts patches by noise, though it drops none: this leaves them in their order.
        noise = torch.arange(patches, dtype=torch.float, device=images.device)
        wanted["noise"] = noise.expand(len(images), -1)
    found = model(pixel_values=images, output_hidden_states=True, **wanted)
    layers = [model.layernorm(tokens) for tokens in found.hidden_states[-num_layers:]]
    vectors = [tokens[:, 0] for tokens in layers]
    return torch.stack(vectors, dim=1), layers[-1][:, -patches:]  # class token, registers go first
