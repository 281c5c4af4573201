"""What commands say around a stage, in words: what will run; what came of it; what to type next."""

import os
import shlex
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ijepa.config import Runtime, StrPath
from ijepa.records import read_record

if TYPE_CHECKING:
    from ijepa.data.shards import ShardSet

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of CUDA, of CUDA under WSL, of ROCm


def about(runtime: Runtime, text: str) -> Runtime:
    """The runtime of a stage that says `text` and its device when it begins."""
    where = f"on {runtime.device}"
    if runtime.device == "auto":  # as far as that can be known without torch
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
        has_gpu = not hidden and any(Path(path).exists() for path in GPU_DRIVERS)
        where = "on a GPU if torch can use it" if has_gpu else "on the CPU"
    return runtime.model_copy(update={"about": f"{text}, {where}"})


def opened(data: StrPath) -> "ShardSet":
    """A shard set; what opens it is imported here, for `--help` must not wait for it."""
    from ijepa.data.shards import open_shards

    return open_shards(data)


def images_of(data: StrPath, split: str, train: str = "train") -> str:
    """Such as `shards/cifar10 (train, 50,000 images)`."""
    shards = opened(data)
    reader = shards.split(shards.named_split(split, train))
    return f"{data} ({reader.name}, {len(reader):,} images)"


def counted(number: int, noun: str) -> str:
    """Such as `1 epoch`, `50 epochs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def headline(state: str, out: StrPath, cached: bool, words: str) -> str:
    """First line of a summary, such as `pretrained runs/a in 22 min: 9,372 steps`."""
    if cached:
        return f"cached: {out} is up to date; {words}"
    seconds = (read_record(Path(out)) or {}).get("seconds")
    if seconds is None:
        return f"{state} {out}: {words}"
    minutes = round(seconds / 60)
    took = f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    took = f"{seconds:.0f} s" if seconds < 60 else took
    return f"{state} {out} in {took}: {words}"


def next_command(*words: StrPath) -> str:
    """The line that shows the next command to type."""
    return f"next: {shlex.join(['ijepa', *map(str, words)])}"


def without_options(
    words: Iterable[str], valued: Container[str], switches: Container[str] = ()
) -> Iterator[str]:
    """The words of a command without some options: `valued` ones have a value, `switches` none."""
    left = iter(words)
    for word in left:
        flag, equals, _ = word.partition("=")
        if flag in valued and not equals:
            next(left, None)
        elif flag not in valued and flag not in switches:
            yield word
