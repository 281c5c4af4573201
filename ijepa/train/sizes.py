"""How large a run is, found out without allocating it."""

import torch

from ijepa.config import PretrainConfig
from ijepa.jepa.model import build_ijepa


def model_size(config: PretrainConfig) -> tuple[int, int]:
    """Trained parameters of encoder and predictor, without positions; nothing is allocated."""
    with torch.device("meta"):
        model = build_ijepa(config)
    return _count_trained(model.encoder), _count_trained(model.predictor)


def _count_trained(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
