"""What `ijepa shard` writes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ijepa.config.values import Px, Settings

MAX_PIXELS = 89_478_485  # of an image that is decoded; Pillow's limit (a quarter of 1 GiB of RGB)


class ShardConfig(Settings):
    """What `ijepa shard` writes.

    Attributes:
        resize_px: re-encode so that the short side has this many pixels (never enlarged); None
            passes the original bytes through.
        shard_bytes: the size at which a shard is closed.
        max_bad: more undecodable images than this fail the run. Not part of what the result
            depends on: raising it goes on with what was written.
        subset: sha256 of the list of keys or file names to keep, if one was given.
        splits: only these; empty means every split that the source has.
        val_fraction: where the source has no splits of its own, this share of its images becomes
            `val`, drawn by a hash of each image's name.
        shuffle: put images into shards in an order drawn by a hash of their names, not in that of
            the source, which often goes class by class.
        max_pixels: an image whose header claims more is not decoded, and counts as bad.
        pixel_range: (low, high) values that become black and white in images of one channel with
            more than 8 bits; None scales 16 bits by their whole range and refuses float and 32
            bits.
        exif: `rotate` turns images as their EXIF orientation says and encodes them anew; `ignore`
            leaves them as they are, as the released code does.
        folders_are_classes: the outermost folders are classes, also those called `train` or `test`.
    """

    resize_px: Px | None = None
    shard_bytes: Annotated[int, Field(ge=1, le=2**50)] = 256 * 2**20
    max_bad: Annotated[int, Field(ge=0, exclude=True)] = 0
    subset: str | None = None
    splits: tuple[str, ...] = ()
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shuffle: bool = False
    max_pixels: Annotated[int, Field(ge=1, le=2**32)] = MAX_PIXELS
    pixel_range: tuple[float, float] | None = None
    exif: Literal["ignore", "rotate"] = "ignore"
    folders_are_classes: bool = False

    @field_validator("pixel_range")
    @classmethod
    def _ascends(cls, pixel_range: tuple[float, float] | None) -> tuple[float, float] | None:
        low, high = pixel_range or (0.0, 1.0)
        if low >= high:
            raise ValueError("expected two finite numbers, the lower one first")
        return pixel_range
