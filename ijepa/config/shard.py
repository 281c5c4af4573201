"""What `ijepa shard` writes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ijepa.config.values import Px, Settings


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
    """

    resize_px: Px | None = None
    shard_bytes: Annotated[int, Field(ge=1, le=2**50)] = 256 * 2**20
    max_bad: Annotated[int, Field(ge=0, exclude=True)] = 0
    subset: str | None = None
    splits: tuple[str, ...] = ()
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shuffle: bool = False
