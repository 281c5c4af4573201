"""How processes that help are started, and that they end with the one that they help."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext

HELD_BACK = {signal.SIGINT, signal.SIGTERM}


def processes() -> BaseContext:
    """Forked on Linux whatever a script chose: it needs no `if __name__ == "__main__"`.

    They hold the lock of the output that they help to make until they end.
    """
    return multiprocessing.get_context("fork" if sys.platform == "linux" else None)


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Start processes in here whose first call is `end_with_parent`: until it, Ctrl-C waits.

    A process that it stopped before would leave its parent waiting for it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
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
