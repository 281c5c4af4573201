"""Pages of mapped files: given back once they were read, so that reading a file fills no memory.

A mapped file's pages count as resident from their first use until the system wants them. What goes
over all weights once, such as a digest, hands them back as it goes; who needs them later gets them
from the file again. Where the system is not Linux, or does not say, nothing is given back.
"""

import ctypes
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

MAPS = Path("/proc/self/smaps")
HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")  # start, stop, inode
OWN = ("Anonymous:", "Swap:")  # pages that are this process's, no longer the file's


class Mapped(NamedTuple):
    """Addresses from `start` to before `stop` that show a file."""

    start: int
    stop: int


def unchanged_maps() -> tuple[Mapped, ...]:
    """Where this process shows files of which it changed nothing.

    Writing to a privately mapped file makes a page of our own, which giving back would lose.
    """
    try:
        return tuple(_unchanged(MAPS.read_text().splitlines()))
    except OSError:
        return ()


def give_back(tensor: Tensor, maps: tuple[Mapped, ...]) -> None:
    """Hand back the pages that lie wholly in a tensor, if it lies in one of `maps`.

    Args:
        tensor: on the CPU and contiguous; not written to since `maps` was made.
        maps: of `unchanged_maps`.
    """
    start, page = tensor.data_ptr(), mmap.PAGESIZE
    stop = start + tensor.nbytes
    first, last = -(-start // page) * page, stop // page * page
    if first < last and any(place.start <= start and stop <= place.stop for place in maps):
        length = ctypes.c_size_t(last - first)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), length, mmap.MADV_DONTNEED)


def _unchanged(lines: list[str]) -> Iterator[Mapped]:
    place, is_file, own_kb = Mapped(0, 0), False, 0
    for line in [*lines, "0-0 - - - 0"]:
        if head := HEAD.match(line):
            if is_file and not own_kb:
                yield place
            place, is_file = Mapped(int(head[1], 16), int(head[2], 16)), head[3] != "0"
            own_kb = 0
        elif line.startswith(OWN):
            own_kb += int(line.split()[1])
