"""I-JEPA: context encoder, predictor, EMA target encoder, and the loss between them.

Source: paper section 3; facebookresearch/ijepa `src/train.py`.
"""

import contextlib
import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ijepa.config import PretrainConfig, TargetConfig
from ijepa.distributed import local
from ijepa.jepa.masking import Masks
from ijepa.jepa.targets import Targets
from ijepa.jepa.vit import Encoder, Predictor, build_encoder, build_predictor, patchify


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
        self._bf16_copy: list[Encoder] = []  # a list, so that it is no part of the state dict

    @property
    def teacher(self) -> Encoder:
        """What computes targets: the target encoder, or its copy in bfloat16 where there is one."""
        return self._bf16_copy[0] if self._bf16_copy else self.target_encoder

    @torch.no_grad()
    def keep_bf16_teacher(self) -> None:
        """From now on compute targets wholly in bfloat16, residual stream included.

        Nothing is trained through them, so they need no more. Autocast would cast all weights in
        every step; the copy is renewed with the EMA, which itself stays in float32.
        """
        self._bf16_copy = [copy.deepcopy(self.target_encoder).bfloat16()]

    @torch.no_grad()
    def renew_teacher(self) -> None:
        """Bring the copy up to date after the target encoder has changed."""
        for encoder in self._bf16_copy:
            copies: list[Tensor] = list(encoder.parameters())
            newest: list[Tensor] = list(self.target_encoder.parameters())
            torch._foreach_copy_(copies, newest)

    def forward(self, images: Tensor, groups: list[Masks]) -> list[tuple[Tensor, Tensor]]:
        """Predict the target blocks, and compute what they should be.

        Args:
            images: (B, 3, height, width) float, normalised.
            groups: masks of the same B images, in their order.

        Returns:
            Predictions and targets of each group, both (M * images, T, target dim); block 0 of all
            images first.
        """
        patches = patchify(images, self.encoder.patch_embed.patch_size[0])
        with self._teacher_precision(images.device):
            targets = Targets(self.config, self.teacher, patches)
        answers, start = [], 0
        for masks in groups:
            chosen = slice(start, start + len(masks.context))
            with self._teacher_precision(images.device):
                wanted = targets.of(chosen, masks.targets)
            answers.append((self.predictions(patches[chosen], masks), wanted))
            start = chosen.stop
        return answers

    def _teacher_precision(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """Without autocast for the copy in bfloat16; as all else for the target encoder itself."""
        if not self._bf16_copy:
            return contextlib.nullcontext()
        return torch.autocast(device.type, enabled=False)

    def predictions(self, images: Tensor, masks: Masks) -> Tensor:
        """(M * B, T, target dim) from the context alone, of images or of their patches."""
        context = self.encoder(images, masks.context)
        predicted: Tensor = self.predictor(context, masks.context, masks.targets)
        return predicted

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move the target encoder towards the context encoder: p_k = m p_k + (1 - m) p_q."""
        slow = [local(parameter) for parameter in self.target_encoder.parameters()]
        fast = [local(parameter) for parameter in self.encoder.parameters()]
        torch._foreach_lerp_(slow, fast, 1.0 - momentum)
        self.renew_teacher()


def build_ijepa(config: PretrainConfig) -> IJepa:
    """Make the networks of step 0; the target encoder starts as a copy of the context encoder."""
    generator = torch.Generator().manual_seed(config.seed)
    encoder = build_encoder(config.encoder, config.data.image_size, generator)
    predictor = build_predictor(config, generator)
    return IJepa(encoder, predictor, copy.deepcopy(encoder), config.targets)


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
