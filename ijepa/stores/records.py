"""Reading a run's `metrics.jsonl`, without torch."""

import json
from pathlib import Path

from ijepa.errors import IjepaError


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All records of a `metrics.jsonl`, in order.

    Raises:
        IjepaError: not there, or a line is not JSON.
    """
    if not path.is_file():
        raise IjepaError(f"There is no {path}; give a run folder of `ijepa pretrain`.")
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except json.JSONDecodeError as error:
        raise IjepaError(f"{path} is damaged: {error}.") from error
