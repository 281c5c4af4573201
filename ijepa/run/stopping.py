"""A scheduler's signals ask for an end after the step at hand, not for one in the middle of it."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Who asked for an end; empty as long as nobody did."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note a signal, instead of obeying it, for as long as the block lasts."""
    request = StopRequest()

    def note(number: int, _: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name

    try:
        before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    except ValueError:  # only the main thread may listen
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
