"""Types of NumPy arrays by what they hold; docstrings say their shapes."""

from typing import Any

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.floating[Any]]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
