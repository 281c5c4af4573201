"""Does the encoder learn, or collapse? In words, from the numbers of health checks; no torch."""

from collections.abc import Mapping
from typing import NamedTuple

TOO_EARLY_IMAGES = 15_000  # seen in training: before, a dip is normal and says nothing


class Health(NamedTuple):
    """State of pooled features over many images."""

    rankme: float  # effective number of dimensions, 1 to min(images, dim)
    feature_std: float  # standard deviation over images, mean over dimensions
    mean_cosine: float  # cosine between different images, mean over pairs, -1 to 1


def is_collapsed(now: Health, first: Health) -> bool:
    """Do all images look alike to the encoder, though they did not at the start?"""
    closer = (1 - now.mean_cosine) / (1 - first.mean_cosine + 1e-12)
    return now.mean_cosine > 0.99 and closer < 0.1  # some data looks alike at the start already


def verdict(now: Health, first: Health) -> str | None:
    """Say in plain words that the encoder collapses, or nothing.

    `first` is the health of the freshly initialised encoder on the same images.
    """
    if is_collapsed(now, first):
        return (
            f"the target encoder is collapsing: all images look alike to it (mean cosine "
            f"{now.mean_cosine:.4f}). Lower the learning rate, raise the EMA momentum, or enlarge "
            f"the context (masks.min_keep)."
        )
    if now.rankme < 0.5 * first.rankme:
        return (
            f"the target encoder is losing dimensions: RankMe {now.rankme:.1f}, at the start "
            f"{first.rankme:.1f}. A dip early on is normal; if it stays, lower the learning rate "
            f"or raise the EMA momentum."
        )
    return None


def outcome(first: Mapping[str, float], last: Mapping[str, float], num_images: int) -> str:
    """One sentence on a run: `learned`, `collapsed`, `too early to tell`, ..., and why.

    The records are of the first health check, of random weights, and of the newest; nearest
    neighbours were counted on `num_images`.
    """
    start, now = (Health(*(record[n] for n in Health._fields)) for record in (first, last))
    if is_collapsed(now, start):
        return "collapsed: all images look alike to the encoder. Lower the learning rate."
    if last.get("images", 0) < TOO_EARLY_IMAGES:
        return f"too early to tell: fewer than {TOO_EARLY_IMAGES:,} images were seen in training."
    if "neighbour_accuracy" not in first:
        skill = last.get("loss_vs_mean_target", 1.0)
        if skill >= 1:
            return "not learned yet: predictions are no better than the mean of the targets."
        return f"no collapse, and predictions have {skill:.2f} of the loss of a constant guess."
    before, after = first["neighbour_accuracy"], last["neighbour_accuracy"]
    spread = 2 * ((before * (1 - before) + after * (1 - after)) / num_images) ** 0.5
    if after - before > spread:
        return "learned: nearest neighbours share the class more often than before training."
    if before - after > spread:
        return "got worse: nearest neighbours share the class less often than before training."
    return "undecided: nearest neighbours are no better than before training. Train longer?"
