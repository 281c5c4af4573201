"""Train step: ours against the same mathematics written plainly, from equal weights.

On a CPU ViT-T/8 at 96 px, with a predictor of half its width and with the published 384; on a GPU
ViT-S/16 and ViT-B/16 at 224 px.
"""

import copy

import numpy as np
import torch
from plain_training import PlainTrainer
from timing import emit, medians

from ijepa.config import DataConfig, EncoderConfig, PredictorConfig, PretrainConfig
from ijepa.method.jepa import build_ijepa
from ijepa.method.masking import sample_masks
from ijepa.method.training import Trainer

ON_GPU = torch.cuda.is_available()
SIZES = (  # arch, patch, image, batch, width of the predictor
    (("vit_small", 16, 224, 256, 384), ("vit_base", 16, 224, 256, 384))
    if ON_GPU
    else (("vit_tiny", 8, 96, 16, 96), ("vit_tiny", 8, 96, 16, 384))
)


def compare(arch: str, patch_px: int, image_px: int, batch: int, predictor_dim: int) -> None:
    """Time both, having seen that their first losses agree."""
    config = PretrainConfig(
        data=DataConfig(image_px=image_px, batch_size=batch),
        encoder=EncoderConfig(arch=arch, patch_px=patch_px),
        predictor=PredictorConfig(dim=predictor_dim, depth=6),
    )
    device = torch.device("cuda" if ON_GPU else "cpu")
    model = build_ijepa(config).to(device)
    ours = Trainer(model, config.optimization, 1000)
    plain = PlainTrainer(copy.deepcopy(model), config.optimization, 1000)
    images = torch.randn(batch, 3, image_px, image_px, device=device)
    group = config.masks.model_copy(update={"group_size": batch})
    [masks] = sample_masks(config.grid, batch, group, np.random.default_rng(0))
    masks = masks.to(device)
    losses = float(ours.step(0, images, [masks]).loss), float(plain.step(0, images, masks))
    assert abs(losses[0] - losses[1]) < (1e-2 if ON_GPU else 1e-5) * losses[1], losses
    ours_seconds, plain_seconds = medians(
        lambda: ours.step(0, images, [masks]), lambda: plain.step(0, images, masks), rounds=9
    )
    emit(
        "train_step",
        model=f"{arch}/{patch_px}@{image_px}, batch {batch}, predictor {predictor_dim}x6",
        images_per_second=batch / ours_seconds,
        plain_images_per_second=batch / plain_seconds,
        ratio=plain_seconds / ours_seconds,
        loss=losses[0],
        plain_loss=losses[1],
    )


if __name__ == "__main__":
    for size in SIZES:
        compare(*size)
