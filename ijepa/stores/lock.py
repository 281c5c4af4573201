"""An output is made by one process at a time."""

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ijepa.errors import IjepaError

ORPHANS_SECONDS = 20  # torch's workers look every 5 for the process that began them


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold `<out>.lock` by an flock, which the kernel frees even after kill -9.

    Workers of a process that was killed hold it for seconds more, until they notice; these are
    waited for.

    Args:
        out: what is made; need not be there.

    Raises:
        IjepaError: another process makes it.
    """
    path, until = out.with_name(f"{out.name}.lock"), time.monotonic() + ORPHANS_SECONDS
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            if _has_ended(holder) and time.monotonic() < until:
                time.sleep(0.1)
                continue
            raise IjepaError(
                f"{out} is being written by {holder}; wait for it, or choose another output."
            ) from error
        # The holder before us may have removed the file between our open and our flock.
        if path.exists() and _same(path, file.fileno()):
            break
        file.close()
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _has_ended(holder: str) -> bool:
    """Was it a process of this machine, and is it there no more?"""
    known = re.fullmatch(r"process (\d+) on (.+)", holder)
    if known is None or known[2] != socket.gethostname():
        return False
    try:
        os.kill(int(known[1]), 0)  # asks, does not kill
    except OSError as error:  # another user's process may not be asked, but is there
        return isinstance(error, ProcessLookupError)
    return False


def _same(path: Path, descriptor: int) -> bool:
    return os.path.samestat(os.fstat(descriptor), path.stat())
