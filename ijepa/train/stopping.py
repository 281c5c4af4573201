"""Ctrl-C and a scheduler's signals ask for an end after the current step, not in its middle."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from ijepa.errors import StoppedError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """The signal that asked for an end; false as long as there was none."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def note(self, number: int, _: FrameType | None) -> None:
        """Handle a signal; a second Ctrl-C ends at once.

        Raises:
            KeyboardInterrupt: on a second Ctrl-C.
        """
        name = signal.Signals(number).name
        if name == self.signal_name == "SIGINT":
            raise KeyboardInterrupt
        self.signal_name = name

    def stopped(self, steps_done: int, total_steps: int) -> StoppedError:
        """The error to raise once the state after `steps_done` steps is saved."""
        return StoppedError(
            f"Stopped by {self.signal_name or 'a signal to another process'} after step "
            f"{steps_done:,} of {total_steps:,}, which is saved.",
            self.signal_name,
        )


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note signals, instead of obeying them, for as long as the block lasts.

    A block inside another shares its request, so that no signal is lost between the two.
    """
    outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(outer, StopRequest):
        yield outer
        return
    request = StopRequest()
    try:
        before = {number: signal.signal(number, request.note) for number in STOP_SIGNALS}
    except ValueError:  # only the main thread may listen
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
