"""`ijepa plan`."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table
from typer.core import TyperGroup

from ijepa.config import Config
from ijepa.errors import IjepaError
from ijepa.foresight import State
from ijepa_cli.console import Json, print_json, print_text, show
from ijepa_cli.foresee import Step, foresee, read_commands

Commands = Annotated[
    str, typer.Argument(help="A file of commands, one a line, or - for those that come in.")
]
DeviceName = Annotated[
    str, typer.Option("--device", help="Whose speed to plan with; a YAML file for one of yours.")
]
Devices = Annotated[int, typer.Option(help="How many of them share a training.", min=1)]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Only print what is there already, a path a line.")
]


NOTHING = "There are no commands of ijepa here; make --dry-run prints some."


class PlannedStep(Step):
    """A step and what it would cost; None where that is unknown."""

    hours: float | None
    disk_gb: float | None
    memory_gb: float | None


class Plan(Config):
    """All steps in order, and what those to come cost together, one after the other.

    Attributes:
        measured: is the device's speed measured, or assumed?
        speed: who measured it.
        unknown: steps to come whose hours are unknown and not in the sum.
    """

    device: str
    devices: int
    measured: bool
    speed: str
    steps: tuple[PlannedStep, ...]
    cached: int
    to_come: int
    hours: float
    disk_gb: float
    memory_gb: float
    unknown: int


def plan(
    commands: Commands = "-",
    device: DeviceName = "epyc-2-cores",
    devices: Devices = 1,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Say what a list of commands would do: what is cached, what would run, why, at what cost.

    Commands come from anywhere, such as `make --dry-run`; `make plan` is the plan of all tables.

    Example: ijepa plan commands.sh --device a100 --devices 16
    """
    lines = sys.stdin if commands == "-" else _file(commands)
    if fresh:
        steps = _steps(lines)
        _refuse_what_cannot_run(steps)
        there = [step.out for step in steps if step.state is State.CACHED]
        if as_json:
            print_json({"fresh": there})
        else:
            print_text("".join(f"{out}\n" for out in there))
        return
    found = _planned(lines, device, devices)
    show(found, as_json, None if as_json else _table(found))
    if not as_json:
        print_text(_sentence(found) + "\n")


def _refuse_what_cannot_run(steps: list[Step]) -> None:
    """Better now than after hours of work on what stands before it."""
    refused = [step for step in steps if step.state is State.REFUSED]
    if refused:
        more = f" ({len(refused) - 1} more are refused)" if len(refused) > 1 else ""
        raise IjepaError(f"{refused[0].command} is refused{more}: {refused[0].why}")
    if not steps:
        raise IjepaError(NOTHING)


def _file(path: str) -> list[str]:
    if not Path(path).is_file():
        raise IjepaError(
            f"There is no file {path}; give a file of commands, or - and pipe them in."
        )
    try:
        return Path(path).read_text().splitlines()
    except UnicodeDecodeError as error:
        raise IjepaError(f"{path} is not UTF-8 text ({error.reason}).") from error


def _steps(lines: Iterable[str]) -> list[Step]:
    group = _group()
    return [step for _, step in foresee(read_commands(lines, group), group)]


def _group() -> TyperGroup:
    """All commands, made once."""
    from ijepa_cli.main import app

    return typer.main.get_group(app)


def _planned(lines: Iterable[str], name: str, devices: int) -> Plan:
    from ijepa.forecast.cost import Cost, Forecaster
    from ijepa.forecast.devices import find_device

    device = find_device(name)
    forecaster = Forecaster(device, devices)
    steps = []
    group = _group()
    for command, step in foresee(read_commands(lines, group), group):
        cost = forecaster.cost(command.stage, command.options)
        if step.state is State.REFUSED:
            cost = Cost()
        hours = None if cost.seconds is None else cost.seconds / 3600
        steps.append(
            PlannedStep(
                **step.model_dump(), hours=hours, disk_gb=cost.disk_gb, memory_gb=cost.memory_gb
            )
        )
    if not steps:
        raise IjepaError(NOTHING)
    to_come = [step for step in steps if step.state is not State.CACHED]
    return Plan(
        device=name,
        devices=devices,
        measured=device.measured,
        speed=device.source,
        steps=tuple(steps),
        cached=len(steps) - len(to_come),
        to_come=len(to_come),
        hours=sum(step.hours or 0.0 for step in to_come),
        disk_gb=sum(step.disk_gb or 0.0 for step in to_come),
        memory_gb=max((step.memory_gb or 0.0 for step in to_come), default=0.0),
        unknown=sum(step.hours is None for step in to_come),
    )


def _table(found: Plan) -> Table:
    rows = Table(box=SIMPLE, pad_edge=False)
    for name in ("stage", "output", "state"):
        rows.add_column(name, overflow="fold")
    for name in ("time", "disk", "memory"):
        rows.add_column(name, justify="right", no_wrap=True)
    for step in found.steps:
        costs = (_time(step.hours), _size(step.disk_gb), _size(step.memory_gb))
        rows.add_row(step.stage, step.out, _state(step), *costs)
    return rows


def _state(step: Step) -> str:
    if step.state is State.WAITS:
        return f"waits {step.why}"
    return f"{step.state}: {step.why}" if step.why else str(step.state)


def _sentence(found: Plan) -> str:
    refused = sum(step.state is State.REFUSED for step in found.steps)
    said = f"{len(found.steps)} stages: {found.cached} cached, {found.to_come} to come"
    said += f", {refused} of them refused" if refused else ""
    if not found.to_come:
        return f"{said}."
    many = f"{found.devices} x {found.device}" if found.devices > 1 else found.device
    said += (
        f"; on {many} one after the other {_time(found.hours)}; as far as known, at least "
        f"{_size(found.disk_gb)} of disk, {_size(found.memory_gb)} of memory a device"
    )
    unknown = f"; {found.unknown} of unknown cost not counted" if found.unknown else ""
    if any(step.stage == "shard" and step.hours is None for step in found.steps):
        unknown += " (known once the data are sharded)"
    kind = "Speed measured" if found.measured else "Speed not measured"
    return f"{said}{unknown}.\n{kind}: {found.speed}."


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min"


def _size(gigabytes: float | None) -> str:
    if gigabytes is None:
        return "?"
    return f"{gigabytes:,.1f} GB" if gigabytes >= 1 else f"{gigabytes * 1000:,.0f} MB"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(plan)
