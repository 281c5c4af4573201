"""Signals that ask a run to end: noted, so that the state is saved first."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


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
