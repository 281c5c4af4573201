"""Encoders in the format of transformers, from a folder or from what is in its cache."""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ijepa.config import IMAGENET_MEAN, IMAGENET_STD, DataConfig, Rgb, height_width
from ijepa.encoders.base import (
    CLASS_TOKEN,
    EVAL_CROP,
    PATCH_AVERAGE,
    TUNABLE,
    Encoder,
    Pooled,
    check_multiple,
    weights_sha256,
)
from ijepa.encoders.formats import held_encoder, read_networks
from ijepa.encoders.own import provenance_of, vit_encoder
from ijepa.encoders.spec import RELEASED, EncoderSpec
from ijepa.errors import IjepaError
from ijepa.files import parse_json, read_json
from ijepa.provenance import Provenance, paper_arch
from ijepa.weights import refuse_faults

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
PROCESSOR = "preprocessor_config.json"
UNREADABLE = (
    OSError, ValueError, RuntimeError, LookupError, EOFError, SafetensorError,
    pickle.UnpicklingError,
)  # fmt: skip
UNUSED = ("decoder.", "classifier.", "lm_head.", "pooler.", "embeddings.mask_token")

log = logging.getLogger(__name__)


class Family(NamedTuple):
    """An architecture of transformers, and how it was trained.

    Attributes:
        method: as the paper's tables have it, or None where one architecture serves several.
        pooling: as `Encoder` says it.
        trained_alike: on images normalised with ImageNet's mean and standard deviation; if not,
            the processor says how.
        interpolates: positions, when it is told to; if not, it always does.
        image_px: side that its evaluation takes, where the configuration has another.
    """

    method: str | None
    pooling: str = CLASS_TOKEN
    trained_alike: bool = True
    interpolates: bool = True
    image_px: int | None = None


FAMILIES = {
    "ijepa": Family("I-JEPA", PATCH_AVERAGE),
    "vit_mae": Family("MAE"),
    "data2vec-vision": Family("data2vec"),
    "vit_msn": Family("MSN"),
    "dinov2": Family("DINOv2", interpolates=False, image_px=224),
    "dinov2_with_registers": Family("DINOv2", interpolates=False, image_px=224),
    "vit": Family(None, trained_alike=False),
}


def load(spec: EncoderSpec) -> Encoder:
    """Load a model of `FAMILIES`, exactly or not at all, without reaching for the network.

    Raises:
        IjepaError: not on this machine, another architecture, or weights that do not fit it.
    """
    spec.one_encoder()
    transformers, folder = _transformers(), model_folder(spec.name)
    config = _config(transformers, folder, spec.text)
    family = FAMILIES[config.model_type]
    model = _model(transformers, folder, config, spec.text)
    own_px = config.image_size if isinstance(config.image_size, int) else tuple(config.image_size)
    image_px = spec.image_px or family.image_px or own_px
    size = check_multiple(image_px, config.patch_size)
    provenance = known_provenance(spec.name, config)
    which = held_encoder(folder) if family.method == "I-JEPA" else "target"
    if which == "context" and provenance == RELEASED["hub"].get(spec.name):
        log.warning(
            "%s is the context encoder, all that the hub has; the paper evaluates the target's, "
            "and no row of its tables is filled with this",
            spec.text,
        )
    mean, std = _normalisation(folder, family, spec.text)
    return Encoder(
        model,
        _pooled(model, family, interpolate=size != height_width(own_px) and family.interpolates),
        DataConfig(image_px=image_px, eval_crop_fraction=EVAL_CROP, mean=mean, std=std),
        name=spec.text,
        weights_sha256=weights_sha256(model.state_dict()),
        provenance=provenance,
        which=which,
    )


def load_trainable(spec: EncoderSpec) -> Encoder:
    """I-JEPA's, whose network is ours; the blocks of others are not timm's.

    Raises:
        IjepaError: another family, or weights that do not load.
    """
    spec.one_encoder()
    folder = model_folder(spec.name)
    if read_json(folder / "config.json").get("model_type") != "ijepa":
        raise IjepaError(f"{spec.text} can be extracted from, not fine-tuned: {TUNABLE}.")
    networks, which = read_networks(folder), held_encoder(folder)
    provenance, known = provenance_of(networks), RELEASED["hub"].get(spec.name)
    if known and (known.arch or "").removesuffix(" 448") == provenance.arch:
        provenance = known
    spec, data = spec._replace(which=which), networks.config.data
    return vit_encoder(spec, spec.text, networks.encoder(which), data, provenance)


def weight_files(spec: EncoderSpec) -> list[Path]:
    """All files that decide what such an encoder is: weights, configuration, processor.

    Raises:
        IjepaError: not on this machine.
    """
    folder = model_folder(spec.name)
    weights = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
    return [*weights, *sorted(folder.glob("*config.json"))]


def model_folder(rest: str) -> Path:
    """The folder of that name, or the snapshot of that model in the hub's cache.

    Raises:
        IjepaError: neither, or one without a model.
    """
    folder = Path(rest)
    if not folder.is_dir():
        folder = _cached(rest)
    if not (folder / "config.json").is_file():
        raise IjepaError(f"{folder} holds no model of transformers: there is no config.json.")
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise IjepaError(f"{folder} holds no weights: no {' or '.join(WEIGHTS)}.")
    return folder


def known_provenance(name: str, config: Any) -> Provenance:  # noqa: ANN401  # one class a family
    """What a name is known to be, if its network is that; else what the network tells."""
    side_px = max(height_width(config.image_size))
    size = (config.hidden_size, config.num_hidden_layers)
    arch = paper_arch(size, config.patch_size, side_px)
    known = RELEASED["hub"].get(name)
    if known and known.arch == arch:
        return known
    return Provenance(method=FAMILIES[config.model_type].method, arch=arch)


def _cached(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError) as error:
        raise IjepaError(
            f"hf:{name} is neither a folder nor in the cache of huggingface_hub. Fetch it where "
            f"there is a network, `hf download {name} --local-dir FOLDER`, and name hf:FOLDER."
        ) from error


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise IjepaError(
            "hf: encoders need transformers; install it with pip install transformers."
        ) from error
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # what it warns of is refused below
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs has no types
    return transformers


def _config(transformers: ModuleType, folder: Path, source: str) -> Any:  # noqa: ANN401  # one class a family
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IjepaError(
            f"{source}: config.json is not readable ({_first_line(error)})."
        ) from error
    if config.model_type not in FAMILIES:
        raise IjepaError(f"{source} is a {config.model_type}; there are {', '.join(FAMILIES)}.")
    config.mask_ratio = 0.0  # MAE sees all patches
    if config.model_type == "data2vec-vision":
        config.use_mean_pooling = False  # the class token is taken, after the final norm
    return config


def _model(transformers: ModuleType, folder: Path, config: Any, source: str) -> Any:  # noqa: ANN401  # any class of theirs
    """Nothing partly loaded: transformers itself would draw what is missing at random."""
    moved = {r"pooler\.layernorm\.": "layernorm."} if config.model_type == "data2vec-vision" else {}
    try:
        model, report = transformers.AutoModel.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            key_mapping=moved or None,
        )
    except UNREADABLE as error:
        raise IjepaError(f"{source} does not load ({_first_line(error)}).") from error
    _check(report, source)
    return model


def _check(report: Mapping[str, Any], source: str) -> None:
    faults = []
    for kind in ("mismatched", "missing", "unexpected"):
        for key in sorted(report[f"{kind}_keys"], key=str):
            name = key if isinstance(key, str) else key[0]
            if not name.startswith(UNUSED):
                faults.append(f"{name} {'of another shape' if kind == 'mismatched' else kind}")
    refuse_faults(source, faults)


def _normalisation(folder: Path, family: Family, source: str) -> tuple[Rgb, Rgb]:
    """As the method was trained, whatever the processor says; it is asked where nobody knows."""
    mean, std = _processor(folder, source)
    ours = (IMAGENET_MEAN, IMAGENET_STD)
    if mean is None or std is None:
        if not family.trained_alike:
            log.warning("%s: no %s; ImageNet's mean and std are taken", source, PROCESSOR)
        return ours
    if not family.trained_alike:
        return mean, std
    pairs = zip((*mean, *std), (*ours[0], *ours[1]), strict=True)
    if any(abs(theirs - trained) > 1e-3 for theirs, trained in pairs):
        log.warning(
            "%s: its processor says mean %s, std %s, but %s was trained with mean %s, std %s; "
            "these are taken",
            source, list(mean), list(std), family.method, list(ours[0]), list(ours[1]),
        )  # fmt: skip
    return ours


def _processor(folder: Path, source: str) -> tuple[Rgb | None, Rgb | None]:
    """(mean, std) of the image processor; (0, 1) if it does not normalise; None if not said."""
    path = folder / PROCESSOR
    if not path.is_file():
        return None, None
    try:
        said = parse_json(path.read_bytes())
        if said.get("do_normalize", True) is False:
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return _rgb(said.get("image_mean")), _rgb(said.get("image_std"))
    except (ValueError, TypeError, AttributeError) as error:
        raise IjepaError(f"{source}: {PROCESSOR} is not readable ({error}).") from error


def _rgb(value: Any) -> Rgb | None:  # noqa: ANN401  # as JSON has it
    if value is None:
        return None
    red, green, blue = (float(part) for part in value)
    return red, green, blue


def _pooled(model: Any, family: Family, interpolate: bool) -> Pooled:  # noqa: ANN401  # any class of theirs
    norm: nn.Module = model.layernorm
    wanted: dict[str, Any] = {"interpolate_pos_encoding": True} if interpolate else {}

    def features(images: Tensor, num_layers: int) -> Tensor:
        if family.method == "MAE":
            wanted["noise"] = _in_order(images, model.config.patch_size)
        found = model(pixel_values=images, output_hidden_states=True, **wanted)
        layers = [norm(tokens) for tokens in found.hidden_states[-num_layers:]]
        if family.pooling == CLASS_TOKEN:
            return torch.stack([tokens[:, 0] for tokens in layers], dim=1)
        return torch.stack([tokens.mean(dim=1) for tokens in layers], dim=1)

    return Pooled(features, model.config.num_hidden_layers, family.pooling)


def _in_order(images: Tensor, patch_px: int) -> Tensor:
    """Noise by which ViTMAE sorts patches, though it drops none: ascending leaves their order."""
    batch, _, height, width = images.shape
    numbers = torch.arange((height // patch_px) * (width // patch_px), device=images.device)
    return numbers.float().expand(batch, -1)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
