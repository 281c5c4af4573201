"""What the predictor is asked for: embeddings of the target encoder, or pixels.

Source: paper section 3, table 7 (pixels) and table 11 (masking before or after the encoder).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ijepa.config import TargetConfig
from ijepa.jepa.vit import Encoder, patchify

LOSSES = {"smooth_l1": F.smooth_l1_loss, "l2": F.mse_loss, "l1": F.l1_loss}


class Targets:
    """Targets of a batch of images; what all its masks share is computed once."""

    @torch.no_grad()
    def __init__(self, config: TargetConfig, encoder: Encoder, images: Tensor) -> None:
        """Take what the target encoder says.

        Args:
            config: embeddings (of which layers) or pixels, masked after the encoder or before.
            encoder: the target encoder.
            images: (B, 3, height, width) float, normalised; or patches, see `Encoder.forward`.
        """
        self._config, self._encoder, self._images = config, encoder, images
        self._tokens: Tensor | None = None  # (B, N, target dim)
        if config.space != "embeddings":
            patch_px = encoder.patch_embed.patch_size[0]
            pixels = patchify(images, patch_px) if images.ndim == 4 else images
            self._tokens = standardise(pixels) if config.space == "normalised-pixels" else pixels
        elif config.masked == "output":
            self._tokens = target_tokens(config, encoder, images)

    @torch.no_grad()
    def of(self, images: slice, target_index: Tensor) -> Tensor:
        """Targets of some of the images.

        Args:
            images: which of the batch.
            target_index: (M, B', T) int64 patches of the M blocks of these B' images.

        Returns:
            (M * B', T, target dim); block 0 of all images first.
        """
        if self._tokens is not None:
            return gather_blocks(self._tokens[images], target_index)
        some = self._images[images]
        blocks = some.repeat(len(target_index), *[1] * (some.ndim - 1))
        return target_tokens(self._config, self._encoder, blocks, target_index.flatten(0, 1))


def target_tokens(
    config: TargetConfig, encoder: Encoder, images: Tensor, index: Tensor | None = None
) -> Tensor:
    """Layer-normed tokens of the target encoder, all layers of `config.layers` side by side.

    Args:
        config: its targets are embeddings.
        encoder: the target encoder.
        images: (B, 3, height, width) float, normalised; or patches, see `Encoder.forward`.
        index: (B, K) int64 patches that the encoder sees; None for all N.

    Returns:
        (B, K or N, target dim); the last layer's features last.
    """
    if config.layers is None:
        return layer_norm(encoder(images, index))
    layers = encoder.forward_layers(images, config.layers, index)
    return torch.cat([layer_norm(tokens) for tokens in layers], dim=-1)


def last_layer(tokens: Tensor, config: TargetConfig) -> Tensor:
    """Of targets or predictions (..., target dim), the features of the last layer: (..., dim).

    Targets of one layer, and pixels, are returned as they are.
    """
    return tokens if config.layers is None else tokens.chunk(len(config.layers), dim=-1)[-1]


def gather_blocks(tokens: Tensor, target_index: Tensor) -> Tensor:
    """Keep the tokens of M blocks of each image, without a copy of all tokens for every block.

    Args:
        tokens: (B, N, D).
        target_index: (M, B, T) int64 in [0, N).

    Returns:
        (M * B, T, D); block 0 of all images first.
    """
    num_images, num_patches, _ = tokens.shape
    first = torch.arange(num_images, device=tokens.device).unsqueeze(1) * num_patches
    return F.embedding((target_index + first).flatten(0, 1), tokens.flatten(0, 1))


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
