"""Settings of all stages but pretraining; each field is described once, here."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from ijepa.config.values import (
    Channels,
    Count,
    EncoderName,
    Few,
    Fraction,
    Interpolation,
    NotNegative,
    Positive,
    Precision,
    Px,
    Range,
    Seed,
    Settings,
)

MAX_PIXELS = 89_478_485  # of an image that is decoded; Pillow's limit (a quarter of 1 GiB of RGB)
# What timm understands; it asserts all else.
RANDAUGMENT = r"^(rand(-([mn]\d+|mmax\d+|(p|mstd)\d+(\.\d+)?|inc[01]|tweights|t3aw?))*)?$"
GROUPS = 8  # of the decoder's group norms; divides every width

# Paper, A.2. Learning rate and weight decay are those of ViT-L/16 there; ViT-H has others.
FINETUNE_PROTOCOLS: dict[str, dict[str, float]] = {
    "imagenet-1pct": {},
    "imagenet-1pct-huge": {"weight_decay": 4e-1},
    "imagenet-full": {
        "batch_size": 528,
        "lr": 1e-4,
        "weight_decay": 0.04,
        "drop_path": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
}

Width = Annotated[int, Field(ge=GROUPS, le=2**13, multiple_of=GROUPS)]
Which = Literal["target", "context"]
CheckpointName = Annotated[str, Field(pattern=r"^[\w-]{1,64}$")]  # of a file, without `.pt`


class ShardConfig(Settings):
    """What `ijepa shard` writes."""

    splits: tuple[str, ...] = ()
    """Read only this split; repeatable. Default: every split of the source."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction held out as `val`, by a hash of each image's name, if the source has no splits."""
    resize_px: Px | None = None
    """Shrink images so that the short side has this many pixels; smaller images are kept."""
    shuffle: bool = False
    """Order images by a hash of their names, so that each shard mixes classes; for streaming."""
    shard_bytes: Annotated[int, Field(ge=1, le=2**50)] = 256 * 2**20
    """Size in bytes at which a shard is closed and the next one begins."""
    # Not part of what the result depends on: raising it goes on with what was written.
    max_bad: Annotated[int, Field(ge=0, exclude=True)] = 0
    """Largest number of images that may fail to decode; they are left out and listed."""
    member: str | None = None
    """Which image of samples that hold several: a member of WebDataset samples, such as left.png,
    or a column of a table."""
    max_pixels: Annotated[int, Field(ge=1, le=2**32)] = MAX_PIXELS
    """Images with more pixels than this are not decoded and count as failed."""
    exif: Literal["ignore", "rotate"] = "ignore"
    """rotate: turn images as their EXIF orientation says; the released code ignores it."""
    folders_are_classes: bool = False
    """The outermost folders are classes, also those called `train`, `test` and so on."""
    # Both count through the folders of maps alone.
    ignored_class: Annotated[int, Field(ge=-1, le=2**16 - 1, exclude=True)] = 255
    """--masks: the value of pixels that are ignored."""
    depth_scale: Annotated[float, Field(gt=0, exclude=True)] = 0.001
    """--depth: metres in one level of a PNG; the floats of a .npy are metres."""
    channels: Channels | None = None
    """Keep images of so many channels in their stored depth (TIFF, 16-bit PNG, .npy; also floats),
    and measure mean and standard deviation of each channel."""
    channel_axis: Literal["first", "last"] | None = None
    """Which axis of a TIFF or .npy the channels are. Default: the one that has as many."""

    part: Annotated[str | None, Field(exclude=True)] = None
    """Write only this part of the shards, such as 3/16 in a job array, to `OUT.part-3-of-16`."""
    merge: Annotated[bool, Field(exclude=True)] = False
    """Make the set of all its parts, once `--part` has written each, and remove them."""

    @field_validator("part")
    @classmethod
    def _is_one_of(cls, part: str | None) -> str | None:
        numbers = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part or "1/1", re.ASCII)
        if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]):
            raise ValueError("expected NUMBER/PARTS, such as 3/16; the first part is 1")
        return part

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.part and self.merge:
            raise ValueError("part writes one part, merge puts all together; choose one")
        if self.channel_axis and not self.channels:
            raise ValueError("channel_axis is of no use without channels")
        if self.channels and self.exif == "rotate":
            raise ValueError("channels keeps pixels as they are; leave exif out")
        return self


class ExtractConfig(Settings):
    """What `ijepa extract` writes; the defaults serve both feature choices of the paper (A.2)."""

    encoder: EncoderName
    """Run folder, checkpoint, random:RUN, random:ARCH[/PATCH][@PX], pixels, or a kind of
    `ijepa encoders`, such as timm:NAME or mae:FILE."""
    which: Which = "target"
    """Which encoder of a run; the paper evaluates the target encoder."""
    checkpoint: CheckpointName = "last"
    """Which checkpoint of a run folder: last, best (that of the health check with the best nearest
    neighbours), or another of its `checkpoints`, such as epoch-0004."""
    split: str = "train"
    """Which split. `evaluation` stands for val, or test, or the only split besides train."""
    layers: Few = 4
    """Number of last blocks whose features are stored, each after the final norm."""
    image_px: Px | tuple[Px, Px] | None = None
    """Side of the image in pixels, or (height, width). Default: the encoder's own size."""
    crop: Literal["center", "squash"] = "center"
    """center crops the centre; squash squeezes the whole image into a square (VISSL, CLEVR)."""
    interpolation: Interpolation = "bilinear"
    """Interpolation of the resize; VISSL, MAE and DINOv2 evaluate with bicubic."""
    views: Annotated[int, Field(ge=0, le=2**14)] = 0
    """Number of augmented views stored for each image, besides its evaluation view."""
    augment: Literal["none", "flip", "rrc-flip"] = "none"
    """How views are made: rrc-flip is a random resized crop (8% to 100% of the area) and a flip."""
    precision: Precision = "auto"
    """Precision of the encoder. auto is bf16 on a GPU that has it, else fp32."""
    dtype: Literal["float16", "float32"] = "float16"
    """Number type of the stored features."""
    tokens: bool = False
    """Also store the patch tokens of the last layer, for attentive and dense probes; the file is
    larger by about the number of patches."""
    seed: Seed = 0
    """Seed of a `random:` encoder, and of the augmented views."""

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
    """Which probe to fit on which label, and how its choices are made."""

    name: Literal[
        "logistic", "linear", "attentive", "knn", "retrieval", "few-shot", "segmentation", "depth"
    ] = "logistic"
    """Which probe to fit."""
    protocol: str = "ijepa"
    """A published protocol. linear: vissl-cifar100, vissl-places205, vissl-inat18, vissl-in1k,
    vissl-in1k-lars, paper-in1k-lars, vissl-clevr-count, vissl-clevr-dist, mae-lars, mae-lars-50,
    dinov2-linear; attentive: vjepa, vjepa2; logistic: msn, msn-5-shot, dinov2; few-shot: msn;
    segmentation: dinov2, dinov3; depth: dinov2. `ijepa` is our own."""
    label: str = "class"
    """Label to predict, such as class, count or dist; a dense label such as seg or depth."""
    shots: tuple[Annotated[float, Field(gt=0), AfterValidator(_whole_or_part)], ...] = (
        0.01, 0.1, 1, 5, 10,
    )  # fmt: skip
    """few-shot: training images for each class, or a fraction of train below 1; repeatable."""
    draws: Annotated[int, Field(ge=1, le=10**5)] = 5
    """few-shot: number of random training subsets for each size."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of train that is held out to choose C, k, learning rate or head."""
    scale: Literal["columns", "rows", "none"] | None = None
    """logistic: how features are scaled, instead of the protocol's way. columns: each to mean 0 and
    variance 1; rows: each centred and scaled to length 1; none: not at all."""
    precision: Precision = "auto"
    """linear, attentive, low-level: precision of matrix products. auto is bf16 on a GPU that has
    it, else fp32. Weights stay fp32; other probes compute in fp32 or fp64."""
    subsets: tuple[str, ...] = ()
    """sha256 of each list of training images for few-shot, which then draws none."""
    seed: Seed = 0
    """Seed of the held-out part, the few-shot subsets and the heads."""


class FinetuneConfig(Settings):
    """One fine-tuning; the defaults are the paper's for 1% of ImageNet-1K and ViT-L/16 (A.2)."""

    encoder: EncoderName
    """A run, a checkpoint, or a kind of `ijepa encoders`, such as timm:NAME or random:ARCH."""
    protocol: Literal["imagenet-1pct", "imagenet-1pct-huge", "imagenet-full"] = "imagenet-1pct"
    """The paper's settings: for 1% of ImageNet, the same for ViT-H, or for all of ImageNet."""
    subset: str = ""
    """Training images: 1%, 10%, 5-per-class, or a list of images, one file name a line; default
    all. Drawn by the seed; a list is recorded by its sha256."""
    label: str = "class"
    """Label to predict."""
    split: str = "train"
    """Split to train on."""
    test_split: str = "evaluation"
    """Split to score on. `evaluation` is val, else test, else the only split not trained on."""
    which: Which = "target"
    """Which encoder of a run; the paper fine-tunes the target encoder."""
    checkpoint: CheckpointName = "last"
    """Which checkpoint of a run folder: last, best (that of the health check with the best nearest
    neighbours), or another of its `checkpoints`, such as epoch-0004."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of each class that is scored after every epoch and not trained on; no protocol has
    any, and nothing is chosen by it."""
    image_px: Px | tuple[Px, Px] | None = None
    """Side of the image in pixels, or (height, width). Default: the encoder's own size."""
    epochs: Annotated[int, Field(ge=1, le=10**6)] = 50
    """Passes over the training images."""
    warmup_epochs: NotNegative = 5.0
    """Epochs in which the learning rate rises; as in MAE, because the paper gives none."""
    batch_size: Annotated[int, Field(ge=2, le=2**20)] = 512
    """Images of a step, over all processes; at most the number of training images."""
    lr: Positive = 3e-5
    """Highest learning rate, for this batch size and the last layer."""
    final_lr: NotNegative = 1e-6
    """Learning rate of the last step."""
    weight_decay: NotNegative = 5e-2
    """Weight decay of AdamW."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Factor on the learning rate from each block to the one below."""
    freeze: Annotated[int, Field(ge=0, le=2**10)] = 0
    """Number of first blocks that are not trained, nor patch embedding and positions. Default: all
    is trained."""
    linear_first: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Epochs in which the linear layer is trained alone, before `epochs` of all layers
    (LP-FT, arXiv 2202.10054)."""
    linear_lr: Positive = 1e-3
    """Highest learning rate of `linear_first`; falls to `final_lr` without a warm-up."""
    label_smoothing: Fraction = 0.1
    """Share of the target that is spread over all classes."""
    drop_path: Fraction = 0.0
    """Probability of skipping the last block; lower for earlier blocks, 0 for the first."""
    randaugment: Annotated[str, Field(pattern=RANDAUGMENT)] = "rand-m9-mstd0.5-inc1"
    """Augmentation, by its name in timm. The default is MAE's; an empty name means none."""
    crop_scale: Range = (0.08, 1.0)
    """Smallest and largest crop, as a fraction of the image's area."""
    mixup: NotNegative = 0.0
    """Alpha of mixup; 0 is none."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix; 0 is none."""
    precision: Precision = "auto"
    """Precision of the network. auto is bf16 on a GPU that has it, else fp32."""
    seed: Seed = 0
    """Seed of the subset, the head and the augmentation."""

    @model_validator(mode="before")
    @classmethod
    def _rest_is_the_protocols(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return FINETUNE_PROTOCOLS.get(str(given.get("protocol")), {}) | given

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if not self.linear_first and self.linear_lr != type(self).model_fields["linear_lr"].default:
            raise ValueError("linear_lr changes nothing without linear_first")
        if self.split == self.test_split:
            raise ValueError(f"split and test_split are both {self.split}")
        return self


class DecoderConfig(Settings):
    """A decoder from one block's average embedding back to the block's pixels.

    Sized for about half an hour of a CPU; the paper's, RCDM, is far larger.
    """

    encoder: EncoderName
    """Run folder, checkpoint of a run, or random:RUN: the decoder needs a predictor."""
    condition: Literal["targets", "predictions"] = "targets"
    """Decode the target encoder's embeddings, averaged over a block, or the predictor's output as
    in the paper (section 7)."""
    steps: Count = 2000
    """Steps of AdamW."""
    split: str = "train"
    """Split to train on."""
    test_split: str = "evaluation"
    """Split to evaluate on. `evaluation` is val, else test, else the only split not trained on."""
    image_px: Annotated[int, Field(ge=8, le=2**12)] = 32
    """Side of the square to which a block's pixels are resized."""
    channels: tuple[Width, ...] = (32, 64, 64)
    """Width of the U-Net at each resolution; each halves the one before."""
    batch_size: Annotated[int, Field(ge=2, le=2**20)] = 32
    """Blocks of a step, one from each image."""
    lr: Positive = 1e-3
    """Highest learning rate."""
    weight_decay: NotNegative = 0.01
    """Weight decay of AdamW."""
    warmup: Fraction = 0.05
    """Fraction of the steps in which the learning rate rises; it then falls to zero."""
    ema: Fraction = 0.995
    """Largest momentum of the averaged weights."""
    statistics_images: Annotated[int, Field(ge=32, le=2**31)] = 1024
    """Number of images over which embeddings are standardised."""
    sampling_steps: Annotated[int, Field(ge=1, le=10**5)] = 25
    """Steps of Euler's method from noise to a sample."""
    evaluated_images: Annotated[int, Field(ge=2, le=2**31)] = 256
    """Number of test images used to evaluate the decoder's samples."""
    precision: Precision = "auto"
    """Precision of the network. auto is bf16 on a GPU that has it, else fp32."""
    seed: Seed = 0
    """Seed of the weights, the blocks and the noise."""

    @model_validator(mode="after")
    def _image_can_be_halved(self) -> Self:
        halved = 2 ** (len(self.channels) - 1)
        if not self.channels or self.image_px % halved:
            raise ValueError(f"image_px {self.image_px} is no multiple of {halved}, see channels")
        return self


class ConvertConfig(Settings):
    """What `ijepa convert` writes."""

    to: Literal["published", "timm", "hf", "ours", "safetensors", "onnx"]
    """Format of facebookresearch/ijepa, of timm, of transformers (hf), of our checkpoints, all
    weights in one safetensors file, or an encoder as ONNX, checked by onnxruntime."""
    which: Which = "target"
    """Which encoder; timm, hf and onnx hold one. The paper evaluates the target encoder."""
    arch: str | None = None
    """Architecture as DIMxDEPTHxHEADS, such as 48x3x3, if the weights do not tell it."""
    license: str | None = None
    """Licence for the model card, by the hub's identifier, such as mit, apache-2.0 or other."""

    @field_validator("license")
    @classmethod
    def _is_identifier(cls, name: str | None) -> str | None:
        # The form alone: the hub has about 75 licences, and adds more.
        if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
            raise ValueError("write the hub's identifier, such as mit, cc-by-nc-4.0 or other")
        return name


class ReportConfig(Settings):
    """What the page of `ijepa report` says beside its inputs."""

    title: str = ""
    """Heading of the page; otherwise the name of the first run."""
    paper: bool = False
    """Show all tables of the paper, not only those that a result fills."""
    tables: tuple[int, ...] = ()
    """Show this table of the paper in any case, by its number; repeatable."""
