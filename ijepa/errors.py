"""The one error that a user sees."""


class IjepaError(Exception):
    """What was found, what was expected and how to mend it, in one line.

    The command line prints it and exits with 1; `assert` is for our own mistakes.
    """
