"""The errors that a user sees."""


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
