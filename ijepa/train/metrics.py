"""A run's numbers: `metrics.jsonl`, exact and reproducible; TensorBoard and a tracker beside it."""

import importlib.util
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from ijepa.config import flat
from ijepa.errors import IjepaError
from ijepa.stage import TRACKING

PROJECT = "ijepa"  # in trackers

Picture = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]  # (height, width, 3)
# What opening a tracker returns: a function that logs numbers of a step, one that ends the run.
TrackerCalls = tuple[Callable[[Mapping[str, float], int], object], Callable[[], object]]

log = logging.getLogger(__name__)


class MetricsLog:
    """Append-only records; a resumed run cuts off those after its checkpoint.

    `metrics.jsonl` holds nothing that depends on the clock, so that a resumed run writes the same
    bytes as one that was never stopped. Speed goes to TensorBoard and `tracker` alone: these get
    the newest values every few steps, because a scalar costs as much time as a small step.
    """

    def __init__(
        self, folder: Path, length_bytes: int, step: int, tracker: "Tracker | None" = None
    ) -> None:
        """Open the log in `folder` as it was at `length_bytes`, after `step` steps."""
        path = folder / "metrics.jsonl"
        path.touch()
        if path.stat().st_size < length_bytes:
            raise IjepaError(
                f"{path} is shorter than its checkpoint says; start afresh with --force."
            )
        self._file = path.open("r+b")
        self._file.truncate(length_bytes)
        self._file.seek(length_bytes)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._newest: dict[str, tuple[float, int]] = {}  # value and step, not yet on the board
        self._tracker = tracker

    def append(self, record: Mapping[str, float]) -> None:
        """Write one step's record; its `step` counts the steps done."""
        self._file.write((json.dumps(record) + "\n").encode())
        step = int(record["step"])
        self._newest |= {name: (value, step) for name, value in record.items() if name != "step"}

    def show(self, step: int, speed: Mapping[str, float]) -> None:
        """Put the newest value of each number on the board, and the speed at this step."""
        self._newest |= {name: (value, step) for name, value in speed.items()}
        self._show_newest()

    def _show_newest(self) -> None:
        by_step: dict[int, dict[str, float]] = {}
        for name, (value, at_step) in self._newest.items():
            self._board.add_scalar(name, value, at_step)
            by_step.setdefault(at_step, {})[name] = value
        if self._tracker:
            for at_step in sorted(by_step):
                self._tracker.log(by_step[at_step], at_step)
        self._newest = {}

    def show_pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Put pictures on the board, by name."""
        for name, pixels in pictures.items():
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def flush(self) -> int:
        """Put everything on disk; returns the length to give to a resumed run's log."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._show_newest()
        self._board.flush()
        return self._file.tell()

    def close(self) -> None:
        """Flush and close; the tracked run ends, too."""
        self.flush()
        self._file.close()
        self._board.close()
        if self._tracker:
            self._tracker.close()


def refuse_missing(kind: str) -> None:
    """Raise an `IjepaError` if the tracker's package is not installed."""
    if kind != "none" and importlib.util.find_spec(kind) is None:
        raise IjepaError(f"--track {kind} needs {kind}; install it with pip install {kind}.")


class Tracker:
    """An experiment tracker, on this machine unless the tracker's own variables say otherwise.

    At its first failure it warns, and is never called again. A resumed run continues its tracked
    run.
    """

    def __init__(self, kind: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Begin or continue the tracked run of a run's `folder`; `config` are its settings."""
        place, name = folder / TRACKING, folder.name.removesuffix(".partial")
        place.mkdir(exist_ok=True)
        key = place / "key"
        if not key.exists():
            key.write_text(uuid.uuid4().hex)
        self._kind, self._works = kind, True
        self._calls: TrackerCalls = self._try(OPENERS[kind], place, name, key.read_text(), config)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Hand over numbers that belong to a step."""
        if self._works:
            self._try(self._calls[0], numbers, step)

    def close(self) -> None:
        """End the tracked run, or this part of it."""
        if self._works:
            self._try(self._calls[1])

    def _try(self, work: Callable[..., Any], *given: object) -> Any:  # noqa: ANN401  # whatever it returns
        try:
            return work(*given)
        except Exception as error:  # noqa: BLE001  # training goes on whatever a tracker raises
            self._works = False
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            log.warning(
                "%s failed and is left out from here (%s); metrics.jsonl has every number.",
                self._kind,
                reason,
            )


def _wandb(place: Path, name: str, key: str, config: Mapping[str, Any]) -> TrackerCalls:
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
    run.define_metric("*", step_metric="step")  # a resumed run logs some steps again
    return lambda numbers, step: run.log({"step": step, **numbers}), run.finish


def _trackio(place: Path, name: str, key: str, config: Mapping[str, Any]) -> TrackerCalls:
    """In files beside the run, unless TRACKIO_DIR or TRACKIO_SPACE_ID says otherwise."""
    os.environ.setdefault("TRACKIO_DIR", str(place / "trackio"))  # read when it is imported
    import trackio

    trackio.init(project=PROJECT, name=f"{name}-{key[:8]}", config=dict(config), resume="allow")
    return lambda numbers, step: trackio.log(dict(numbers), step=step), trackio.finish


def _mlflow(place: Path, name: str, key: str, config: Mapping[str, Any]) -> TrackerCalls:
    """In a file store beside the run, unless MLFLOW_TRACKING_URI says otherwise."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it takes databases alone
    from mlflow import MlflowClient, entities

    uri = os.environ.get("MLFLOW_TRACKING_URI") or (place / "mlruns").absolute().as_uri()
    client = MlflowClient(tracking_uri=uri)
    known = client.get_experiment_by_name(PROJECT)
    experiment = known.experiment_id if known else client.create_experiment(PROJECT)
    begun = client.search_runs([experiment], filter_string=f"tags.ijepa_key = '{key}'")
    if begun:
        number = begun[0].info.run_id
    else:
        number = client.create_run(experiment, run_name=name, tags={"ijepa_key": key}).info.run_id
        params = [
            entities.Param(key, json.dumps(value)[:500]) for key, value in flat(config).items()
        ]
        client.log_batch(number, params=params)

    def log_numbers(numbers: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [entities.Metric(key, value, now, step) for key, value in numbers.items()]
        client.log_batch(number, metrics=metrics)

    return log_numbers, lambda: client.set_terminated(number)


OPENERS: dict[str, Callable[[Path, str, str, Mapping[str, Any]], TrackerCalls]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}
