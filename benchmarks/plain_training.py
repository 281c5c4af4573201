"""The I-JEPA step written plainly: attention as softmax of a matrix, loops over parameters.

Shares our networks' weights, so that both must give the same loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ijepa.config import OptimizationConfig
from ijepa.jepa.masks import Masks
from ijepa.jepa.model import IJepa, parameter_groups
from ijepa.jepa.schedules import Schedules


class PlainTrainer:
    """Same mathematics as `Trainer`, none of its speed."""

    def __init__(self, model: IJepa, config: OptimizationConfig, steps_per_epoch: int) -> None:
        self.model = model
        self.schedules = Schedules(config, steps_per_epoch)
        groups = parameter_groups([model.encoder, model.predictor])
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, foreach=False, fused=False)
        self._device = next(model.parameters()).device.type

    def step(self, step: int, images: Tensor, masks: Masks) -> Tensor:
        """Forward, backward, AdamW, EMA; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedules.lr(step)
            group["weight_decay"] = self.schedules.weight_decay(step) if group["decays"] else 0.0
        with torch.autocast(self._device, torch.bfloat16, enabled=self._device == "cuda"):
            loss = self._loss(images, masks)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        momentum = self.schedules.ema(step)
        with torch.no_grad():
            pairs = zip(
                self.model.encoder.parameters(), self.model.target_encoder.parameters(), strict=True
            )
            for fast, slow in pairs:
                slow.data.mul_(momentum).add_((1.0 - momentum) * fast.detach().data)
        return loss.detach()

    def _loss(self, images: Tensor, masks: Masks) -> Tensor:
        model = self.model
        with torch.no_grad():
            tokens = _encode(model.target_encoder, images, None)
            tokens = F.layer_norm(tokens, (tokens.shape[-1],))
            targets = torch.cat([_keep(tokens, index) for index in masks.targets])
        context = _encode(model.encoder, images, masks.context)
        return F.smooth_l1_loss(_predict(model.predictor, context, masks), targets)


def _encode(encoder: nn.Module, images: Tensor, index: Tensor | None) -> Tensor:
    tokens = encoder.patch_embed.proj(images).flatten(2).transpose(1, 2) + encoder.pos_embed
    if index is not None:
        tokens = _keep(tokens, index)
    for block in encoder.blocks:
        tokens = _block(block, tokens)
    return encoder.norm(tokens)


def _predict(predictor: nn.Module, context: Tensor, masks: Masks) -> Tensor:
    batch = len(context)
    positions = predictor.predictor_pos_embed.repeat(batch, 1, 1)
    seen = predictor.predictor_embed(context) + _keep(positions, masks.context)
    hidden = [predictor.mask_token + _keep(positions, index) for index in masks.targets]
    tokens = torch.cat([seen.repeat(len(hidden), 1, 1), torch.cat(hidden)], dim=1)
    for block in predictor.predictor_blocks:
        tokens = _block(block, tokens)
    tokens = predictor.predictor_norm(tokens)[:, masks.context.shape[1] :]
    return predictor.predictor_proj(tokens)


def _block(block: nn.Module, tokens: Tensor) -> Tensor:
    attention = block.attn
    batch, length, dim = tokens.shape
    qkv = attention.qkv(block.norm1(tokens))
    qkv = qkv.reshape(batch, length, 3, attention.num_heads, dim // attention.num_heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
    mixed = (weights.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, dim)
    tokens = tokens + attention.proj(mixed)
    return tokens + block.mlp(block.norm2(tokens))


def _keep(tokens: Tensor, index: Tensor) -> Tensor:
    return torch.gather(tokens, 1, index.unsqueeze(-1).repeat(1, 1, tokens.shape[-1]))
