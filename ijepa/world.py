"""Processes: one alone or one of many that torchrun started, its helpers, and what stops them.

Imports no torch where one is alone.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from types import FrameType
from typing import NamedTuple

from ijepa.config import Runtime
from ijepa.errors import IjepaError
from ijepa.stage import Work

# Clusters set some of these for every job; only all together make this one process of many.
SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
HELD_BACK = {signal.SIGINT, signal.SIGTERM}
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


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
    """What torchrun, or whatever sets all of its variables, says this process is; else alone."""
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


def processes() -> BaseContext:
    """How helper processes start: forked on Linux, so that a script needs no `if __name__ == ...`.

    They hold the lock of the output that they help to make until they end.
    """
    return multiprocessing.get_context("fork" if sys.platform == "linux" else None)


@contextlib.contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that help this one; none is left when the block ends, whatever they are at.

    While they start, Ctrl-C waits: one that it stopped would leave its parent waiting for it. An
    `IjepaError` says so if one is killed.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, processes(), initializer=_end_with_parent)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        for _ in range(workers):
            pool.submit(int)  # where processes are forked, the first call starts all
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise IjepaError(
            "A helping process was killed, most likely for want of memory; the same command goes "
            "on from here, and with --workers 1 needs the least."
        ) from error
    finally:
        # The pool forgets what is waiting first: else it would answer it for the killed processes.
        pool.shutdown(wait=False, cancel_futures=True)
        helpers = set(multiprocessing.active_children()) - others
        for process in helpers:
            process.kill()  # what they are at would take long
        for process in helpers:
            process.join()


def _end_with_parent() -> None:
    """End this process with its parent, also after kill -9; the parent alone obeys Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class StopRequest:
    """The signal that asked for an end; false as long as there was none."""

    signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def note(self, number: int, _: FrameType | None) -> None:
        """Handle a signal; a second Ctrl-C ends at once."""
        name = signal.Signals(number).name
        if name == self.signal_name == "SIGINT":
            raise KeyboardInterrupt
        self.signal_name = name


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note Ctrl-C and a scheduler's signals, instead of ending in the middle of a step.

    A block inside another shares its request, so that no signal is lost between the two.
    """
    outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(outer, StopRequest):
        yield outer
        return
    request, before = StopRequest(), {}
    try:
        with contextlib.suppress(ValueError):  # only the main thread may listen
            before = {number: signal.signal(number, request.note) for number in STOP_SIGNALS}
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
