"""Any data set of torchvision.datasets that is already on disk, by the name of its class."""

import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ijepa.errors import IjepaError
from ijepa.progress import Progress
from ijepa.sources.items import DEFAULT_SPLIT, Contents, Labels, chosen_splits, named
from ijepa.sources.packs import Packed, read_pack, write_pack

LABEL = "class"
SPLITS = ("train", "val", "valid", "validation", "test", "unlabeled")  # of a `split` argument
REPORT_IMAGES = 1000
ABSENT = (RuntimeError, ValueError, FileNotFoundError, NotADirectoryError)  # what torchvision says


@dataclass(frozen=True)
class TorchvisionSet:
    """Images as PNG, pixels kept; nothing is downloaded."""

    name: str
    where: Path

    def digest(self) -> str:
        """From the class, and the names, sizes and times of all files."""
        total = hashlib.sha256(self.name.encode())
        for path in sorted(path for path in self.where.rglob("*") if path.is_file()):
            facts = path.stat()
            line = f"{path.relative_to(self.where)}\0{facts.st_size}\0{facts.st_mtime_ns}\n"
            total.update(line.encode(errors="surrogateescape"))
        return total.hexdigest()

    def read(self, work: Path, splits: tuple[str, ...], _: int, report: Progress) -> Contents:
        """Encode what the class gives, each split by its own `train` or `split` argument."""
        found = self._open()
        labels: dict[str, Labels] = {split: _labels(data) for split, data in found.items()}
        chosen = chosen_splits(labels, splits, f"{self.name} in {self.where}")
        listing = work / "torchvision.jsonl"
        if not listing.exists():
            write_pack(_images(self.name, found, report), listing)
        return Contents(labels, read_pack(listing, chosen))

    def _open(self) -> dict[str, Any]:
        """The data set of each split that is there."""
        from torchvision import datasets

        kind: Any = getattr(datasets, self.name, None)
        if self.name not in datasets.__all__:
            raise IjepaError(
                f"torchvision.datasets has no {self.name!r}; it has {', '.join(datasets.__all__)}."
            )
        found, reason = {}, "it knows no split"
        for split, choice in _choices(kind).items():
            try:
                found[split] = kind(self.where, **choice)
            except ABSENT as error:
                reason = " ".join(str(error).split())
        if not found:
            raise IjepaError(f"torchvision finds no {self.name} in {self.where}: {reason}.")
        return found


def _choices(kind: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401  # a class of theirs
    """Arguments by split."""
    parameters = inspect.signature(kind).parameters
    fixed = {"download": False} if "download" in parameters else {}
    if "train" in parameters:
        return {name: {"train": name == "train", **fixed} for name in ("train", "test")}
    if "split" in parameters:
        return {name: {"split": name, **fixed} for name in SPLITS}
    return {DEFAULT_SPLIT: fixed}


def _labels(data: Any) -> Labels:  # noqa: ANN401  # torchvision's classes share no type
    """Class names where the class has them; without integer targets, none."""
    _, target = data[0]
    if not isinstance(target, int | np.integer):
        return {}
    names = getattr(data, "classes", None) or getattr(data, "categories", None)
    if names:
        return {LABEL: named([str(name) for name in names])}
    highest = max(int(data[number][1]) for number in range(len(data)))
    return {LABEL: named([str(number) for number in range(highest + 1)])}


def _images(name: str, found: dict[str, Any], report: Progress) -> Iterator[Packed]:
    done = 0
    for split, data in found.items():
        labels = _labels(data)
        for number in range(len(data)):
            image, target = data[number]
            if not isinstance(image, Image.Image):
                raise IjepaError(f"{name} gives a {type(image).__name__}, not an image.")
            known = {LABEL: int(target)} if labels else {}
            path = f"{split}/{number:07d}.png"
            yield Packed(split, f"{number:07d}.png", path, image, known)
            done += 1
            if done % REPORT_IMAGES == 0:
                report(f"encode {name} images", done, None)
