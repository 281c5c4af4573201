"""A run that does not start from random weights: from given ones, or from a shorter run's state."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ijepa.config import PretrainConfig
from ijepa.encoders.reading import LAST, read_networks
from ijepa.errors import IjepaError
from ijepa.jepa.model import IJepa
from ijepa.jepa.schedules import Schedules
from ijepa.stage import read_record
from ijepa.train.checkpoint import link_or_copy
from ijepa.weights import check_weights

POSITIONS = ("pos_embed", "predictor_pos_embed")  # fixed tables, which belong to the run's grid
NO_EFFECT = ("optimization.epochs", "watch", "checkpoint_epochs")  # on the steps before the end

log = logging.getLogger(__name__)


def load_initial_weights(model: IJepa, config: PretrainConfig, path: Path) -> None:
    """Start the networks of a run from a file or folder that `read_networks` reads.

    Where there is one encoder only, both start from it. A predictor that is missing or of another
    size starts from random weights.

    Raises:
        IjepaError: no such weights, or an encoder of another architecture.
    """
    networks = read_networks(path, config.encoder.arch)
    parts = networks.parts
    context, target = parts.get("encoder"), parts.get("target_encoder")
    _load(model.encoder, context or target or {}, f"{path} (encoder)")
    _load(model.target_encoder, target or context or {}, f"{path} (target encoder)")
    try:
        _load(model.predictor, parts["predictor"], f"{path} (predictor)")
    except (KeyError, IjepaError) as error:
        reason = str(error) if isinstance(error, IjepaError) else f"{path} holds none"
        log.warning("The predictor starts from random weights: %s", reason)


def _load(module: nn.Module, weights: Mapping[str, Any], source: str) -> None:
    own = {name: value for name, value in module.state_dict().items() if name in POSITIONS}
    given = {**weights, **own}
    check_weights(module, given, source)
    module.load_state_dict(given)


def take_over(
    finished: Path,
    folder: Path,
    config: PretrainConfig,
    inputs: Mapping[str, str],
    steps_per_epoch: int,
) -> None:
    """Put the newest state of a shorter run that a run of `config` passes through into `folder`.

    From there the longer run takes the very steps that it would take from its beginning.

    Args:
        finished: folder of the shorter run.
        folder: the work folder of the longer one, empty.
        config: of the longer run; equal but for its epochs.
        inputs: fingerprints of its data.
        steps_per_epoch: of both.

    Raises:
        IjepaError: no finished run, other settings or data, or a schedule that depends on the
            number of epochs.
    """
    record = read_record(finished) or {}
    if record.get("stage") != "pretrain":
        raise IjepaError(f"{finished} is no finished run of `ijepa pretrain`; check --prolong.")
    before = PretrainConfig.model_validate(record["config"])
    _refuse_other(finished, config, before)
    if dict(record["inputs"]) != dict(inputs):
        raise IjepaError(f"{finished} was trained on other data; prolong it with the same --data.")
    common = _common_steps(config, before, steps_per_epoch)
    passed = _states(finished, before, steps_per_epoch)
    usable = [(step, path) for step, path in passed if step <= common]
    if not usable:
        raise IjepaError(
            f"{finished} cannot be prolonged: its {_changing(config, before, steps_per_epoch)} "
            f"depends on the number of epochs from step {common + 1:,} on, and its first "
            f"checkpoint is of step {passed[0][0]:,}. Use a held schedule from the start "
            f"(optimization.schedule=hold-then-cool, equal optimization.ema), or start a new run "
            f"from its weights with --init {finished}."
        )
    (folder / "checkpoints").mkdir()
    shutil.copyfile(finished / "metrics.jsonl", folder / "metrics.jsonl")
    if (finished / "tensorboard").is_dir():
        shutil.copytree(finished / "tensorboard", folder / "tensorboard")
    for _, path in usable:
        if path.name != LAST.name:
            link_or_copy(path, folder / "checkpoints" / path.name)
    step, newest = usable[-1]
    link_or_copy(newest, folder / LAST)  # the last, for a run goes on from it
    log.info("%s is prolonged from its state after step %d", finished, step)


def _refuse_other(finished: Path, config: PretrainConfig, before: PretrainConfig) -> None:
    ours, theirs = (dict(_leaves(c.model_dump(mode="json"))) for c in (config, before))
    changed = [
        f"{name} was {theirs.get(name)!r:.40}, now {ours.get(name)!r:.40}"
        for name in ours | theirs
        if ours.get(name) != theirs.get(name) and not name.startswith(NO_EFFECT)
    ]
    if changed:
        raise IjepaError(
            f"{finished} can be prolonged by more epochs only, with its other settings as they "
            f"are: {'; '.join(changed[:3])}."
        )
    if config.optimization.epochs <= before.optimization.epochs:
        raise IjepaError(
            f"{finished} has {before.optimization.epochs} epochs; prolong it to more, with "
            f"--set optimization.epochs=N."
        )


def _leaves(body: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in body.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value)


def _values(config: PretrainConfig, steps_per_epoch: int, step: int) -> dict[str, float]:
    schedules = Schedules(config.optimization, steps_per_epoch)
    return {
        "learning rate": schedules.lr(step),
        "weight decay": schedules.weight_decay(step),
        "EMA momentum": schedules.ema(step),
    }


def _common_steps(config: PretrainConfig, before: PretrainConfig, steps_per_epoch: int) -> int:
    """How many first steps are the same in both."""
    total = before.optimization.epochs * steps_per_epoch
    differing = (
        step
        for step in range(total)
        if _values(config, steps_per_epoch, step) != _values(before, steps_per_epoch, step)
    )
    return next(differing, total)


def _changing(config: PretrainConfig, before: PretrainConfig, steps_per_epoch: int) -> str:
    step = _common_steps(config, before, steps_per_epoch)
    ours, theirs = (_values(c, steps_per_epoch, step) for c in (config, before))
    return " and ".join(name for name in ours if ours[name] != theirs[name])


def _states(finished: Path, config: PretrainConfig, steps_per_epoch: int) -> list[tuple[int, Path]]:
    """Steps done and file of each checkpoint of a finished run, ascending."""
    kept = [
        (int(path.stem.removeprefix("epoch-")) * steps_per_epoch, path)
        for path in (finished / LAST.parent).glob("epoch-[0-9]*.pt")
    ]
    return sorted([*kept, (config.optimization.epochs * steps_per_epoch, finished / LAST)])
