"""Lists of images, such as the published 1% of ImageNet, against the keys of what is stored."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ijepa.errors import IjepaError

SHOWN = 3  # lines in an error

log = logging.getLogger(__name__)

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def listed(path: Path, keys: Sequence[str]) -> Ints:
    """Numbers of the images that a list names, ascending.

    Args:
        path: one key, path or file name a line, with or without a suffix; a file name names all
            images called so.
        keys: of the images, `<split>/<path without suffix>`.

    Raises:
        IjepaError: there is no such file, it is empty, or a line names no image.
    """
    lines = read_lines(path)
    numbers = defaultdict(list)
    for number, key in enumerate(keys):
        for name in {key, key.partition("/")[2], PurePosixPath(key).name}:
            numbers[name].append(number)
    found = {line: numbers.get(line) or numbers.get(_without_suffix(line)) for line in lines}
    lost = [line for line in lines if not found[line]]
    if lost:
        raise IjepaError(
            f"{path}: {len(lost):,} of {len(lines):,} lines name no training image, such as "
            f"{', '.join(lost[:SHOWN])}; write keys, paths or file names."
        )
    several = [line for line in lines if len(found[line] or []) > 1]
    if several:
        log.warning(
            "%s: %d of %d lines name several images each, such as %s; write keys or paths to name "
            "one.", path, len(several), len(lines), several[0],
        )  # fmt: skip
    return np.unique(np.concatenate([found[line] or [] for line in lines])).astype(np.int64)


def read_lines(path: Path) -> list[str]:
    """Lines that are not blank, each once, in their order.

    Raises:
        IjepaError: there is no such file, or it is empty.
    """
    if not path.is_file():
        raise IjepaError(f"There is no list {path}.")
    lines = (line.strip() for line in path.read_text(errors="surrogateescape").splitlines())
    found = [line for line in dict.fromkeys(lines) if line]
    if not found:
        raise IjepaError(f"{path} lists nothing; write one key or file name a line.")
    return found


def _without_suffix(line: str) -> str:
    return str(PurePosixPath(line).with_suffix(""))
