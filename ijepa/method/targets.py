"""What the predictor is asked for: embeddings of the target encoder, or pixels.

Source: paper section 3, table 7 (pixels) and table 11 (masking before or after the encoder).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ijepa.config import TargetConfig
from ijepa.method.vit import Encoder, gather_patches, patchify

LOSSES = {"smooth_l1": F.smooth_l1_loss, "l2": F.mse_loss, "l1": F.l1_loss}


class Targets:
    """Targets of a batch of images; what all its masks share is computed once."""

    @torch.no_grad()
    def __init__(self, config: TargetConfig, encoder: Encoder, images: Tensor) -> None:
        """Take what the target encoder says.

        Args:
            config: embeddings or pixels, masked after the encoder or before.
            encoder: the target encoder.
            images: (B, 3, height, width) float, normalised; or patches, see `Encoder.forward`.
        """
        self._encoder, self._images = encoder, images
        self._tokens: Tensor | None = None  # (B, N, dim)
        if config.space != "embeddings":
            patch_px = encoder.patch_embed.patch_size[0]
            pixels = patchify(images, patch_px) if images.ndim == 4 else images
            self._tokens = standardise(pixels) if config.space == "normalised-pixels" else pixels
        elif config.masked == "output":
            self._tokens = layer_norm(encoder(images))

    @torch.no_grad()
    def of(self, images: slice, target_index: Tensor) -> Tensor:
        """Targets of some of the images.

        Args:
            images: which of the batch.
            target_index: (M, B', T) int64 patches of the M blocks of these B' images.

        Returns:
            (M * B', T, dim); block 0 of all images first.
        """
        num_blocks, flat = target_index.shape[0], target_index.flatten(0, 1)
        if self._tokens is not None:
            return gather_patches(self._tokens[images].repeat(num_blocks, 1, 1), flat)
        some = self._images[images]
        blocks = some.repeat(num_blocks, *[1] * (some.ndim - 1))
        return layer_norm(self._encoder(blocks, flat))


def layer_norm(tokens: Tensor) -> Tensor:
    """Over the features, without affine, with PyTorch's default eps, on the encoder's own norm."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def standardise(pixels: Tensor) -> Tensor:
    """Mean 0 and variance 1 within each patch; unbiased variance and eps 1e-6, as MAE."""
    mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True)
    return (pixels - mean) / (variance + 1e-6).sqrt()


def prediction_loss(predictions: Tensor, targets: Tensor, name: str = "smooth_l1") -> Tensor:
    """Mean over everything; `name` is one of `LOSSES`.

    The paper says L2, the released code takes smooth-L1 with beta 1.
    """
    loss: Tensor = LOSSES[name](predictions, targets)
    return loss
