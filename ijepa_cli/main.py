"""The Typer app: commands in pipeline order, and the one place where errors become words."""

import errno
import importlib
import sys
from typing import NoReturn

import typer
from typer.core import TyperGroup

from ijepa.errors import IjepaError, SharedError, StoppedError
from ijepa_cli.console import is_spokesman, log_to_stderr, stderr

INTERRUPTED = 130  # Typer's exit code after Ctrl-C
TERMINATED = 143  # a shell's for a process that SIGTERM ended
COMMANDS = (
    "shard", "pretrain", "extract", "features", "probe", "finetune", "train-decoder", "visualize",
    "report", "plan", "recipes", "encoders", "convert",
)  # fmt: skip


class _PipelineOrder(TyperGroup):
    """Typer lists commands that have commands of their own last."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # click's
        del ctx
        return list(COMMANDS)


app = typer.Typer(
    name="ijepa",
    cls=_PipelineOrder,
    help="Pretrain, evaluate and look into I-JEPA: shard, pretrain, extract, probe, report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name in COMMANDS:
    importlib.import_module(f"ijepa_cli.commands.{_name.replace('-', '_')}").register(app)


def main() -> None:
    """Run the command line: exit code 0 done, 1 failed with one line on stderr, 2 usage."""
    log_to_stderr()
    try:
        app()
    except SharedError:
        sys.exit(1)  # another process says why
    except StoppedError as stop:
        stderr.print(f"{stop} The same command, without --force, goes on from here.")
        sys.exit(INTERRUPTED if stop.signal_name == "SIGINT" else TERMINATED)
    except IjepaError as error:
        _fail(str(error))
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            stderr.print("Stopped. The same command, without --force, goes on from what it kept.")
        raise
    except Exception as error:
        _end_workers()
        if isinstance(error, OSError) and error.errno is not None:
            _fail(_system_message(error))
        raise  # a mistake of ours: its traceback is what we need to see


def _end_workers() -> None:
    """Python waits for its children, and those of a training leave SIGTERM to their parent."""
    started = sys.modules.get("multiprocessing")
    for child in started.active_children() if started else ():
        child.kill()


def _system_message(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}the disk is full. Free some space; the same command goes on from here."
    return f"{where}{error.strerror}."


def _fail(message: str) -> NoReturn:
    if not _is_told_by_another():
        stderr.print(f"[bold red]error:[/] {_plain(message)}", highlight=False, soft_wrap=True)
    sys.exit(1)


def _is_told_by_another() -> bool:
    """What the processes of torchrun find before they are joined, all find; rank 0 tells it."""
    if is_spokesman():
        return False
    distributed = sys.modules.get("torch.distributed")
    return distributed is None or not distributed.is_initialized()


def _plain(message: str) -> str:
    """One line, and no brackets that rich would read as markup."""
    return " ".join(message.split()).replace("[", "\\[")
