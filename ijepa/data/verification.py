"""Reading all of a shard set, to see that each byte is what was written."""

from collections.abc import Iterator
from pathlib import Path

from ijepa.config import Config, StrPath
from ijepa.data.shards import open_shards
from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent
from ijepa.stage import file_sha256, read_record

SHOWN_FILES = 5  # in an error


class ShardCheck(Config):
    """A shard set that was found undamaged.

    Attributes:
        out: its folder.
        files: how many were read; `bytes` in them.
        samples: in all splits.
    """

    out: Path
    files: int
    bytes: int
    samples: int


def check_shards(folder: StrPath, progress: Progress = silent) -> ShardCheck:
    """Compare every file of a shard set with the sha256 that was taken when it was written.

    Args:
        folder: of `ijepa shard`.
        progress: told of the files read.

    Raises:
        IjepaError: not a whole shard set, or files that are damaged, which are named.
    """
    folder = Path(folder)
    index = open_shards(folder).index
    expected = dict(_digests(folder)) | {
        shard.name: shard.sha256 for split in index.splits.values() for shard in split.shards
    }
    damaged = []
    for number, (name, sha256) in enumerate(expected.items(), start=1):
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            damaged.append(name)
        progress("check files", number, len(expected))
    if damaged:
        more = f" and {len(damaged) - SHOWN_FILES:,} more" if len(damaged) > SHOWN_FILES else ""
        raise IjepaError(
            f"{folder}: {', '.join(damaged[:SHOWN_FILES])}{more} of {len(expected):,} files are "
            f"damaged. Copy them again, or shard again with --force."
        )
    return ShardCheck(
        out=folder,
        files=len(expected),
        bytes=sum((folder / name).stat().st_size for name in expected),
        samples=sum(split.samples for split in index.splits.values()),
    )


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    """Of all files, as the record of the set tells them; nothing if it was not copied along."""
    for name, facts in (read_record(folder) or {}).get("files", {}).items():
        if isinstance(facts, dict):
            yield name, facts["sha256"]
