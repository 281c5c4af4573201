"""I-JEPA: context encoder, predictor, EMA target encoder, and the loss between them.

Source: paper section 3; facebookresearch/ijepa `src/train.py`.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ijepa.config import PretrainConfig
from ijepa.method.masking import Masks
from ijepa.method.vit import (
    Encoder,
    Predictor,
    build_encoder,
    build_predictor,
    gather_patches,
)


class IJepa(nn.Module):
    """The three networks; attribute names are the published checkpoint's."""

    def __init__(self, encoder: Encoder, predictor: Predictor, target_encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor
        self.target_encoder = target_encoder
        target_encoder.requires_grad_(False)

    def forward(self, images: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """Predict the target blocks, and compute what they should be.

        Args:
            images: (B, 3, height, width) float, normalised.
            masks: context and targets of the same B images.

        Returns:
            Predictions and targets, each (M * B, T, dim); block 0 of all images first.
        """
        targets = self.targets(images, masks.targets)
        return self.predictions(images, masks), targets

    def predictions(self, images: Tensor, masks: Masks) -> Tensor:
        """(M * B, T, dim) from the context alone."""
        context = self.encoder(images, masks.context)
        predicted: Tensor = self.predictor(context, masks.context, masks.targets)
        return predicted

    @torch.no_grad()
    def targets(self, images: Tensor, target_index: Tensor) -> Tensor:
        """(M * B, T, dim): the target encoder's tokens, layer-normed without affine, then gathered.

        The norm stands on top of the encoder's own final norm, and has PyTorch's default eps.
        """
        tokens = self.target_encoder(images)
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        num_blocks = target_index.shape[0]
        return gather_patches(tokens.repeat(num_blocks, 1, 1), target_index.flatten(0, 1))

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move the target encoder towards the context encoder: p_k = m p_k + (1 - m) p_q."""
        slow: list[Tensor] = list(self.target_encoder.parameters())
        fast: list[Tensor] = list(self.encoder.parameters())
        torch._foreach_lerp_(slow, fast, 1.0 - momentum)


def build_ijepa(config: PretrainConfig) -> IJepa:
    """Make the networks of step 0; the target encoder starts as a copy of the context encoder."""
    generator = torch.Generator().manual_seed(config.seed)
    encoder = build_encoder(config.encoder, config.data.image_px, generator)
    predictor = build_predictor(config.encoder, config.predictor, config.data.image_px, generator)
    target = build_encoder(config.encoder, config.data.image_px, torch.Generator())
    target.load_state_dict(encoder.state_dict())
    return IJepa(encoder, predictor, target)


def jepa_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Smooth-L1 (beta 1), mean over everything; the paper says L2, the released code does this."""
    return F.smooth_l1_loss(predictions, targets)


def parameter_groups(modules: Iterable[nn.Module]) -> list[dict[str, object]]:
    """Two optimizer groups: with weight decay, and without (biases and 1-D parameters).

    The mask token has three dimensions and is decayed, as in the released code.
    """
    trained = [
        (name, parameter)
        for module in modules
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    exempt = [p for name, p in trained if p.ndim == 1 or name.endswith("bias")]
    decayed = [p for name, p in trained if not (p.ndim == 1 or name.endswith("bias"))]
    return [
        {"params": decayed, "decays": True},
        {"params": exempt, "decays": False, "weight_decay": 0.0},
    ]
