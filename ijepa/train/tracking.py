"""A run's numbers in an experiment tracker too; on this machine unless the tracker is told else."""

import importlib.util
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ijepa.config import flat
from ijepa.errors import IjepaError
from ijepa.stage import TRACKING

PROJECT = "ijepa"

Log = Callable[[Mapping[str, float], int], object]
Opened = tuple[Log, Callable[[], object]]  # log numbers of a step; end

log = logging.getLogger(__name__)


def refuse_missing(kind: str) -> None:
    """Raise an `IjepaError` if the tracker's package is not installed."""
    if kind != "none" and importlib.util.find_spec(kind) is None:
        raise IjepaError(f"--track {kind} needs {kind}; install it with pip install {kind}.")


class Tracker:
    """Hands numbers to a tracker; its first failure is a warning, and the last that it is asked.

    A run that goes on continues the tracked run that it began.
    """

    def __init__(self, kind: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Begin or continue the tracked run of a run's `folder`; `config` are its settings."""
        self._kind = kind
        place, name = folder / TRACKING, folder.name.removesuffix(".partial")
        place.mkdir(exist_ok=True)
        key = place / "key"
        if not key.exists():
            key.write_text(uuid.uuid4().hex)
        self._opened: Opened | None = None
        self._try(lambda: self._open(OPENERS[kind](place, name, key.read_text(), config)))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Hand over numbers that belong to a step."""
        if self._opened:
            self._try(self._opened[0], numbers, step)

    def close(self) -> None:
        """End the tracked run, or this part of it."""
        if self._opened:
            self._try(self._opened[1])
        self._opened = None

    def _open(self, opened: Opened) -> None:
        self._opened = opened

    def _try(self, work: Callable[..., object], *given: object) -> None:
        try:
            work(*given)
        except Exception as error:  # noqa: BLE001  # training goes on whatever a tracker raises
            self._opened = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            log.warning(
                "%s failed and is left out from here (%s); metrics.jsonl has every number.",
                self._kind,
                reason,
            )


def _wandb(place: Path, name: str, key: str, config: Mapping[str, Any]) -> Opened:
    """Offline, unless WANDB_MODE says otherwise."""
    import wandb

    run = wandb.init(
        project=PROJECT,
        name=name,
        id=key,
        resume="allow",
        dir=place,
        mode=os.environ.get("WANDB_MODE") or "offline",  # type: ignore[arg-type]  # wandb checks it
        config=dict(config),
        settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
    )
    run.define_metric("*", step_metric="step")  # one that goes on takes some steps again
    return lambda numbers, step: run.log({"step": step, **numbers}), run.finish


def _trackio(place: Path, name: str, key: str, config: Mapping[str, Any]) -> Opened:
    """In files beside the run, unless TRACKIO_DIR or TRACKIO_SPACE_ID says otherwise."""
    os.environ.setdefault("TRACKIO_DIR", str(place / "trackio"))  # read when it is imported
    import trackio

    trackio.init(project=PROJECT, name=f"{name}-{key[:8]}", config=dict(config), resume="allow")
    return lambda numbers, step: trackio.log(dict(numbers), step=step), trackio.finish


def _mlflow(place: Path, name: str, key: str, config: Mapping[str, Any]) -> Opened:
    """In a file store beside the run, unless MLFLOW_TRACKING_URI says otherwise."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it takes databases alone
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    uri = os.environ.get("MLFLOW_TRACKING_URI") or (place / "mlruns").absolute().as_uri()
    client = MlflowClient(tracking_uri=uri)
    known = client.get_experiment_by_name(PROJECT)
    experiment = known.experiment_id if known else client.create_experiment(PROJECT)
    begun = client.search_runs([experiment], filter_string=f"tags.ijepa_key = '{key}'")
    if begun:
        number = begun[0].info.run_id
    else:
        number = client.create_run(experiment, run_name=name, tags={"ijepa_key": key}).info.run_id
        values = {one: json.dumps(value)[:500] for one, value in flat(config).items()}
        client.log_batch(number, params=[Param(one, value) for one, value in values.items()])

    def log_numbers(numbers: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [Metric(one, value, now, step) for one, value in numbers.items()]
        client.log_batch(number, metrics=metrics)

    return log_numbers, lambda: client.set_terminated(number)


OPENERS: dict[str, Callable[[Path, str, str, Mapping[str, Any]], Opened]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}
