"""What a list of `ijepa` commands would do, one after the other, found out without doing it.

Every command is started, and ends where it would begin to work: so nothing here has to know what
its output depends on.
"""

import contextlib
import io
import logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

from ijepa.config import Config
from ijepa.errors import IjepaError
from ijepa.foresight import Foreseen, State, only_foreseen

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # of the click that typer carries


# Options by which a command does something else than to make its output here.
ELSEWHERE = ("launcher", "dry_run", "compare", "check")


class Command(NamedTuple):
    """One line, parsed: arguments as typed, the stage, and its options with their defaults."""

    arguments: list[str]
    stage: str
    options: dict[str, Any]


class Step(Config):
    """One stage of the plan.

    Attributes:
        stage: such as `probe`.
        out: what it makes.
        state: of that, now.
        why: it would run, or cannot.
        command: as typed.
    """

    stage: str
    out: str
    state: State
    why: str
    command: str


def read_commands(lines: Iterable[str], group: TyperGroup) -> Iterator[Command]:
    """The commands of `ijepa` among lines such as `make --dry-run` prints, in their order.

    Commands that make nothing, such as `ijepa recipes`, are passed over.

    Raises:
        IjepaError: a command that does not parse, or that would not run here and now.
    """
    for line in _joined(lines):
        arguments = _arguments(line)
        command = _parse(arguments, group) if arguments else None
        if command:
            yield command


def foresee(commands: Iterable[Command], group: TyperGroup) -> Iterator[tuple[Command, Step]]:
    """Each command with what it would do.

    A command waits if an input of it is to be made by one before it; whether it would find its
    output fresh afterwards nobody can know yet.
    """
    to_come: list[str] = []
    for command in commands:
        out = str(command.options["out"])
        awaited = [path for path in to_come if _names(command.options, path)]
        if awaited:
            state, why = State.WAITS, f"for {awaited[0]}"
        else:
            state, why = _state(command, group)
        if state is not State.CACHED:
            to_come.append(out)
        yield (
            command,
            Step(
                stage=command.stage,
                out=out,
                state=state,
                why=why,
                command=shlex.join(["ijepa", *command.arguments]),
            ),
        )


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """Lines that end in a backslash go on."""
    whole = ""
    for line in lines:
        whole += line.rstrip("\n")
        if whole.endswith("\\"):
            whole = whole[:-1] + " "
        else:
            yield whole
            whole = ""
    if whole:
        yield whole


def _arguments(line: str) -> list[str]:
    """What follows `ijepa` or `-m ijepa_cli`; nothing for other lines."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise IjepaError(f"This line is no command ({error}): {line}") from error
    for place, word in enumerate(words):
        if Path(word).name == "ijepa" or (word == "ijepa_cli" and words[place - 1] == "-m"):
            return words[place + 1 :]
    return []


def _parse(arguments: list[str], group: TyperGroup) -> Command | None:
    line = shlex.join(["ijepa", *arguments])
    try:
        stage, options = _resolved(arguments, group)
    except typer.Exit:  # after --help
        return None
    except UsageError as error:
        raise IjepaError(
            f"This is no single command of ijepa ({error}): {line}. Of a shell's language, quotes, "
            f"comments and a backslash at the end of a line are understood."
        ) from error
    for name in ELSEWHERE:
        if options.get(name) not in (None, False, "here"):
            raise IjepaError(
                f"Leave --{name.replace('_', '-')} out of what is to be planned: {line}"
            )
    return Command(arguments, stage, options) if options.get("out") else None


def _resolved(arguments: list[str], group: TyperGroup) -> tuple[str, dict[str, Any]]:
    """Name and options of the command itself: `visualize pca` is a command of a command."""
    name, command, rest = group.resolve_command(typer.Context(group), arguments)
    assert name is not None  # else a UsageError
    assert command is not None
    if isinstance(command, TyperGroup):
        below, options = _resolved(rest, command)
        return f"{name} {below}", options
    return name, dict(command.make_context(name, rest).params)


def _names(options: dict[str, Any], path: str) -> bool:
    """Is a path, or something in it, among a command's options, its output apart?"""
    texts = (text for name, option in options.items() if name != "out" for text in _texts(option))
    whole = os.path.abspath(path)  # noqa: PTH100  # links stay what they are called
    parts = (part for text in texts for part in _suffixes(text))
    named = (os.path.abspath(part) for part in parts)  # noqa: PTH100  # as above
    return any(text == whole or text.startswith(f"{whole}/") for text in named)


def _suffixes(text: str) -> list[str]:
    """A text, and what follows each mark in it: a path in `random:RUN`, `NAME@FILE`, `1=RESULT`."""
    return [text] + [text[mark.end() :] for mark in re.finditer("[:=@]", text)]


def _texts(option: object) -> list[str]:
    if isinstance(option, list | tuple):
        return [text for part in option for text in _texts(part)]
    return [str(option)] if isinstance(option, str | Path) else []


def _state(command: Command, group: TyperGroup) -> tuple[State, str]:
    found: list[Foreseen] = []
    try:
        with _silence(), only_foreseen() as found:
            group.main(command.arguments, standalone_mode=False)
    except IjepaError as error:
        return State.REFUSED, " ".join(str(error).split())
    if not found:
        return State.REFUSED, "it would end without an output"
    return found[-1].state, found[-1].why


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What commands print and warn of is for when they run."""
    nothing = io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            yield
    finally:
        logging.disable(logging.NOTSET)
