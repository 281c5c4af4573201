"""Features and what is fitted on them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ijepa.config.values import Few, Interpolation, Precision, Px, Seed, Settings


class ExtractConfig(Settings):
    """What `ijepa extract` writes; the defaults serve both feature choices of the paper (A.2).

    Attributes:
        encoder: what the user named, see `ijepa.encoders`.
        which: `target` (the paper's) or `context`; only for runs that have both.
        split: of the shard set.
        layers: how many of the last blocks to store, each after the final norm.
        image_px: side of the evaluated square, or (height, width); None takes the encoder's own.
        crop: of the evaluation view: `center` cuts the middle; `squash` takes the whole image,
            aspect not kept, as VISSL's Clevr protocols do.
        interpolation: by which all views are resized. Pretraining is bilinear; VISSL's files for
            Vision Transformers, MAE's and DINOv2's evaluations say bicubic.
        views: augmented views of each image, stored beside its evaluation view.
        augment: how they are made: `rrc-flip` crops at random as torchvision's RandomResizedCrop
            (8% to 100% of the area) and mirrors half of them; `flip` only mirrors the evaluation
            view.
        precision: what the encoder computes in; features are float32 before they are stored.
        dtype: of the stored features.
        seed: of a `random:` encoder, and of the augmented views.
    """

    encoder: str
    which: Literal["target", "context"] = "target"
    split: str = "train"
    layers: Few = 4
    image_px: Px | tuple[Px, Px] | None = None
    crop: Literal["center", "squash"] = "center"
    interpolation: Interpolation = "bilinear"
    views: Annotated[int, Field(ge=0, le=2**14)] = 0
    augment: Literal["none", "flip", "rrc-flip"] = "none"
    precision: Precision = "auto"
    dtype: Literal["float16", "float32"] = "float16"
    seed: Seed = 0

    @model_validator(mode="after")
    def _views_are_augmented(self) -> Self:
        if self.views and self.augment == "none":
            raise ValueError("views need augment: rrc-flip or flip")
        if self.augment != "none" and not self.views:
            raise ValueError(f"augment {self.augment} needs views: how many of each image")
        return self


def _whole_or_part(shots: float) -> float:
    if shots >= 1 and not shots.is_integer():
        raise ValueError(f"shots {shots:g} is neither a number of images nor a fraction below 1")
    return shots


class ProbeConfig(Settings):
    """Which probe to fit on which label, and how its choices are made.

    Attributes:
        name: one of `ijepa.probe.PROBES`.
        protocol: one of that probe's; `ijepa` is ours.
        label: a label of the feature files.
        holdout: fraction of train on which C, k, learning rates and heads are chosen.
        shots: images a class for `few-shot`; a value below 1 is a fraction of train.
        draws: how often `few-shot` draws its subset.
        scale: of features for `logistic`, in place of the protocol's: `columns` to mean 0 and
            variance 1, `rows` each centred and of length 1, or `none`.
        precision: what `linear` multiplies matrices in; other probes compute in float32 or float64
            whatever it says.
        subsets: sha256 of each list of training images for `few-shot`, which then draws none.
        seed: of the hold-out, the draws and the heads.
    """

    name: Literal["logistic", "linear", "knn", "few-shot"] = "logistic"
    protocol: str = "ijepa"
    label: str = "class"
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    shots: tuple[Annotated[float, Field(gt=0), AfterValidator(_whole_or_part)], ...] = (
        0.01, 0.1, 1, 5, 10,
    )  # fmt: skip
    draws: Annotated[int, Field(ge=1, le=10**5)] = 5
    scale: Literal["columns", "rows", "none"] | None = None
    precision: Precision = "auto"
    subsets: tuple[str, ...] = ()
    seed: Seed = 0
