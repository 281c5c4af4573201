"""A file that several processes fill at places of their own, and that the disk takes meanwhile."""

import os
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ijepa.files import naming

SYNC_BYTES = 2**25  # handed to the disk at once


class Draft:
    """Opened for writing at any place, what stands there kept; made by the first write.

    Nothing waits for the disk before `flush`; a thread has it take what is there from time to time,
    so that little is left to wait for then.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self.path = path
        self._file: int | None = None
        self._syncs = ThreadPoolExecutor(1)
        self._last_sync: Future[None] | None = None
        self._unsynced_bytes = 0

    def write(self, place: int, content: bytes | memoryview) -> None:
        """Write all of `content` from the byte `place` on.

        Raises:
            OSError: the disk is full, or failed to take this or what was written before.
        """
        file, done, size = self._opened(), 0, memoryview(content).nbytes
        rest = memoryview(content).cast("B") if size else b""
        with naming(self.path):
            while done < size:
                done += os.pwrite(file, rest[done:], place + done)
        self._unsynced_bytes += size
        if self._unsynced_bytes >= SYNC_BYTES and (not self._last_sync or self._last_sync.done()):
            self._raise_what_failed()
            self._last_sync = self._syncs.submit(os.fsync, file)
            self._unsynced_bytes = 0

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long."""
        os.ftruncate(self._opened(), size)

    def flush(self) -> None:
        """Return when the disk has all that was written.

        Raises:
            OSError: it failed to take something.
        """
        self._raise_what_failed()
        if self._file is not None:
            with naming(self.path):
                os.fsync(self._file)

    def close(self) -> None:
        """Let go of the file, if it is open."""
        self._syncs.shutdown()
        if self._file is not None:
            self._closed()
            self._file = None

    def _opened(self) -> int:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            self._closed = weakref.finalize(self, os.close, self._file)
        return self._file

    def _raise_what_failed(self) -> None:
        if self._last_sync is not None:
            with naming(self.path):
                self._last_sync.result()
