"""One output, made by one process or by all that torchrun started."""

import contextlib
from collections.abc import Iterator

from ijepa.stage import Work
from ijepa.world import World, is_one_of_many


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
    from ijepa.distributed import joined, lead, pick_device, wait_for_all

    with joined(pick_device(device)) as world, contextlib.ExitStack() as stack:
        yield lead(world, lambda: stack.enter_context(work)), world
        wait_for_all(world)
