"""A list of the samples to keep, such as the published 1% of ImageNet."""

from pathlib import Path, PurePosixPath

from ijepa.data.plan import sample_key
from ijepa.errors import IjepaError

SHOWN = 3  # lines in an error


class Subset:
    """Keys, paths or file names, one a line, with or without a suffix; blank lines are nothing.

    Raises:
        IjepaError: there is no such file, or it is empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = {line.strip() for line in _text(path).splitlines()} - {""}
        if not self._lines:
            raise IjepaError(f"{path} lists nothing; write one key or file name a line.")
        self._found: set[str] = set()

    def holds(self, split: str, name: str, path: str) -> bool:
        """Does a line name this image? A file name alone names all images called so."""
        key, _ = sample_key(split, name)
        file = PurePosixPath(path)
        names = {key, path, str(file.with_suffix("")), name, file.name, file.stem}
        found = names & self._lines
        self._found |= found
        return bool(found)

    def check_all_found(self) -> None:
        """Refuse a list of which some lines name no image.

        Raises:
            IjepaError: naming the first of them.
        """
        lost = sorted(self._lines - self._found)
        if lost:
            raise IjepaError(
                f"{self._path}: {len(lost):,} of {len(self._lines):,} lines name no image of the "
                f"source, such as {', '.join(lost[:SHOWN])}; write keys, paths or file names."
            )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except FileNotFoundError as error:
        raise IjepaError(f"There is no subset file {path}.") from error
