"""Where an encoder comes from, in the words of the paper's tables."""

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from ijepa.config import Config
from ijepa.files import fingerprint_of


class Provenance(Config):
    """What is known about an encoder beyond its weights; None where it is not known.

    Attributes:
        method: such as `I-JEPA` or `MAE`, as the paper's tables have it.
        arch: such as `ViT-H/14`, likewise; an image of 448 pixels makes it `ViT-H/16 448`.
        epochs: of pretraining.
        data: what it was pretrained on: `IN1k` or `IN22k` for those sets, whole.
        family: 64 hexadecimal digits; equal for encoders that differ in their seed only.
        seed: of the pretraining, or of the random weights.
        settings: of our own pretraining, all but the seed.
        origin: `run` for weights of ours; else the kind of file that they came in first.
        steps: of our own pretraining, likewise `images` seen.
        shards: fingerprint of the shard set that it saw.
    """

    method: str | None = None
    arch: str | None = None
    epochs: int | None = None
    data: str | None = None
    family: str | None = None
    seed: int | None = None
    settings: dict[str, JsonValue] | None = None
    origin: str | None = None
    steps: int | None = None
    images: int | None = None
    shards: str | None = None


UNKNOWN = Provenance()


def run_family(method: str | None, settings: Mapping[str, Any]) -> str:
    """The family of encoders that a method pretrained with equal settings.

    Args:
        method: None for the weights that a run started from.
        settings: of the run as JSON, without the seed.
    """
    return fingerprint_of([method, settings])
