"""ImageNet-1K: class folders, whose validation images may lie flat with their classes in a file."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scipy.io import loadmat

from ijepa.data.sources.archives import open_tree, tree_digest
from ijepa.data.sources.folders import LABEL, read_folders
from ijepa.data.sources.items import Contents, Item, chosen_splits, is_image, kind_of
from ijepa.data.sources.trees import Folder
from ijepa.errors import IjepaError
from ijepa.progress import Progress

DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
KAGGLE = "LOC_val_solution.csv"
IMAGES = ("ILSVRC/Data/CLS-LOC", ".")  # of Kaggle, and of everyone else
NUM_CLASSES = 1000


@dataclass(frozen=True)
class ImageNet:
    """`train/` in folders called by WordNet numbers, `val/` in such folders or flat.

    Classes are numbered in the sorted order of these names, as everywhere, not by the
    `ILSVRC2012_ID` of the development kit.
    """

    where: Path

    def digest(self) -> str:
        """From names, sizes and times."""
        return tree_digest(self.where)

    def read(self, work: Path, splits: tuple[str, ...], _: int, report: Progress) -> Contents:
        """Class folders as any; flat validation images by the file that tells their classes."""
        root = next(
            (self.where / name for name in IMAGES if (self.where / name / "train").is_dir()), None
        )
        if root is None or not _is_flat(root / "val"):
            return read_folders(open_tree(root or self.where, work, report), splits)
        classes = sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir())
        truth = self._truth(set(classes))
        labels = {split: {LABEL: classes} for split in ("train", "val")}
        chosen = chosen_splits(labels, splits, str(self.where))
        left_out = Counter[str]()
        return Contents(labels, _items(root, classes, truth, chosen, left_out), left_out)

    def _truth(self, classes: set[str]) -> dict[str, str]:
        """Class by name of the validation image, without suffix."""
        if (self.where / KAGGLE).is_file():
            truth = _kaggle(self.where / KAGGLE)
        elif (self.where / DEVKIT / TRUTH).is_file():
            truth = _devkit(self.where / DEVKIT)
        else:
            raise IjepaError(
                f"{self.where}/val holds images but no class folders; put {DEVKIT}/{TRUTH} with "
                f"{META}, or Kaggle's {KAGGLE}, into {self.where}."
            )
        unknown = sorted(set(truth.values()) - classes)
        if unknown:
            raise IjepaError(
                f"{self.where}: {len(unknown):,} classes of val have no folder in train, such as "
                f"{unknown[0]}."
            )
        return truth


def _is_flat(folder: Path) -> bool:
    return folder.is_dir() and any(is_image(entry.name) for entry in folder.iterdir())


def _devkit(folder: Path) -> dict[str, str]:
    """Line n of the ground truth is the ILSVRC2012_ID of validation image n."""
    path = folder / META
    if not path.is_file():
        raise IjepaError(f"There is no {path}; it says which class each number is.")
    synsets = loadmat(path, squeeze_me=True)["synsets"]
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets.reshape(-1)}
    truth = {}
    for number, line in enumerate((folder / TRUTH).read_text().split(), 1):
        if not line.isdigit() or not 1 <= int(line) <= NUM_CLASSES or int(line) not in wnids:
            raise IjepaError(f"{folder / TRUTH}, line {number}: {line!r} is no class of {META}.")
        truth[f"ILSVRC2012_val_{number:08d}"] = wnids[int(line)]
    return truth


def _kaggle(path: Path) -> dict[str, str]:
    """`ImageId,PredictionString`; the class is the first word of the second."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"ImageId", "PredictionString"} <= set(rows[0]):
        raise IjepaError(f"{path} has no columns ImageId and PredictionString; download it again.")
    return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}


def _items(
    root: Path,
    classes: list[str],
    truth: Mapping[str, str],
    splits: set[str],
    left_out: Counter[str],
) -> Iterator[Item]:
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    for split in sorted(splits):
        for entry in Folder(root / split).entries():
            if not is_image(entry.path):
                left_out[kind_of(entry.path)] += 1
                continue
            stem = Path(entry.path).stem
            wnid = entry.path.partition("/")[0] if split == "train" else truth.get(stem)
            if wnid not in numbers:
                raise IjepaError(
                    f"{root / split / entry.path} is not among the images whose class is known."
                )
            place = (f"{split}/{entry.path}", entry.file, entry.offset, entry.size_bytes)
            yield Item(split, entry.path, *place, {LABEL: numbers[wnid]}, {})
