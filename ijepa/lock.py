"""An output is made by one process at a time."""

import contextlib
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ijepa.errors import IjepaError

ORPHANS_SECONDS = 20  # torch's workers look every 5 for the process that began them
HOLDER = r"process (\d+) on (.+)"  # what a lock says
LONGEST = 400  # characters of it


@contextlib.contextmanager
def lock(out: Path) -> Iterator[int]:
    """Hold `<out>.lock` by an flock, which the kernel frees even after kill -9.

    Workers of a process that was killed hold it for seconds more, until they notice; these are
    waited for.

    Args:
        out: what is made; need not be there.

    Yields:
        A descriptor; whoever inherits it holds the lock too, until it ends.

    Raises:
        IjepaError: another process makes it, or the file of that name is not a lock.
    """
    path = out.with_name(f"{out.name}.lock")
    file = _locked(path, out)
    try:
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield file.fileno()
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _locked(path: Path, out: Path) -> TextIO:
    """The file, ours alone and still under its name."""
    until = time.monotonic() + ORPHANS_SECONDS
    while True:
        file = _opened(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(LONGEST).strip() or "another process"
            file.close()
            ended = _has_ended(holder)
            if ended and time.monotonic() < until:
                time.sleep(0.1)
                continue
            who = f"workers of {holder}, which has ended" if ended else holder
            raise IjepaError(
                f"{out} is being written by {who}; wait for it, or choose another output."
            ) from error
        # The holder before us may have removed the file between our open and our flock.
        if path.exists() and _same(path, file.fileno()):
            break
        file.close()
    file.seek(0)
    found = file.read(LONGEST)
    if found and not re.fullmatch(HOLDER, found):
        file.close()
        raise _foreign(path)
    return file


def _opened(path: Path) -> TextIO:
    """Open or make it; neither through a link, nor what is no plain file, nor waiting for one."""
    how = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, how, 0o666)
    except OSError as error:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise _foreign(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _foreign(path)
    return os.fdopen(descriptor, "r+", errors="replace")


def _foreign(path: Path) -> IjepaError:
    return IjepaError(
        f"{path} was not made by ijepa, which needs that name; move it elsewhere, or choose "
        f"another output."
    )


def _has_ended(holder: str) -> bool:
    """Was it a process of this machine, and is it there no more?"""
    known = re.fullmatch(HOLDER, holder)
    if known is None or known[2] != socket.gethostname():
        return False
    try:
        os.kill(int(known[1]), 0)  # asks, does not kill
    except OSError as error:  # another user's process may not be asked, but is there
        return isinstance(error, ProcessLookupError)
    return False


def _same(path: Path, descriptor: int) -> bool:
    return os.path.samestat(os.fstat(descriptor), path.stat())
