"""Fine-tuning of a whole encoder with a linear classifier on top."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ijepa.config.values import Fraction, NotNegative, Positive, Px, Range, Seed, Settings


class FinetuneConfig(Settings):
    """One fine-tuning; the defaults are the paper's for 1% of ImageNet-1K and ViT-L/16 (A.2).

    Attributes:
        protocol: what the settings are called in results.
        encoder: what the user named, see `ijepa.encoders`.
        which: `target` (the paper's) or `context`; only for runs that have both.
        label: a label of the shard set.
        split: to train on.
        test_split: to score on; `evaluation` is val, else test, else the only one that is not
            trained on.
        subset: which training images: `1%`, `10%` of each class, `5-per-class`, or empty for all;
            drawn by the seed, unless a list of images was given, which it then calls by its sha256.
        holdout: fraction of each class of these that is watched after every epoch, and not trained
            on; no protocol has any, and nothing is chosen by it.
        image_px: side of the square that is seen, or (height, width); None takes the encoder's own.
        batch_size: of all processes together; no more than there are images.
        lr: at its highest, for that batch and the last layer.
        layer_decay: factor on the learning rate from each block to the one below.
        drop_path: chance to skip the last block; blocks below skip less, the first never.
        randaugment: timm's name of the augmentation; empty for none. MAE's by default.
        crop_scale: fraction of the image's area.
        mixup: alpha, likewise `cutmix`; 0 is none.
    """

    protocol: str = "imagenet-1pct"
    encoder: str
    which: Literal["target", "context"] = "target"
    label: str = "class"
    split: str = "train"
    test_split: str = "evaluation"
    subset: str = ""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    image_px: Px | tuple[Px, Px] | None = None
    epochs: Annotated[int, Field(ge=1, le=10**6)] = 50
    warmup_epochs: NotNegative = 5.0  # MAE's; the paper names none
    batch_size: Annotated[int, Field(ge=2, le=2**20)] = 512
    lr: Positive = 3e-5
    final_lr: NotNegative = 1e-6
    weight_decay: NotNegative = 5e-2
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    label_smoothing: Fraction = 0.1
    drop_path: Fraction = 0.0
    randaugment: str = "rand-m9-mstd0.5-inc1"
    crop_scale: Range = (0.08, 1.0)
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU, fp32 on CPU
    seed: Seed = 0

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        if self.split == self.test_split:
            raise ValueError(f"split and test_split are both {self.split}")
        return self
