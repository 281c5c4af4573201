"""A run's three networks together: context encoder, predictor and target encoder."""

from pathlib import Path
from typing import NamedTuple

from ijepa.config import PretrainConfig
from ijepa.encoders.identity import checkpoint_path
from ijepa.errors import IjepaError
from ijepa.jepa.model import IJepa, build_ijepa
from ijepa.weights import load_checkpoint, load_weights


class TrainedJepa(NamedTuple):
    """The networks of a run, frozen, on the CPU, and the run's configuration."""

    name: str
    jepa: IJepa
    config: PretrainConfig


def load_jepa(name: str) -> TrainedJepa:
    """Load all networks of a run.

    Args:
        name: a run folder, a checkpoint file of a run, or `random:RUN`, the networks that the run
            started from.

    Raises:
        IjepaError: something else, or weights that do not load. Never partly loaded networks.
    """
    kind, colon, rest = name.partition(":")
    random = bool(colon) and kind == "random"
    path = Path(rest if random else name)
    if not path.exists():
        raise IjepaError(
            f"{name} has no predictor; name a run folder, a checkpoint of a run, or random:RUN."
        )
    state = load_checkpoint(checkpoint_path(path))
    jepa = build_ijepa(state.config)
    if not random:
        load_weights(jepa, state.model, path)
    return TrainedJepa(name, jepa.eval().requires_grad_(False), state.config)
