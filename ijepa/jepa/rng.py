"""Random streams: what is drawn for a step depends on (seed, purpose, step) and nothing else."""

import numpy as np

# What a stream is for: `stream(seed, CROPS, step)`.
SHUFFLE, CROPS, MASKS, VIEWS, SHARDS, BUFFERS, AUGMENTED, NOISE, SKIPPED = range(9)


def stream(seed: int, purpose: int, number: int) -> np.random.Generator:
    """Random numbers of their own for each (seed, purpose, number), such as a step's crops."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, purpose, number])))
