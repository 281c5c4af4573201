"""Features in memory, for probes that read them as they read stored ones, and stores of them."""

import hashlib

import numpy as np

from ijepa.features.store import FeatureHeader
from ijepa.features.write import FeatureWriter, create_features
from ijepa.probes.arrays import LabelledRows


def labelled(values, labels, views=None):
    """Images of (rows, layers, dim) features, one row each unless `views` says otherwise."""
    rows = np.arange(len(labels))[:, np.newaxis] if views is None else views
    return LabelledRows(values, np.asarray(labels), rows)


def image_ids(names):
    """(n,) uint64, one for each name, as images of other bytes have them."""
    digests = (hashlib.sha256(name.encode()).digest() for name in names)
    return np.array([int.from_bytes(digest[:8]) for digest in digests], np.uint64)


def header_of(path, **changes):
    """Of two layers of an encoder `ours`; the split is the name of the file."""
    facts = {
        "encoder": "ours", "weights_sha256": "0" * 64, "which": "target", "layers": (0, 1),
        "pooling": "average", "image_px": 32, "transform": "center-crop", "split": path.stem,
        "data_fingerprint": "some data", "class_names": {"class": None}, "fingerprint": path.name,
    }  # fmt: skip
    return FeatureHeader(**facts | changes)


def write_features(path, header, features, *, keys, labels, image_ids, tokens=None, batch_rows=512):
    """A whole store of (rows, layers, dim) features, and of patch tokens, in their own type."""
    create_features(
        path, header, features.shape, features.dtype.name, keys=keys, labels=labels,
        batch_rows=batch_rows,
    )  # fmt: skip
    writer = FeatureWriter(path)
    for batch, first in enumerate(range(0, len(features), batch_rows)):
        some = slice(first, first + batch_rows)
        of_patches = None if tokens is None else tokens[some]
        writer.write(batch, features[some], image_ids[some], of_patches)
    writer.finish()
    return path
