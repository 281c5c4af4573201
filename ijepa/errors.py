"""The errors that a user sees."""

import importlib
from typing import Any


class IjepaError(Exception):
    """What is wrong and how to mend it, in one line.

    The command line prints it and exits with 1; `assert` is for our own mistakes.
    """


class SharedError(IjepaError):
    """A failure that another process tells the user about: this one ends in silence."""


class BrokenGroupError(SharedError):
    """Another process ended in the middle of the work, with a message of its own or killed."""

    def __str__(self) -> str:
        return "Another process ended; its message, if it was not killed, says why."


class StoppedError(IjepaError):
    """Asked to stop from outside, after saving: not a failure."""

    def __init__(self, message: str, signal_name: str = "") -> None:
        super().__init__(message)
        self.signal_name = signal_name  # such as `SIGTERM`; empty where another process was asked


def optional(package: str, what: str, install: str = "") -> Any:  # noqa: ANN401  # a module
    """Import a package that ijepa does not install; an `IjepaError` says how, and what needs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        names = install or package
        raise IjepaError(f"{what} needs {names}; install it with pip install {names}.") from error
