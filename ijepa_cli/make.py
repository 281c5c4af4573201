"""For the Makefile: `clean PATHS`, and `labels SHARDS TRAIN TEST`, which prints those to score by.

A path to clean is an output of a stage; one that ends with `/`, a folder of outputs.
"""

import re
import sys
from pathlib import Path

from ijepa.data.index import INDEX
from ijepa.data.shards import ShardSet, open_shards
from ijepa.errors import IjepaError
from ijepa.files import BESIDE
from ijepa.records import remove_output
from ijepa_cli.show import print_text, stderr


def clean(path: Path) -> None:
    """Remove the output `path`, and say so."""
    if remove_output(path):
        print_text(f"removed  {path}\n")


def clean_folder(folder: Path) -> None:
    """Remove every output in a folder, then the folder if nothing is left in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    beside = rf"({'|'.join(map(re.escape, BESIDE))})+$"  # follows the name of an output
    found = {re.sub(beside, "", path.name) for path in folder.iterdir()}
    for name in sorted(found):
        clean(folder / name)
        clean_folder(folder / name)
    if not any(folder.iterdir()):
        folder.rmdir()


def scored_labels(shards: ShardSet, train: str, test: str) -> list[str]:
    """`class` if images have it, else every label; only those with two classes or more.

    A label whose name make cannot take as part of a file's is left out.
    """
    splits = [shards.split(train), shards.split(shards.named_split(test, train))]
    usable = [
        name
        for name, classes in splits[0].label_names.items()
        if name in splits[1].label_names and 2 <= len(classes) <= len(splits[0]) // 2
    ]
    if "class" in usable:
        return ["class"]
    if odd := [name for name in usable if not re.fullmatch(r"[A-Za-z0-9_-]+", name)]:
        stderr.print(f"make takes no label {', '.join(map(repr, odd))}: score it by `ijepa probe`.")
    return [name for name in usable if name not in odd]


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    try:
        if what == "clean":
            for argument in arguments:
                (clean_folder if argument.endswith("/") else clean)(Path(argument))
        else:
            folder, train, test = arguments
            is_made = (Path(folder) / INDEX).is_file()  # not where `make -n` only prints commands
            found = scored_labels(open_shards(folder), train, test) if is_made else ["class"]
            if not found:
                stderr.print(f"{folder} has no labels to score by: the page shows health checks.")
            print_text(" ".join(found))
    except IjepaError as error:
        sys.exit(f"error: {error}")
