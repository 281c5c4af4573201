"""The entry point: all commands, and the one place where errors become words."""

import atexit
import errno
import importlib
import signal
import sys
import time
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from ijepa.errors import BrokenGroupError, IjepaError, SharedError, StoppedError
from ijepa.text import one_line
from ijepa.version import VERSION
from ijepa.world import current_world
from ijepa_cli.options import COMMANDS, app
from ijepa_cli.show import is_main_process, log_to_stderr, print_json, print_text, stderr

USAGE = 2
RANK_0_SECONDS = 5.0  # enough to import what an error was found with, and to be ended
INTERRUPTED = 130  # Typer's exit code after Ctrl-C
TERMINATED = 143  # a shell's for a process that SIGTERM ended
DISK_FULL = "the disk is full. Free some space and run the same command again to continue."
NO_MEMORY = ("MemoryError", "OutOfMemoryError")  # Python's; torch's, which is not imported here
LESS_MEMORY = "Less is needed with --micro-batch N, --recompute, or a smaller batch_size."


def _say_version(wanted: bool) -> None:
    if wanted:
        print_text(f"ijepa {VERSION}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True,
                     callback=_say_version),
    ] = False,
) -> None:  # fmt: skip
    del version


for _name in COMMANDS:
    importlib.import_module(f"ijepa_cli.commands.{_name.replace('-', '_')}")


def main() -> None:
    """Run the command line: exit code 0 done, 1 failed with one line on stderr, 2 usage."""
    log_to_stderr()
    try:
        is_alone = current_world().size == 1  # torchrun ends the others of a group by SIGTERM
        signal.signal(signal.SIGTERM, _stop if is_alone else signal.SIG_DFL)
        app()
    except IjepaError as error:
        sys.exit(_told(error))
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            _say_stopped("Stopped; finished work is kept.")
            is_sigterm = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            sys.exit(TERMINATED if is_sigterm else INTERRUPTED)
        elif ended.code == USAGE:
            _tell_machines("This command cannot be run as typed; see stderr for the reason.")
        raise
    except Exception as error:
        _end_workers()
        if said := _in_words(error):
            _fail(said)
        _tell_machines(f"{type(error).__name__}: {error}")
        raise  # a mistake of ours: its traceback is what we need to see
    finally:
        # Last to be registered, first to be called: Ctrl-C shows no traceback of Python's end.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)


def _in_words(error: Exception) -> str:
    """What a user can mend; nothing for a mistake of ours."""
    if isinstance(error, OSError) and error.errno is not None:
        reason = DISK_FULL if error.errno == errno.ENOSPC else f"{error.strerror}."
        return f"{error.filename}: {reason}" if error.filename else reason
    if type(error).__name__ in NO_MEMORY:  # torch then goes on about its allocator
        return f"{'. '.join(str(error).split('. ')[:2]) or 'out of memory'}. {LESS_MEMORY}"
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return f"{error.object} is not a UTF-8 name, which a library cannot read. Rename it."
    return ""


def _stop(number: int, _: FrameType | None) -> NoReturn:
    """Let SIGTERM do what Ctrl-C does; a second one, as `timeout` sends, changes nothing."""
    signal.signal(number, signal.SIG_IGN)  # by which `main` knows, too
    raise KeyboardInterrupt


def _say_stopped(what: object) -> None:
    forced = " without --force" if "--force" in sys.argv else ""
    _say(f"{what} To continue, run the same command{forced}.")


def _told(error: IjepaError) -> int:
    """Tell the user, and say by which code to exit."""
    if isinstance(error, StoppedError):
        if is_main_process():  # all stop at the same step
            _say_stopped(error)
        return INTERRUPTED if error.signal_name == "SIGINT" else TERMINATED
    if isinstance(error, BrokenGroupError):
        _leave_it_to_rank_0()
        _say(str(error))
    elif not isinstance(error, SharedError):  # of that, rank 0 tells
        _fail(str(error))
    return 1


def _end_workers() -> None:
    """Python waits for its children, and those of a training leave SIGTERM to their parent."""
    started = sys.modules.get("multiprocessing")
    for child in started.active_children() if started else ():
        child.kill()


def _fail(message: str) -> NoReturn:
    _leave_it_to_rank_0()
    line = Text.assemble(("error:", "bold red"), " ", one_line(message))
    stderr.print(line, highlight=False, soft_wrap=True)
    _tell_machines(message)
    sys.exit(1)


def _say(message: str) -> None:
    stderr.print(one_line(message), soft_wrap=True)
    _tell_machines(message)


def _leave_it_to_rank_0() -> None:
    """Let rank 0 tell what all processes find alike, then speak if this one alone found it.

    Once a process has ended, torchrun ends the others of its machine: who is still here was not
    spoken for. On machines that rank 0 is not on, the first process speaks for the others.
    """
    if not is_main_process():
        world = current_world()
        time.sleep(RANK_0_SECONDS * ((world.local_rank > 0) + (world.local_rank != world.rank)))


def _tell_machines(message: str) -> None:
    """With --json, something that went wrong is an object, too."""
    if "--json" in sys.argv:
        print_json({"error": one_line(message)})
