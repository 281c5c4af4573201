"""How the library tells whoever called it how far a long piece of work has come."""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Called now and then by a stage; the command line draws it, a script may ignore it."""

    def __call__(
        self, task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
    ) -> None:
        """Report how far a task has come, such as `extract images`, whose last word is the unit.

        `done` of `total` (None while unknown) is finished; less than before where the task begins
        again. `values` are numbers worth showing beside the bar, such as `{"loss": 0.14}`.
        """


def silent(
    task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
) -> None:
    """Show nothing."""
