"""Checkpoints: all of a run's state at one step, in one file that is whole or absent."""

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import nn

from ijepa.config import PretrainConfig
from ijepa.errors import IjepaError
from ijepa.stores.weights import read_weights, write_weights

SCHEMA = 2


class Checkpoint(NamedTuple):
    """State after `step` optimizer steps.

    Attributes:
        step: how many steps are done.
        config: of the run.
        model: state dict with the parts `encoder.`, `predictor.` and `target_encoder.`.
        optimizer: state dict, by the names of the parameters; empty where weights alone were kept,
            from which no run goes on.
        facts: small values the run keeps, such as the length of its metrics file.
    """

    step: int
    config: PretrainConfig
    model: dict[str, Any]
    optimizer: dict[str, Any]
    facts: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically; on a full disk the old file stays."""
    config = checkpoint.config.model_dump(mode="json")
    save_state(path, checkpoint._asdict() | {"config": config})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; tensors only, no pickled code.

    Raises:
        IjepaError: not there, cut short, or not one of ours. Never anything but the whole state.
    """
    body = load_state(path)
    return checkpoint_of(path, {"schema": SCHEMA, **body})


def checkpoint_of(path: Path, body: dict[str, Any]) -> Checkpoint:
    """What was read from `path` as a checkpoint; raises as `load_checkpoint`."""
    body = _state_in(path, body)
    try:
        config = PretrainConfig.model_validate(body.pop("config"))
        return Checkpoint(config=config, **body)
    except ValidationError as error:
        raise IjepaError(
            f"{path} holds a configuration that this version does not know."
        ) from error
    except (KeyError, TypeError) as error:
        raise IjepaError(f"{path} lacks a part of an ijepa checkpoint ({error}).") from error


def save_state(path: Path, body: dict[str, Any]) -> None:
    """Write tensors and plain values atomically; on a full disk the old file stays."""
    write_weights(path, {"schema": SCHEMA, **body})


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote onto the CPU; tensors and plain values only, no pickled code.

    Raises:
        IjepaError: not there, cut short, or not one of ours.
    """
    if not path.is_file():
        raise IjepaError(f"There is no checkpoint {path}.")
    try:
        return _state_in(path, read_weights(path))
    except IjepaError as error:
        raise IjepaError(f"{error} Restore it, or use --force.") from error


def _state_in(path: Path, body: dict[str, Any]) -> dict[str, Any]:
    if body.get("schema") != SCHEMA:
        raise IjepaError(f"{path} is not an ijepa checkpoint of schema {SCHEMA}.")
    return {name: value for name, value in body.items() if name != "schema"}


def load_weights(module: nn.Module, weights: dict[str, Any], source: object) -> None:
    """Load a state dict exactly, or not at all; raises as `check_weights`."""
    check_weights(module, weights, source)
    module.load_state_dict(weights)


def check_weights(module: nn.Module, weights: dict[str, Any], source: object) -> None:
    """Is this a state dict of just that module?

    Raises:
        IjepaError: naming the first missing, unexpected or differently shaped keys.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        missing = [f"{name} missing" for name in expected.keys() - found.keys()]
        extra = [f"{name} unexpected" for name in found.keys() - expected.keys()]
        shapes = [
            f"{name} is {found[name]}, expected {expected[name]}"
            for name in expected.keys() & found.keys()
            if expected[name] != found[name]
        ]
        faults = sorted(shapes) + sorted(missing) + sorted(extra)
        raise IjepaError(
            f"{source} is of another architecture: {'; '.join(faults[:3])}"
            f"{f' and {len(faults) - 3} more' if len(faults) > 3 else ''}."
        )
