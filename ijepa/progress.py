"""How the library tells whoever called it how far a long piece of work has come."""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Called now and then by a stage; the command line draws it, a script may ignore it."""

    def __call__(
        self, task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
    ) -> None:
        """Report one task.

        Args:
            task: what is being done, such as `pretrain`; also names the unit: `extract images`.
            done: how much of it is finished, counted from 0; less than before where the task
                begins again.
            total: how much there is; None while unknown.
            values: numbers worth showing beside the bar, such as `{"loss": 0.14}`.
        """


def silent(
    task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
) -> None:
    """Show nothing."""
