"""Small pictures, each different, and the folders and archives that hold them."""

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ijepa.data.sources.items import Request
from ijepa.data.sources.kinds import open_source
from ijepa.errors import IjepaError

FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "JPEG": "JPEG", "png": "PNG", "webp": "WEBP"}


def pixels(seed: int, height: int = 8, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(seed: int, suffix: str = "png", height: int = 8, width: int = 6) -> bytes:
    return as_file(Image.fromarray(pixels(seed, height, width)), FORMATS[suffix])


def as_file(image: Image.Image | int, kind: str, **options) -> bytes:
    """A picture, or that of a seed, encoded as Pillow's `kind`."""
    file = io.BytesIO()
    image = Image.fromarray(pixels(image)) if isinstance(image, int) else image
    image.save(file, kind, **options)
    return file.getvalue()


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            add_member(archive, name, content)
    return path


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def class_folders(num_images: int = 6, suffix: str = "png") -> dict[str, bytes]:
    """Two splits, two classes, names that repeat."""
    return {
        f"{split}/{name}/{number:04d}.{suffix}": encoded(hash_of(split, name, number), suffix)
        for split in ("train", "val")
        for name in ("cat", "dog")
        for number in range(num_images)
    }


def hash_of(*parts: object) -> int:
    """A seed that is the same in every process."""
    return int.from_bytes(repr(parts).encode()) % 2**32


def read(source, work, *splits):
    """Splits with their label names, and items, of a source of images."""
    work.mkdir(exist_ok=True)
    contents = open_source(str(source)).read(Request(work, splits))
    return contents.splits, list(contents.items)


def refused(message: str, *source) -> None:
    """Read a source, which must end in a line with this message."""
    with pytest.raises(IjepaError, match=message):
        read(*source)


def digests(folder: Path) -> dict[str, str]:
    """The files of a shard set but the record, which tells times."""
    files = [path for path in folder.iterdir() if path.name != "stage.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def bytes_of(item) -> bytes:
    with open(item.file, "rb") as file:  # noqa: PTH123  # a string, as sources give it
        return os.pread(file.fileno(), item.size_bytes, item.offset)
