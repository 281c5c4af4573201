"""Names of images, files, splits and classes; lists that choose images; braces for many files."""

import itertools
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from braceexpand import braceexpand

from ijepa.arrays import Ints
from ijepa.config.values import is_file_name
from ijepa.errors import IjepaError
from ijepa.files import no_file

ESCAPED = frozenset('.%~\\"*:<>?|')  # suffixes, our own marks, what some file systems refuse
SHOWN_LINES = 3  # in an error
BRACE_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)", re.ASCII)
MOST_NAMES = 1_000_000  # that braces stand for
MOST_BRACES = 10  # pairs in one name; each makes every name slower to expand
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
    r"(?:[-_. ]?(?:set|images?|imgs?|data|split|folder|x\d*+|part(?:[-_. ]?\d++)?+|\d++))*",
    re.ASCII | re.IGNORECASE,
)


log = logging.getLogger(__name__)


def class_numbers(names: Iterable[str]) -> dict[str, int]:
    """Numbers of classes 0, 1, ... by name."""
    return {name: number for number, name in enumerate(names)}


def sample_key(split: str, name: str) -> tuple[str, str]:
    """Key and suffix of the image `name` of a split.

    The key is `<split>/<name without suffix>`, percent-encoded where WebDataset readers or file
    systems would stumble; `/`, spaces and letters of any script stay as they are.
    """
    stem, suffix = without_suffix(name)
    return f"{split}/{_escaped(stem)}", _escaped(suffix)


def without_suffix(name: str) -> tuple[str, str]:
    """A path without the suffix of its file, and that suffix without its dot."""
    stem, _, suffix = name.rpartition(".")
    return (stem, suffix) if stem and suffix and "/" not in suffix else (name, "")


def _escaped(text: str) -> str:
    return "".join(
        "".join(f"%{byte:02X}" for byte in letter.encode(errors="surrogateescape"))
        if letter in ESCAPED or not letter.isprintable()
        else letter
        for letter in text
    )


def readable(text: str) -> str:
    """Escape bytes that are not UTF-8, so that a name can be hashed and printed."""
    return text.encode(errors="backslashreplace").decode()


def read_lines(path: Path) -> list[str]:
    """Lines of a list of images that are not blank, each once, in their order; one or more."""
    if not path.is_file():
        raise IjepaError(f"{no_file(path, 'list')}.")
    lines = (line.strip() for line in path.read_text(errors="surrogateescape").splitlines())
    found = [line for line in dict.fromkeys(lines) if line]
    if not found:
        raise IjepaError(f"{path} lists nothing; write one key or file name a line.")
    return found


def listed(path: Path, keys: Sequence[str]) -> Ints:
    """Numbers of the training images that a list names, ascending: the published 1% of ImageNet.

    A line is the key of an image or its path within the split, or a file name, which stands for
    all images called so; with or without suffix. Refuses lines that name no image.
    """
    lines, by_name = read_lines(path), defaultdict(set)
    for line in lines:
        stem = without_suffix(line)[0]
        for name in (line, stem, _escaped(line), _escaped(stem)):  # keys are escaped
            by_name[name].add(line)
    numbers, matched = [], Counter[str]()
    for number, key in enumerate(keys):
        names = {key, key.partition("/")[2], key.rpartition("/")[2]}
        found = {line for name in names for line in by_name.get(name, ())}
        matched.update(found)
        if found:
            numbers.append(number)
    if lost := [line for line in lines if not matched[line]]:
        raise IjepaError(
            f"{path}: {len(lost):,} of {len(lines):,} lines name no training image, such as "
            f"{', '.join(lost[:SHOWN_LINES])}; write keys, paths or file names."
        )
    if several := [line for line in lines if matched[line] > 1]:
        log.warning(
            "%s: %d of %d lines name several images each, such as %s; write keys or paths to name "
            "one.", path, len(several), len(lines), several[0],
        )  # fmt: skip
    return np.array(numbers, dtype=np.int64)


def expanded(text: str) -> tuple[str, ...]:
    """The names that `set-{000..009}.tar` stands for, `MOST_NAMES` at most."""
    try:
        if text.count("{") > MOST_BRACES:
            raise ValueError(f"they are more than {MOST_BRACES} pairs")
        # braceexpand writes down a whole range before it gives the first name.
        ranges = BRACE_RANGE.findall(text)
        is_long = any(abs(int(end) - int(start)) >= MOST_NAMES for start, end in ranges)
        names = () if is_long else tuple(itertools.islice(braceexpand(text), MOST_NAMES + 1))
        if is_long or len(names) > MOST_NAMES:
            raise ValueError(f"they stand for more than {MOST_NAMES:,} names")
    except (ValueError, RecursionError) as error:  # an UnbalancedBracesError is one
        raise IjepaError(
            f"The braces of {text:.200} cannot be expanded: {error}; write braces as in "
            f"set-{{000000..000146}}.tar."
        ) from error
    return names


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
    return readable(f"{suffix} files") if suffix else "files without suffix"


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
