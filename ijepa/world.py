"""One process alone, or one of many that torchrun started; without torch where it is alone."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from ijepa.config import Runtime
from ijepa.errors import IjepaError
from ijepa.stage import Work

# Clusters set some of these for every job; only all together make this one process of many.
SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class World(NamedTuple):
    """This process among all, and among those on its machine; ranks count from 0."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_rank_0(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """Places of a batch that are this process's."""
        size = batch_size // self.size
        return slice(self.rank * size, (self.rank + 1) * size)


def current_world() -> World:
    """What torchrun, or whatever sets all of its variables, says this process is; else alone.

    Raises:
        IjepaError: all are set, but not to numbers that fit together.
    """
    if not all(os.environ.get(name) for name in SET_BY_TORCHRUN):
        return World()
    names = (*SET_BY_TORCHRUN[:3], "LOCAL_WORLD_SIZE")
    said = {name: os.environ.get(name) or "1" for name in names}
    with contextlib.suppress(ValueError):
        world = World(*(int(value) for value in said.values()))
        if 0 <= world.rank < world.size and 0 <= world.local_rank < world.size:
            return world
    shown = ", ".join(f"{name}={value}" for name, value in said.items())
    raise IjepaError(
        f"The environment says {shown}: expected whole numbers, RANK from 0 and below "
        f"WORLD_SIZE. Start several processes by torchrun, or unset RANK for one alone."
    )


@contextlib.contextmanager
def together(
    work: contextlib.AbstractContextManager[Work], runtime: Runtime
) -> Iterator[tuple[Work, World]]:
    """Hold an output once for all processes: rank 0 enters `work`, every rank gets what it yields.

    What `work` raises, rank 0 raises as it is, the others as a `SharedError`; in a dry run, which
    writes nothing, each enters it alone. One process alone imports no torch here, so that a cached
    answer is quick.
    """
    if current_world().size == 1 or runtime.dry_run:
        with work as held:
            yield held, World()
        return
    from ijepa.distributed import from_rank_0, joined, pick_device, wait_for_all

    with joined(pick_device(runtime.device)) as world, contextlib.ExitStack() as stack:
        yield from_rank_0(world, lambda: stack.enter_context(work)), world
        wait_for_all(world)
