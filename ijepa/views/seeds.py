"""Scores over several seeds."""

import statistics
from collections.abc import Sequence

from ijepa.config import Config
from ijepa.stores.results import ProbeResult


class OverSeeds(Config):
    """Results that differ in nothing but seeds: of the pretraining, of the probe, or both.

    Attributes:
        encoder: of the first of them.
        setting: of the probe; may be empty.
        seeds: (of the encoder, of the probe); None where an encoder has none.
        mean: of top-1; likewise `std`, the standard deviation over seeds.
    """

    protocol: str
    label: str
    encoder: str
    setting: str
    seeds: tuple[tuple[int | None, int], ...]
    mean: float
    std: float


def over_seeds(results: Sequence[ProbeResult]) -> tuple[OverSeeds, ...]:
    """Mean and spread of scores that differ in seeds only.

    One protocol, label and test set; encoders whose settings are equal but for the seed, seen in
    the same way. Scores of equal seeds count once.
    """
    groups: dict[tuple[object, ...], dict[tuple[int | None, int], tuple[str, float]]] = {}
    for result in results:
        for score in result.scores:
            origin = score.origin
            if origin.lineage.family is None:
                continue
            kind = (result.protocol, result.label, result.test_images, origin.which)
            seen = (origin.lineage.family, origin.transform, score.setting)
            seeds = (origin.lineage.seed, result.seed)
            groups.setdefault((*kind, *seen), {})[seeds] = (origin.encoder, score.top1)
    return tuple(
        OverSeeds(
            protocol=str(key[0]),
            label=str(key[1]),
            encoder=next(iter(found.values()))[0],
            setting=str(key[-1]),
            seeds=tuple(found),
            mean=statistics.mean(top1 for _, top1 in found.values()),
            std=statistics.stdev(top1 for _, top1 in found.values()),
        )
        for key, found in groups.items()
        if len(found) > 1
    )
