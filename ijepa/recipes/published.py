"""Configuration files of facebookresearch/ijepa (`configs/*.yaml`), in our words."""

from collections.abc import Mapping
from typing import Any

from ijepa.config import PretrainConfig, flat
from ijepa.errors import IjepaError

GLOBAL_BATCH = 2048  # of the published runs; their files say only how many images one GPU takes

# published name -> ours
SETTINGS = {
    "seed": "seed", "meta.seed": "seed",
    "data.crop_size": "data.image_px", "data.crop_scale": "data.crop_scale",
    "data.use_horizontal_flip": "data.flip", "data.batch_size": "masks.group_size",
    "mask.patch_size": "encoder.patch_px", "mask.num_pred_masks": "masks.num_targets",
    "mask.pred_mask_scale": "masks.target_scale", "mask.aspect_ratio": "masks.target_aspect",
    "mask.enc_mask_scale": "masks.context_scale", "mask.min_keep": "masks.min_keep",
    "meta.model_name": "encoder.arch", "meta.pred_depth": "predictor.depth",
    "meta.pred_emb_dim": "predictor.dim", "optimization.warmup": "optimization.warmup_epochs",
    "optimization.ipe_scale": "optimization.schedule_scale",
}  # fmt: skip
SAME = ("ema", "epochs", "start_lr", "lr", "final_lr", "weight_decay", "final_weight_decay")
SETTINGS |= {f"optimization.{name}": f"optimization.{name}" for name in SAME}
# Where data lie, how many processes read them, where to log: not of the method.
PLACES = {
    "data.image_folder", "data.num_workers", "data.pin_mem", "data.root_path", "logging.folder",
    "logging.write_tag", "meta.copy_data", "meta.load_checkpoint", "meta.read_checkpoint",
}  # fmt: skip
BFLOAT16 = "meta.use_bfloat16"
# What we do not do; every published file has these values.
ONLY = {
    "data.use_gaussian_blur": False,
    "data.use_color_distortion": False,
    "data.color_jitter_strength": 0.0,
    "mask.allow_overlap": False,
    "mask.num_enc_masks": 1,
}


def is_published(body: Mapping[str, Any]) -> bool:
    """Is it a file of the released code? Theirs say `mask` and `meta`, ours `masks`."""
    return "mask" in body and "meta" in body


def translate(body: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A released configuration as one of ours.

    The batch of one GPU becomes `masks.group_size`, over which the released code cuts contexts;
    the batch of all GPUs, which no file states, becomes the published 2,048.

    Raises:
        IjepaError: settings that the released files do not have, or a value we cannot honour.
    """
    settings = {n: value for n, value in flat(body).items() if "." in n or value is not None}
    unknown = [name for name in settings if name not in {*SETTINGS, *ONLY, *PLACES, BFLOAT16}]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise IjepaError(
            f"recipe {source}: not settings of facebookresearch/ijepa: {', '.join(unknown[:5])}"
            f"{more}. Remove them; `ijepa recipes NAME` prints the settings of this package."
        )
    for name, only in ONLY.items():
        if settings.get(name, only) != only:
            raise IjepaError(
                f"recipe {source}: {name} is {settings[name]!r}, but only {only!r} is supported."
            )
    ours: dict[str, Any] = {}
    for name, value in settings.items():
        if name in SETTINGS:
            group, _, setting = SETTINGS[name].rpartition(".")
            (ours.setdefault(group, {}) if group else ours)[setting] = value
    if BFLOAT16 in settings:
        precision = "bf16" if settings[BFLOAT16] else "fp32"
        ours.setdefault("optimization", {})["precision"] = precision
    ours.setdefault("data", {})["batch_size"] = GLOBAL_BATCH
    return ours


def batch_note(config: PretrainConfig) -> str:
    """What the batch of a translated file is, and the option that changes it."""
    return (
        f"data.batch_size is {config.data.batch_size:,} images over all devices: the recipe only "
        f"says how many each GPU takes ({config.masks.group_size:,}, here masks.group_size), and "
        f"the published runs took {GLOBAL_BATCH:,}. Change it with --set data.batch_size=N."
    )
