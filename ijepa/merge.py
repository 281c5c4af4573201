"""Several feature files of one encoder as one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ijepa.config import RUNTIME, Config, Runtime, StrPath
from ijepa.errors import IjepaError
from ijepa.features.store import FeatureHeader, Features, open_features
from ijepa.features.writer import FeatureWriter
from ijepa.files import fingerprint_of
from ijepa.progress import Progress, silent
from ijepa.stage import StagePlan, exclusive_work

VERSION = 4
ROWS_AT_ONCE = 1024
ALIKE = (
    "weights_sha256", "which", "layers", "pooling", "image_px", "transform", "class_names",
    "num_views", "augment", "precision",
)  # fmt: skip


class MergeConfig(Config):
    """Nothing to choose; the inputs say it all."""


class MergeOutcome(Config):
    """A finished file and how many images are in it."""

    out: Path
    cached: bool
    images: int


def merge(
    paths: Sequence[StrPath], out: StrPath, runtime: Runtime = RUNTIME, progress: Progress = silent
) -> MergeOutcome:
    """Put the rows of several feature files behind each other.

    Args:
        paths: of the files, which must be of one encoder, seen in one way, with the same labels.
        out: the file to make.
        runtime: `force` makes it again.
        progress: hears of rows copied.

    Raises:
        IjepaError: fewer than two files, files that were not made alike, or an image in two.
    """
    out = Path(out)
    if len(paths) < 2:
        raise IjepaError("Name at least two feature files to merge.")
    stores = [open_features(path) for path in paths]
    for store in stores[1:]:
        _refuse_unlike(stores[0], store)
    _refuse_shared(stores)
    fingerprints = [store.header.fingerprint for store in stores]
    inputs = {str(number): fingerprint for number, fingerprint in enumerate(fingerprints)}
    plan = StagePlan("merge", VERSION, MergeConfig(), inputs, out)
    with exclusive_work(plan, runtime) as work:
        if not work.cached:
            header = _header([store.header for store in stores], plan.fingerprint)
            writer = FeatureWriter(work.folder / out.name, header, stores[0].dtype)
            _copy(stores, writer, progress)
            writer.finish()
            work.publish_file({})
    rows = sum(store.shape[0] for store in stores)
    return MergeOutcome(
        out=out, cached=work.cached, images=rows // (1 + stores[0].header.num_views)
    )


def _refuse_unlike(first: Features, other: Features) -> None:
    for what in ALIKE:
        ours, theirs = getattr(first.header, what), getattr(other.header, what)
        if ours != theirs:
            raise IjepaError(
                f"{first.path} and {other.path} were not made alike: {what} is {ours!r} and "
                f"{theirs!r}."
            )
    if first.shape[1:] != other.shape[1:] or first.dtype != other.dtype:
        raise IjepaError(
            f"{first.path} holds {first.dtype} of {first.shape[1:]} a row, {other.path} "
            f"{other.dtype} of {other.shape[1:]}."
        )


def _refuse_shared(stores: Sequence[Features]) -> None:
    """No image may be in two files."""
    whose: dict[str, Path] = {}
    for store in stores:
        keys = set(store.keys)
        if twice := keys & whose.keys():
            key = min(twice)
            raise IjepaError(
                f"{whose[key]} and {store.path} both hold {len(twice):,} images, such as {key}; "
                f"name files of different images."
            )
        whose |= dict.fromkeys(keys, store.path)


def _header(headers: Sequence[FeatureHeader], fingerprint: str) -> FeatureHeader:
    splits = dict.fromkeys(header.split for header in headers)
    data = list(dict.fromkeys(header.data_fingerprint for header in headers))
    return headers[0].model_copy(
        update={
            "split": "+".join(splits),
            "data_fingerprint": data[0] if len(data) == 1 else fingerprint_of(data),
            "fingerprint": fingerprint,
        }
    )


def _copy(stores: Sequence[Features], writer: FeatureWriter, progress: Progress) -> None:
    """Go on after what stands there already."""
    total, first = sum(store.shape[0] for store in stores), 0
    for store in stores:
        keys, ids, labels, views = store.keys, store.image_ids, store.labels, store.views
        for start in range(0, store.shape[0], ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, store.shape[0]))
            if not writer.holds(first):
                some = slice(start, start + len(rows))
                writer.append(
                    store.read(rows, store.shape[1]),
                    {name: values[some] for name, values in labels.items()},
                    keys[some],
                    ids[some],
                    None if views is None else views[some],
                    first=first,
                )
            first += len(rows)
            progress("merge rows", first, total)
