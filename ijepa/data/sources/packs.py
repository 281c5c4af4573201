"""Images that are no files of their own yet: written one behind the other, and listed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image

from ijepa.data.sources.items import Item


class Packed(NamedTuple):
    """One image that is to be packed; `Item` says what the fields mean."""

    split: str
    name: str
    path: str
    image: Image.Image
    labels: dict[str, int]


def write_pack(images: Iterator[Packed], listing: Path) -> None:
    """Write all images as PNG into one file, and where each begins into `listing`.

    Whole or not at all: the listing gets its name last.
    """
    half = listing.with_suffix(".tmp")
    with _pack(listing).open("wb") as pack, half.open("w") as lines:
        for image in images:
            lines.write(json.dumps(_written(image, pack)) + "\n")
    half.replace(listing)


def read_pack(listing: Path, splits: set[str]) -> Iterator[Item]:
    """The images of some splits, in the order in which they were written."""
    pack = str(_pack(listing))
    with listing.open() as lines:
        for line in lines:
            image = json.loads(line)
            if image["split"] in splits:
                place = (image["path"], pack, image["offset"], image["bytes"])
                yield Item(image["split"], image["name"], *place, image["labels"], {})


def _written(image: Packed, pack: IO[bytes]) -> dict[str, Any]:
    offset = pack.tell()
    image.image.save(pack, "PNG")
    facts: dict[str, Any] = image._asdict() | {"offset": offset, "bytes": pack.tell() - offset}
    del facts["image"]
    return facts


def _pack(listing: Path) -> Path:
    return listing.with_suffix(".pack")
