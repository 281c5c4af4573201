"""Is a shard set undamaged? Its files against the checksums taken when they were written."""

import zlib
from pathlib import Path

from ijepa.config import Config, StrPath
from ijepa.data.index import load_rows, rows_path
from ijepa.data.shards import open_shards
from ijepa.errors import IjepaError
from ijepa.files import file_sha256
from ijepa.progress import Progress, automatic
from ijepa.records import read_record

SHOWN_FILES = 5  # in an error


class ShardCheck(Config):
    """A shard set that was found undamaged: what was read of it."""

    out: Path
    files: int
    bytes: int
    samples: int


def check_shards(folder: StrPath, progress: Progress = automatic) -> ShardCheck:
    """Compare every file of a shard set with the checksums that were taken when it was written.

    Raises:
        IjepaError: not a whole shard set, or files that are damaged, which are named.
    """
    folder = Path(folder)
    index = open_shards(folder).index
    recorded = (read_record(folder) or {}).get("files", {})  # nothing if it was not copied along
    rows = {rows_path(folder, split).name: split for split in index.splits}
    expected = dict.fromkeys(rows) | {name: facts["sha256"] for name, facts in recorded.items()}
    expected |= {shard.name: shard.sha256 for one in index.splits.values() for shard in one.shards}
    damaged = []
    for number, (name, sha256) in enumerate(expected.items(), start=1):
        is_whole = (folder / name).is_file()
        if is_whole and name in rows:
            split = index.splits[rows[name]]
            found = load_rows(folder, rows[name], split.labels, split.dense)
            is_whole = zlib.crc32(found.data) == split.index_crc32
        if not is_whole or sha256 not in (None, file_sha256(folder / name)):
            damaged.append(name)
        progress("check files", number, len(expected))
    if damaged:
        more = f" and {len(damaged) - SHOWN_FILES:,} more" if len(damaged) > SHOWN_FILES else ""
        raise IjepaError(
            f"{folder}: {len(damaged):,} of {len(expected):,} files "
            f"{'is' if len(damaged) == 1 else 'are'} damaged: {', '.join(damaged[:SHOWN_FILES])}"
            f"{more}. Copy the shard set again, or shard again with --force."
        )
    size_bytes = sum((folder / name).stat().st_size for name in expected)
    samples = sum(split.samples for split in index.splits.values())
    return ShardCheck(out=folder, files=len(expected), bytes=size_bytes, samples=samples)
