"""State of unfinished work in files that are whole or absent, for the next start of a command."""

import logging
from pathlib import Path
from typing import Any

from ijepa.weights import load_state, save_state

log = logging.getLogger(__name__)


class KeepInFolder:
    """A file a name; what cannot be read is an error, never a silent start from the beginning.

    What cannot be written is told: the work goes on, and a stop would cost more of it.
    """

    def __init__(self, folder: Path) -> None:
        """Remember the folder; it is made when something is saved."""
        self._folder = folder

    def load(self, name: str) -> dict[str, Any] | None:
        """What was saved last by this name, on the CPU; None where nothing was.

        Raises:
            IjepaError: it is damaged.
        """
        path = self._path(name)
        return load_state(path) if path.exists() else None

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Put tensors and plain values in place of what was saved before by this name."""
        path = self._path(name)
        try:
            self._folder.mkdir(exist_ok=True)
            save_state(path, state)
        except OSError as error:
            log.warning("%s is not kept (%s); a stop would cost it", path, error.strerror)

    def drop(self, name: str) -> None:
        """Remove what was saved by this name, if anything was."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name.replace(' ', '-')}.pt"
