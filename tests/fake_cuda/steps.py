"""The library's own training step on fake CUDA tensors. Only for processes of `runtime`."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ijepa.config import DataConfig, EncoderConfig, PredictorConfig, PretrainConfig
from ijepa.jepa.masks import Masks
from ijepa.jepa.model import IJepa, build_ijepa
from ijepa.recipes import load_recipe

GPU = torch.device("cuda", 0)
# Architecture, side of a patch, width and depth of the predictor; at 224 pixels.
SIZES = {
    "S": ("vit_small", 16, 384, 6),
    "B": ("vit_base", 16, 384, 6),
    "L": ("vit_large", 16, 384, 12),
    "H": ("vit_huge", 14, 384, 12),
}
Module = TypeVar("Module", bound=nn.Module)


def sized_config(name: str, batch: int | None) -> PretrainConfig:
    """A key of `SIZES` with a batch size, or `recipe:NAME` with its own unless one is given."""
    if name.startswith("recipe:"):
        overrides = [] if batch is None else [f"data.batch_size={batch}"]
        return load_recipe(name.removeprefix("recipe:"), overrides)
    arch, patch_px, dim, depth = SIZES[name]
    return PretrainConfig(
        data=DataConfig(image_px=224, batch_size=batch or 128),
        encoder=EncoderConfig(arch=arch, patch_px=patch_px),
        predictor=PredictorConfig(dim=dim, depth=depth),
    )


def on_gpu(build: Callable[[], Module]) -> Module:
    """What `build` returns, without values, its parameters and buffers on the GPU.

    Call it inside `tensors.fake_tensors`. The module is built on torch's meta device, so that even
    the largest takes no time and no memory.
    """
    with _disable_current_modes(), torch.device("meta"):
        module = build()
    return module.to_empty(device=GPU)


def ijepa_on_gpu(config: PretrainConfig) -> IJepa:
    """The networks of a run on the GPU, without values."""
    return on_gpu(lambda: build_ijepa(config))


def images_on_gpu(config: PretrainConfig) -> Tensor:
    """(B, 3, height, width) of a batch, normalised."""
    return torch.empty(config.data.batch_size, 3, *config.data.image_size, device=GPU)


def empty_masks(like: Masks, lengths: tuple[int, int] | None = None) -> Masks:
    """Masks on the GPU without values, for as many images and blocks.

    Args:
        like: where the shapes and dtypes come from.
        lengths: patches of a context and of a target block; None for those of `like`.
    """
    context, target = lengths or (like.context.shape[1], like.targets.shape[2])
    return Masks(
        torch.empty(len(like.context), context, dtype=like.context.dtype, device=GPU),
        torch.empty(*like.targets.shape[:2], target, dtype=like.targets.dtype, device=GPU),
    )
