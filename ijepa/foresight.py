"""What a stage would do, found out by starting it: it runs up to its plan, and no further."""

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from ijepa.stage import (
    StagePlan,
    changes,
    foreseen,
    is_fresh,
    partial_work,
    read_record,
)


class State(StrEnum):
    """Of an output, before its stage runs."""

    CACHED = "cached"
    NEW = "new"
    PARTIAL = "goes on"
    CHANGED = "changed"
    WAITS = "waits"  # for an input that is not there yet, or will be made anew
    REFUSED = "refused"


class Foreseen(NamedTuple):
    """One output.

    Attributes:
        plan: of the stage that makes it.
        why: it is to be made; empty for what is cached or new.
    """

    plan: StagePlan
    state: State
    why: str


class WouldRun(Exception):  # noqa: N818  (no error: it ends a stage that would begin to work)
    """Raised out of a stage in the place of work."""


@contextlib.contextmanager
def only_foreseen() -> Iterator[list[Foreseen]]:
    """Let stages that are called inside say what they would do, and do nothing.

    Yields:
        What was found, in order; a stage that would work ends with `WouldRun` (which is caught
        here), one whose outputs are all there returns as always.
    """
    found: list[Foreseen] = []

    def tell(plan: StagePlan, force: bool) -> None:
        found.append(_foresee(plan, force))
        if found[-1].state is not State.CACHED:
            raise WouldRun(plan.out)

    token = foreseen.set(tell)
    try:
        with contextlib.suppress(WouldRun):
            yield found
    finally:
        foreseen.reset(token)


def _foresee(plan: StagePlan, force: bool) -> Foreseen:
    if force:
        return Foreseen(plan, State.CHANGED, "--force")
    if is_fresh(plan):
        return Foreseen(plan, State.CACHED, "")
    begun = partial_work(plan.out)
    if begun is not None and begun.get("fingerprint") == plan.fingerprint:
        return Foreseen(plan, State.PARTIAL, "begun before")
    record = read_record(plan.out)
    if record is None:
        return Foreseen(plan, State.NEW, "")
    why = changes(plan, record) or "a file of it was changed or removed"
    return Foreseen(plan, State.CHANGED, why)
