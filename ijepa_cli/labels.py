"""`make report`: print the labels by which images of a shard set can be scored, for its LABELS."""

import sys
from pathlib import Path

from ijepa.data.index import INDEX
from ijepa.data.shards import ShardSet, open_shards
from ijepa.errors import IjepaError
from ijepa_cli.show import print_text, stderr


def scored_labels(shards: ShardSet, train: str, test: str) -> list[str]:
    """`class` if images have it, else every label; only those with two classes or more."""
    splits = [shards.split(train), shards.split(shards.named_split(test, train))]
    usable = [
        name
        for name, classes in splits[0].label_names.items()
        if name in splits[1].label_names and 2 <= len(classes) <= len(splits[0]) // 2
    ]
    return ["class"] if "class" in usable else usable


if __name__ == "__main__":
    try:
        folder, train, test = sys.argv[1:]
        is_made = (Path(folder) / INDEX).is_file()  # not where `make -n` only prints commands
        found = scored_labels(open_shards(Path(folder)), train, test) if is_made else ["class"]
        if not found:
            stderr.print(f"{folder} has no labels to score by: the page shows health checks.")
        print_text(" ".join(found))
    except IjepaError as error:
        sys.exit(f"error: {error}")
