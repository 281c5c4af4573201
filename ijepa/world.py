"""One process alone, or one of many that torchrun started; without torch where it is alone."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from ijepa.errors import IjepaError
from ijepa.stage import Work

# Clusters set some of these for every job; only all together make this one process of many.
SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class World(NamedTuple):
    """This process among all.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number on this machine.
        local_size: how many are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_rank_0(self) -> bool:
        """Is this rank 0, which writes files and prints?"""
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
    try:
        world = World(*(int(value) for value in said.values()))
    except ValueError:
        world = None
    if world is None or not (0 <= world.rank < world.size and 0 <= world.local_rank < world.size):
        shown = ", ".join(f"{name}={value}" for name, value in said.items())
        raise IjepaError(
            f"The environment says {shown}: expected whole numbers, RANK from 0 and below "
            f"WORLD_SIZE. Start several processes by torchrun, or unset RANK for one alone."
        )
    return world


def is_one_of_many() -> bool:
    """Did torchrun start several processes, of which this is one?"""
    return current_world().size > 1


@contextlib.contextmanager
def together(
    work: contextlib.AbstractContextManager[Work], device: str
) -> Iterator[tuple[Work, World]]:
    """Hold an output once for all processes: rank 0 enters `work`, every rank gets what it yields.

    One process alone imports no torch here, so that a cached answer is quick.

    Args:
        work: such as `exclusive_work(plan)`.
        device: where the processes compute, as `pick_device` takes it.

    Raises:
        IjepaError: what `work` raises; on one rank as it is, on the others in silence.
    """
    if not is_one_of_many():
        with work as held:
            yield held, World()
        return
    from ijepa.distributed import from_rank_0, joined, pick_device, wait_for_all

    with joined(pick_device(device)) as world, contextlib.ExitStack() as stack:
        yield from_rank_0(world, lambda: stack.enter_context(work)), world
        wait_for_all(world)
