"""Reading a run's `metrics.jsonl`, without torch."""

from pathlib import Path

from ijepa.config import StrPath
from ijepa.errors import IjepaError
from ijepa.stage import parse_json


def read_metrics(path: StrPath) -> list[dict[str, float]]:
    """All records of a `metrics.jsonl`, in order; a last line still being written is left out.

    Raises:
        IjepaError: not there, without a record yet, or a line is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise IjepaError(f"There is no {path}; give a run folder of `ijepa pretrain`.")
    try:
        lines = path.read_text().split("\n")[:-1]
        records = [parse_json(line) for line in lines]
    except ValueError as error:
        raise IjepaError(f"{path} is damaged: {error}.") from error
    if not all(isinstance(record, dict) for record in records):
        raise IjepaError(f"{path} is damaged: a line is no object.")
    if not records:
        raise IjepaError(f"{path} has no record yet; wait until the run has taken some steps.")
    return records
