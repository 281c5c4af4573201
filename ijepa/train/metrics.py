"""A run's numbers: `metrics.jsonl`, exact and reproducible, and TensorBoard beside it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ijepa.errors import IjepaError


class MetricsLog:
    """Append-only records; a resumed run cuts off what its checkpoint does not know.

    `metrics.jsonl` holds nothing that depends on the clock, so that a resumed run writes the same
    bytes as one that was never stopped. Speed goes to TensorBoard alone, which gets every so many
    steps the newest value of each number: a scalar costs it as much time as a small step.
    """

    def __init__(self, folder: Path, length_bytes: int, step: int) -> None:
        """Open the log in `folder` as it was at `length_bytes`, after `step` steps."""
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

    def append(self, record: Mapping[str, float]) -> None:
        """Write one step's record; its `step` counts the steps done."""
        self._file.write((json.dumps(record) + "\n").encode())
        step = int(record["step"])
        self._newest |= {name: (value, step) for name, value in record.items() if name != "step"}

    def show(self, step: int, speed: Mapping[str, float]) -> None:
        """Put the newest value of each number on the board, and how fast it went."""
        self._newest |= {name: (value, step) for name, value in speed.items()}
        for name, (value, at_step) in self._newest.items():
            self._board.add_scalar(name, value, at_step)
        self._newest = {}

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
