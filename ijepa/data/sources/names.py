"""What names of files, folders, splits and classes mean, for all sources."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable

from ijepa.config.values import is_file_name
from ijepa.errors import IjepaError

LABEL = "class"  # the name of a label that has no other
UNKNOWN = -1  # the class number of an image whose class is not known
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm",
)  # fmt: skip
ARRAYS = (".npy",)  # images with `ijepa shard --channels`
SPLITS = {  # the usual names, and what we call them
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
    "unlabeled": "unlabeled", "unlabelled": "unlabeled",
}  # fmt: skip
# `Training`, `train_set`, `train.X1`, `val2017`, `seg_train`
SPLIT_NAME = re.compile(
    r"(?P<before>(?:[a-z0-9]+[-_. ])*)(?P<split>" + "|".join(SPLITS) + r")"
    r"(?:[-_. ]?(?:set|images?|imgs?|data|split|folder|x\d*|part[-_. ]?\d*|\d+))*",
    re.ASCII | re.IGNORECASE,
)


def check_split_name(split: str, where: str) -> str:
    """Return `split` if it can be part of a file name."""
    if not is_file_name(split):
        raise IjepaError(
            f"{where} names a split {split!r}; a split is letters, digits, '-', '_' and '.'."
        )
    return split


def suffix_of(path: str) -> str:
    """`.jpg` for `a.b/c.JPG`; empty if the name has no dot."""
    base = path.rpartition("/")[2]
    return base[base.rfind(".") :].lower() if "." in base else ""


def is_image(path: str, *, arrays: bool = False) -> bool:
    """Does the name look like an image's; with `arrays`, also like one of NumPy's arrays?"""
    return suffix_of(path) in (*IMAGE_SUFFIXES, *(ARRAYS if arrays else ()))


def kind_of(path: str) -> str:
    """What to count a file as that does not come along: `.xml files`."""
    suffix = suffix_of(path)
    return f"{suffix} files" if suffix else "files without suffix"


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """Which of these folders are splits by their names, and what the splits are called.

    Case, part numbers and words such as `set` or `images` do not matter. A word before the split,
    as in `seg_train`, must be the same before at least two splits: a class may be called
    `steam_train`. Folders of different words for the same split, `val` and `dev`, are different
    splits and keep their names.
    """
    matches = {name: match for name in names if (match := SPLIT_NAME.fullmatch(name))}
    words = {name: (m["before"].lower(), m["split"].lower()) for name, m in matches.items()}
    splits_after = defaultdict(set)
    for before, word in words.values():
        splits_after[before].add(SPLITS[word])
    several = {before for before, splits in splits_after.items() if not before or len(splits) > 1}
    words = {name: word for name, word in words.items() if word[0] in several}
    spellings = Counter(SPLITS[word] for _, word in set(words.values()))
    return {
        name: SPLITS[word] if spellings[SPLITS[word]] == 1 else before + word
        for name, (before, word) in words.items()
    }


def class_name(text: str) -> str:
    """The name in Unicode's composed form (NFC), whichever form a file system wrote."""
    return unicodedata.normalize("NFC", text)
