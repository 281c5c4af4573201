"""Shard: class folders to a shard set, against os.walk + webdataset.TarWriter + sha256 afterwards.

    python benchmarks/bench_shard.py [--data ARCHIVE] [--images 20000] [--rounds 3]

ARCHIVE is unpacked to class folders first, at most `--images` of them; without it, noise is encoded
as 32x32 JPEG. The plain side is one process and does not decode; `ratio` compares it with ours on
one worker, which decodes every image, and on two. Memory is the peak of a process that shards
a tenth of the images, and all of them.
"""

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from timing import emit, medians

from ijepa.config import Runtime, ShardConfig
from ijepa.shard import shard

CONFIG = ShardConfig(shard_bytes=8 * 2**20)  # so that two workers have enough to share
PEAK = """
import sys
from pathlib import Path
from ijepa.config import Runtime
from ijepa.shard import shard
shard(sys.argv[1], Path(sys.argv[2]), runtime=Runtime(workers=1))
status = Path("/proc/self/status").read_text()
print(status.split("VmHWM:")[1].split()[0])
"""


def main() -> None:
    """Unpack, time, measure memory, print one line."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tenth, whole = folder / "tenth" / "train", folder / "whole" / "train"
        count = _unpack(arguments.data, whole, arguments.images)
        _link_some(whole, tenth, count // 10)
        source, out = whole.parent, folder / "ours"
        one, plain = medians(
            lambda: _ours(source, out, workers=1),
            lambda: _plain(source, folder / "plain"),
            rounds=arguments.rounds,
        )
        two, plain_again = medians(
            lambda: _ours(source, out, workers=2),
            lambda: _plain(source, folder / "plain"),
            rounds=arguments.rounds,
        )
        emit(
            "shard",
            data=arguments.data.name if arguments.data else "noise",
            images=count,
            images_per_second=count / one,
            images_per_second_two_workers=count / two,
            plain_images_per_second=count / plain,
            ratio=plain / one,
            ratio_two_workers=plain_again / two,
            peak_mb_tenth=_peak_mb(tenth.parent, folder / "peak-tenth"),
            peak_mb_whole=_peak_mb(whole.parent, folder / "peak-whole"),
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def _unpack(archive: Path | None, folder: Path, at_most: int) -> int:
    """Files `folder/<class>/<number>.<suffix>`; how many."""
    count = 0
    for count, (name, content) in enumerate(_images(archive, at_most), start=1):
        path = folder / f"{count % 10}" / f"{count:06d}{Path(name).suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return count


def _images(archive: Path | None, at_most: int):  # noqa: ANN202  # pairs of name and bytes
    rng = np.random.default_rng(0)
    if archive is None:
        for _ in range(at_most):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG")
            yield "noise.jpg", file.getvalue()
        return
    with tarfile.open(archive, "r|*") as members:
        images = (one for one in members if one.name.lower().endswith(("jpg", "jpeg", "png")))
        for _, member in zip(range(at_most), images, strict=False):
            yield member.name, members.extractfile(member).read()


def _link_some(whole: Path, part: Path, count: int) -> None:
    for path in sorted(whole.rglob("*.*"))[:count]:
        link = part / path.relative_to(whole)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)


def _ours(folder: Path, out: Path, workers: int) -> None:
    shard(str(folder), out, CONFIG, Runtime(workers=workers, force=True))


def _plain(folder: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    path = out / "train-000000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for here, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                file = Path(here) / name
                key, suffix = str(file.relative_to(folder).with_suffix("")), file.suffix[1:]
                label = int(file.parent.name)
                body = {"labels": {"class": label}, "file": name}
                writer.write(
                    {"__key__": key, suffix: file.read_bytes(), "cls": label, "json": body}
                )
    with path.open("rb") as tar:
        hashlib.file_digest(tar, "sha256")


def _peak_mb(folder: Path, out: Path) -> float:
    command = [sys.executable, "-c", PEAK, str(folder), str(out)]
    return int(subprocess.check_output(command)) / 1000


if __name__ == "__main__":
    main()
