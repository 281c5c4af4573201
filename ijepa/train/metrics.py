"""A run's numbers: `metrics.jsonl`, exact and reproducible, and TensorBoard beside it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from ijepa.errors import IjepaError
from ijepa.train.tracking import Tracker

Picture = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]  # (height, width, 3)


class MetricsLog:
    """Append-only records; a resumed run cuts off what its checkpoint does not know.

    `metrics.jsonl` holds nothing that depends on the clock, so that a resumed run writes the same
    bytes as one that was never stopped. Speed goes to TensorBoard alone, which gets every so many
    steps the newest value of each number: a scalar costs it as much time as a small step.
    """

    def __init__(
        self, folder: Path, length_bytes: int, step: int, tracker: Tracker | None = None
    ) -> None:
        """Open the log in `folder` as it was at `length_bytes`, after `step` steps.

        `tracker` gets what TensorBoard gets, and is closed with the log.
        """
        path = folder / "metrics.jsonl"
        path.touch()
        if path.stat().st_size < length_bytes:
            raise IjepaError(
                f"{path} is shorter than its checkpoint says; start afresh with --force."
            )
        self._file = path.open("r+b")
        self._file.truncate(length_bytes)
        self._file.seek(length_bytes)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._newest: dict[str, tuple[float, int]] = {}  # value and step, not yet on the board
        self._tracker = tracker

    def append(self, record: Mapping[str, float]) -> None:
        """Write one step's record; its `step` counts the steps done."""
        self._file.write((json.dumps(record) + "\n").encode())
        step = int(record["step"])
        self._newest |= {name: (value, step) for name, value in record.items() if name != "step"}

    def show(self, step: int, speed: Mapping[str, float]) -> None:
        """Put the newest value of each number on the board, and how fast it went."""
        self._newest |= {name: (value, step) for name, value in speed.items()}
        by_step: dict[int, dict[str, float]] = {}
        for name, (value, at_step) in self._newest.items():
            self._board.add_scalar(name, value, at_step)
            by_step.setdefault(at_step, {})[name] = value
        if self._tracker:
            for at_step in sorted(by_step):
                self._tracker.log(by_step[at_step], at_step)
        self._newest = {}

    def show_pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Put pictures on the board, by name."""
        for name, pixels in pictures.items():
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def flush(self) -> int:
        """Put everything on disk; returns the length in bytes to hand to the next opening."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self.show(0, {})
        self._board.flush()
        return self._file.tell()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()
        self._board.close()
        if self._tracker:
            self._tracker.close()
