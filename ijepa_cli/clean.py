"""`make clean`: remove outputs that stages made, and nothing else."""

import re
import sys
from pathlib import Path

from ijepa.errors import IjepaError
from ijepa.records import remove_output
from ijepa_cli.show import print_text

BESIDE = r"(\.stage\.json|\.partial|\.outdated|\.lock)+$"  # what follows the name of an output


def clean(path: Path) -> None:
    """Remove the output `path`, and say so."""
    if remove_output(path):
        print_text(f"removed  {path}\n")


def clean_folder(folder: Path) -> None:
    """Remove every output in a folder, then the folder if nothing is left in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    found = {re.sub(BESIDE, "", path.name) for path in folder.iterdir()}
    for name in sorted(found):
        clean(folder / name)
        clean_folder(folder / name)
    if not any(folder.iterdir()):
        folder.rmdir()


if __name__ == "__main__":
    try:
        for argument in sys.argv[1:]:
            (clean_folder if argument.endswith("/") else clean)(Path(argument))
    except IjepaError as error:
        sys.exit(f"error: {error}")
