"""Write one shard: a plain tar whose bytes depend on its samples alone, hashed as it is written."""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ijepa.data.shards import EXTENSIONS, ROW, Rows, ShardIndex
from ijepa.stage import naming

BUFFER_BYTES = 2**20
BLOCK = tarfile.BLOCKSIZE
_MODE_OWNER = b"0000644\0" + b"0000000\0" * 2
_REST = b"0" + bytes(100) + b"ustar\00000" + bytes(64 + 16 + 167)
_REST_SUM = sum(_REST) + 8 * ord(" ")  # the checksum counts itself as spaces


class ShardWriter:
    """Samples of one shard, in the order they are added.

    Use it as a context: the tar gets its name only when all is written; after an error nothing is
    left behind.
    """

    def __init__(self, path: Path, place: int) -> None:
        """Begin the tar `path`, the shard at `place` in its split."""
        self._path, self._place = path, place
        self._half = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        self._file = self._half.open("wb", buffering=0)
        self._sha256 = hashlib.sha256()
        self._buffer = bytearray()
        self._written_bytes = 0
        self._rows: list[tuple[int, ...]] = []

    def add(
        self,
        key: str,
        image: bytes,
        extension: str,
        labels: Mapping[str, int],
        metadata: Mapping[str, Any],
    ) -> None:
        """Write `key`'s image, its `.cls` if one label is the class, and a `.json` of all labels.

        A class number of -1, which is not known, gets no `.cls`.
        """
        only = next(iter(labels.values())) if len(labels) == 1 else None
        number = labels.get("class", only)
        if number is not None and number >= 0:
            self._add_member(f"{key}.cls", b"%d" % number)
        image_offset = self._add_member(f"{key}.{extension}", image)
        body = json.dumps({"key": key, "labels": dict(labels), **metadata}).encode()
        json_offset = self._add_member(f"{key}.json", body)
        place = (self._place, EXTENSIONS.index(extension))
        checksums = zlib.crc32(image), zlib.crc32(body)
        self._rows.append((*place, image_offset, len(image), json_offset, len(body), *checksums))

    def close(self) -> tuple[ShardIndex, Rows]:
        """Finish the tar and give it its name."""
        self._write(bytes(2 * BLOCK))
        self._flush()
        with naming(self._path):
            os.fsync(self._file.fileno())
        self._file.close()
        self._half.replace(self._path)
        index = ShardIndex(
            name=self._path.name,
            samples=len(self._rows),
            bytes=self._written_bytes,
            sha256=self._sha256.hexdigest(),
        )
        return index, np.array(self._rows, dtype=ROW)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._half.unlink(missing_ok=True)

    def _add_member(self, name: str, content: bytes) -> int:
        """Append a file; where its content begins in the tar."""
        self._write(tar_header(name, len(content)))
        offset = self._written_bytes
        self._write(content)
        self._write(bytes(-len(content) % BLOCK))
        return offset

    def _write(self, content: bytes) -> None:
        self._buffer += content
        self._written_bytes += len(content)
        if len(self._buffer) >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._sha256.update(self._buffer)
        left = memoryview(self._buffer)
        with naming(self._path):
            while left:
                left = left[self._file.write(left) :]
        self._buffer = bytearray()


def tar_header(name: str, size_bytes: int) -> bytes:
    """The header of a plain file, owner, group and time 0: as tarfile's, several times faster.

    A name that is long or not ASCII gets a PAX header before it, which tarfile writes.
    """
    if len(name) > tarfile.LENGTH_NAME or not name.isascii():
        member = tarfile.TarInfo(name)
        member.size = size_bytes
        return member.tobuf(tarfile.PAX_FORMAT)
    before = name.encode().ljust(tarfile.LENGTH_NAME, b"\0") + _MODE_OWNER
    before += b"%011o\0%011o\0" % (size_bytes, 0)
    return before + b"%06o\0 " % (sum(before) + _REST_SUM) + _REST
