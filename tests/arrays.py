"""Features in memory, for probes that read them as they read stored ones."""

from typing import NamedTuple

import numpy as np

from ijepa.probes.arrays import Labelled


class ArrayRows(NamedTuple):
    """(rows, layers, dim) floats as a store."""

    values: np.ndarray

    @property
    def shape(self):
        return self.values.shape

    def read(self, rows, layers):
        return self.values[rows][:, self.values.shape[1] - layers :]


def labelled(values, labels, views=None):
    """Images of (rows, layers, dim) features, one row each unless `views` says otherwise."""
    rows = np.arange(len(labels))[:, np.newaxis] if views is None else views
    return Labelled(ArrayRows(values), np.asarray(labels), rows)
