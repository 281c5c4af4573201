"""How processes that help are started, and that they end with the one that they help."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext


def processes() -> BaseContext:
    """Forked on Linux whatever a script chose: it needs no `if __name__ == "__main__"`.

    They hold the lock of the output that they help to make until they end.
    """
    return multiprocessing.get_context("fork" if sys.platform == "linux" else None)


def end_with_parent() -> None:
    """End this process with its parent, also after kill -9; the parent alone obeys Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
