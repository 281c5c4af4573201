"""I-JEPA: context encoder, predictor, EMA target encoder, and the loss between them.

Source: paper section 3; facebookresearch/ijepa `src/train.py`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ijepa.config import PretrainConfig, TargetConfig
from ijepa.distributed import local
from ijepa.method.masking import Masks
from ijepa.method.targets import Targets
from ijepa.method.vit import Encoder, Predictor, build_encoder, build_predictor


class IJepa(nn.Module):
    """The three networks; attribute names are the published checkpoint's."""

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        target_encoder: Encoder,
        config: TargetConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config or TargetConfig()
        self.encoder = encoder
        self.predictor = predictor
        self.target_encoder = target_encoder
        target_encoder.requires_grad_(False)

    def forward(self, images: Tensor, groups: list[Masks]) -> list[tuple[Tensor, Tensor]]:
        """Predict the target blocks, and compute what they should be.

        Args:
            images: (B, 3, height, width) float, normalised.
            groups: masks of the same B images, in their order.

        Returns:
            Predictions and targets of each group, both (M * images, T, target dim); block 0 of all
            images first.
        """
        targets = Targets(self.config, self.target_encoder, images)
        answers, start = [], 0
        for masks in groups:
            chosen = slice(start, start + len(masks.context))
            answers.append(
                (self.predictions(images[chosen], masks), targets.of(chosen, masks.targets))
            )
            start = chosen.stop
        return answers

    def predictions(self, images: Tensor, masks: Masks) -> Tensor:
        """(M * B, T, target dim) from the context alone."""
        context = self.encoder(images, masks.context)
        predicted: Tensor = self.predictor(context, masks.context, masks.targets)
        return predicted

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move the target encoder towards the context encoder: p_k = m p_k + (1 - m) p_q."""
        slow = [local(parameter) for parameter in self.target_encoder.parameters()]
        fast = [local(parameter) for parameter in self.encoder.parameters()]
        torch._foreach_lerp_(slow, fast, 1.0 - momentum)


def build_ijepa(config: PretrainConfig) -> IJepa:
    """Make the networks of step 0; the target encoder starts as a copy of the context encoder."""
    generator = torch.Generator().manual_seed(config.seed)
    size = config.data.image_size
    encoder = build_encoder(config.encoder, size, generator)
    predictor = build_predictor(config, generator)
    target = build_encoder(config.encoder, size, torch.Generator())
    target.load_state_dict(encoder.state_dict())
    return IJepa(encoder, predictor, target, config.targets)


def parameter_groups(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
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
