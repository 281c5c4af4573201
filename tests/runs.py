"""How tests run, stop and change training."""

import os

from ijepa.config import Runtime
from ijepa.files import read_metrics
from ijepa.recipes import apply_override

CPU = Runtime(device="cpu", workers=0)
EAGER = Runtime(device="cpu", workers=0, checkpoint_seconds=1e-9)  # a checkpoint at every chance


class StopError(Exception):
    """Raised by a progress callback, to stop a run in the middle."""


def stop_at(least, task):
    """A progress callback that raises once so many units of a task are done."""

    def progress(told, done, *_):
        if told.startswith(task) and done >= least:
            raise StopError

    return progress


def ask_at(number, done_units, task=""):
    """A progress callback that sends this process a signal when so many units are done."""

    def progress(told, done, *_):
        if told.startswith(task) and done == done_units:
            os.kill(os.getpid(), number)

    return progress


def start_as(monkeypatch, rank, size, local_size=1):
    """Set the variables by which torchrun tells a process its rank."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": local_size}
    for name, value in (told | {"MASTER_ADDR": "localhost", "MASTER_PORT": 1}).items():
        monkeypatch.setenv(name, str(value))


def changed(config, *overrides):
    """The same settings but for `a.b=c` overrides."""
    body = config.model_dump()
    for override in overrides:
        apply_override(body, override)
    return type(config).model_validate(body)


def losses(run):
    return [r["loss"] for r in read_metrics(run / "metrics.jsonl") if "loss" in r]


def metrics_of(run):
    return (run / "metrics.jsonl").read_bytes()
