"""What commands say around a stage, in words: what will run; what came of it; what to type next."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ijepa.config import Runtime, StrPath
from ijepa.errors import IjepaError
from ijepa.records import read_record
from ijepa_cli.bars import in_minutes

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of CUDA, of CUDA under WSL, of ROCm


def about(runtime: Runtime, text: str) -> Runtime:
    """The runtime of a stage that says `text` and its device when it begins."""
    return runtime.model_copy(update={"about": f"{text}, {_device(runtime.device)}"})


def _device(device: str) -> str:
    """Where it will run, as far as that can be known without torch."""
    if device != "auto":
        return f"on {device}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    has_gpu = not hidden and any(Path(path).exists() for path in GPU_DRIVERS)
    return "on a GPU if torch can use it" if has_gpu else "on the CPU"


def images_of(data: StrPath, split: str, train: str = "train") -> str:
    """Such as `shards/cifar10 (train, 50,000 images)`."""
    from ijepa.data.shards import open_shards

    shards = open_shards(data)
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
    took = f"{seconds:.0f} s" if seconds < 60 else in_minutes(seconds)
    return f"{state} {out} in {took}: {words}"


def next_command(*words: StrPath) -> str:
    """The line that shows the next command to type."""
    return f"next: {shlex.join(['ijepa', *map(str, words)])}"


def retyped(command: str, **options: StrPath) -> list[str]:
    """The words of a command behind `ijepa`, with other values of some options."""
    typed = shlex.split(command)[1:]
    for name in (*options, "json", "force", "dry-run"):
        flag, takes_value = f"--{name}", name in options
        for place in [n for n, word in enumerate(typed) if word.partition("=")[0] == flag][::-1]:
            del typed[place : place + (2 if takes_value and typed[place] == flag else 1)]
    return typed + [word for name, value in options.items() for word in (f"--{name}", str(value))]


def other_split(data: StrPath, split: str) -> str | None:
    """The split to extract beside one: that to score on, or beside it `train`; None if alone."""
    from ijepa.data.shards import open_shards

    try:
        shards = open_shards(data)
        scored = shards.named_split("evaluation")
    except IjepaError:
        return None
    return scored if split != scored else "train" if "train" in shards.splits else None


def renamed(out: Path, split: str, other: str) -> Path:
    """A file beside `out` whose name says `other` in place of `split`, or of `evaluation`."""
    pattern = rf"(?<![a-zA-Z0-9])({re.escape(split)}|evaluation)(?![a-zA-Z0-9])"
    stem, found = re.subn(pattern, other, out.stem)
    return out.with_name((stem if found else f"{out.stem}-{other}") + out.suffix)


def report_command(results: Sequence[Path], encoder: str, page: Path) -> str:
    """The next command after a score: a page of it, and of the run that its encoder is from."""
    run = Path(encoder.partition(" ")[0])
    runs = [run] if (run / "metrics.jsonl").is_file() else []
    return next_command("report", *results, *runs, "--out", page)
