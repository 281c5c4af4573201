"""A decoder from one block's average embedding back to the block's pixels."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ijepa.config.values import Count, Fraction, NotNegative, Positive, Seed, Settings

GROUPS = 8  # of the group norms; divides every width

Width = Annotated[int, Field(ge=GROUPS, le=2**13, multiple_of=GROUPS)]


class DecoderConfig(Settings):
    """One decoder; sized for about half an hour of a CPU (the paper's, RCDM, is far larger).

    Attributes:
        encoder: a run, a checkpoint of a run or `random:RUN`: it needs a predictor.
        split: to learn from; likewise `test_split`, on which samples are measured.
        condition: what it learns to decode, averaged over a block: the `targets` that the target
            encoder gives, or the `predictions` of the predictor, as in the paper (section 7).
        image_px: side of the square to which a block's pixels are brought.
        channels: width of the U-Net at each resolution; each halves the one before.
        steps: of AdamW; `batch_size` blocks each, one an image.
        warmup: fraction of the steps in which the learning rate rises; it then falls to nothing.
        ema: at most so much of the averaged weights is kept at each step.
        statistics_images: over which conditions are standardised.
        sampling_steps: of Euler's method, from noise to a sample.
        evaluated_images: of the test split, for the measure of honesty.
    """

    encoder: str
    split: str = "train"
    test_split: str = "evaluation"
    condition: Literal["targets", "predictions"] = "targets"
    image_px: Annotated[int, Field(ge=8, le=2**12)] = 32
    channels: tuple[Width, ...] = (32, 64, 64)
    steps: Count = 2000
    batch_size: Annotated[int, Field(ge=2, le=2**20)] = 32
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.01
    warmup: Fraction = 0.05
    ema: Fraction = 0.995
    statistics_images: Annotated[int, Field(ge=32, le=2**31)] = 1024
    sampling_steps: Annotated[int, Field(ge=1, le=10**5)] = 25
    evaluated_images: Annotated[int, Field(ge=2, le=2**31)] = 256
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU, fp32 on CPU
    seed: Seed = 0

    @model_validator(mode="after")
    def _image_can_be_halved(self) -> Self:
        halved = 2 ** (len(self.channels) - 1)
        if not self.channels or self.image_px % halved:
            raise ValueError(f"image_px {self.image_px} is no multiple of {halved}, see channels")
        return self
