"""Every choice that changes a result: typed, frozen, checked when it is made.

Defaults are the published recipe (facebookresearch/ijepa configs/in1k_vith14_ep300.yaml) unless a
comment says otherwise. What does not change a result (device, workers, logging) is in `Runtime`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from ijepa.errors import IjepaError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Range = tuple[Annotated[float, Field(gt=0.0)], Annotated[float, Field(gt=0.0)]]
Px = Annotated[int, Field(ge=1)]
Size = tuple[int, int]
Rgb = tuple[float, float, float]

C = TypeVar("C", bound=BaseModel)


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"the first of {ends} must not exceed the second")
    return ends


AscendingRange = Annotated[Range, AfterValidator(_ascending)]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Config(BaseModel):
    """Base of all configurations: unknown keys are errors, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Runtime(Config):
    """How to run, not what to compute: leaves every result as it is.

    Attributes:
        device: `auto` takes a CUDA device when there is one.
        workers: processes that read and decode; 0 does it in the main process.
        checkpoint_seconds: the most work that a kill may cost.
        micro_batch: images that one process computes at a time, gradients added up; None takes all
            of its share of the batch. Changes memory and rounding, not masks.
        recompute: keep only what enters each block for the backward pass; less memory, more time.
        compile: torch.compile the blocks; minutes at the start, faster afterwards.
        parallel: what processes share: with `ddp` the batch, with `fsdp` the weights, too.
        cache: `decoded` keeps all images in the device's memory and crops them there, batch by
            batch; a value may differ by one level of 255 from that of `none`.
        force: make the output again even if it is there.
    """

    device: str = "auto"
    workers: Annotated[int, Field(ge=0)] = 2
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    recompute: bool = False
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    cache: Literal["none", "decoded"] = "none"
    force: bool = False


RUNTIME = Runtime()


class ShardConfig(Config):
    """What `ijepa shard` writes.

    Attributes:
        resize_px: re-encode so that the short side has this many pixels (never enlarged); None
            passes the original bytes through.
        shard_bytes: the size at which a shard is closed.
        max_bad: more undecodable images than this fail the run. Not part of what the result
            depends on: raising it goes on with what was written.
        subset: sha256 of the list of keys or file names to keep, if one was given.
        splits: only these; empty means every split that the source has.
        val_fraction: where the source has no splits of its own, this share of its images becomes
            `val`, drawn by a hash of each image's name.
        shuffle: put images into shards in an order drawn by a hash of their names, not in that of
            the source, which often goes class by class.
    """

    resize_px: Annotated[int, Field(ge=1)] | None = None
    shard_bytes: Annotated[int, Field(ge=1)] = 256 * 2**20
    max_bad: Annotated[int, Field(ge=0, exclude=True)] = 0
    subset: str | None = None
    splits: tuple[str, ...] = ()
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shuffle: bool = False


class DataConfig(Config):
    """Images as the pretraining sees them (published: no flip, no colour changes)."""

    split: str = "train"
    image_px: Px | tuple[Px, Px] = 224  # side of a square, or (height, width)
    batch_size: Annotated[int, Field(ge=1)] = 2048  # of all devices together
    crop_scale: Range = (0.3, 1.0)  # fraction of the image's area
    crop_aspect: Range = (3 / 4, 4 / 3)  # width / height, as torchvision has it
    flip: bool = False
    eval_crop_fraction: Annotated[float, Field(gt=0, le=1)] = 224 / 256  # of the short side
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD

    @property
    def image_size(self) -> Size:
        """(height, width) in pixels."""
        return height_width(self.image_px)


class StreamConfig(Config):
    """How shards that are not on this machine are shuffled; of no effect on those that are.

    Attributes:
        lanes: streams of shards that each process reads side by side; its workers share them.
        buffer: samples of a lane that are shuffled together, held in memory as encoded images.
        epoch_images: how many images there are, for tars without an index that says it.
    """

    lanes: Annotated[int, Field(ge=1)] = 8
    buffer: Annotated[int, Field(ge=1)] = 1000
    epoch_images: Annotated[int, Field(ge=1)] | None = None


class EncoderConfig(Config):
    """A Vision Transformer without class token (facebookresearch/ijepa vision_transformer.py).

    Attributes:
        arch: a name of `ijepa.method.vit.ARCHITECTURES`.
        patch_px: side of the square patches.
        init: `published` draws every Linear from a normal of std 0.02 cut at 2; `depth-scaled`
            then divides what each block adds by sqrt(2 * its number), which the released code
            intends and undoes; `xavier` is MAE's.
        position_scale: factor on the fixed sin-cos table; published 1.
    """

    arch: str = "vit_huge"
    patch_px: Annotated[int, Field(ge=1)] = 14
    init: Literal["published", "depth-scaled", "xavier"] = "published"
    position_scale: Annotated[float, Field(gt=0)] = 1.0


class PredictorConfig(Config):
    """The narrow ViT that predicts one target block at a time; as many heads as the encoder."""

    dim: Annotated[int, Field(ge=4)] = 384
    depth: Annotated[int, Field(ge=1)] = 12


class _Masks(Config):
    """What all masks share; scales are fractions of the grid's area, aspect is height / width.

    Attributes:
        draw: `published` keeps the released sampler's quirks: one random number for scale and
            aspect, last row and column out of reach, contexts cut to one length by keeping the
            first patches. `symmetric` has none of them.
        min_keep: every context keeps more than this many patches.
        group_size: images over which contexts are cut to one length. The released code cuts over
            those of one GPU, 128 in configs/in1k_vith14_ep300.yaml.
    """

    draw: Literal["published", "symmetric"] = "published"
    min_keep: Annotated[int, Field(ge=0)] = 10
    group_size: Annotated[int, Field(ge=1)] = 128


class MultiblockMasks(_Masks):
    """I-JEPA's own masks: several target blocks, and one context block less the targets.

    The published sampler accepts fewer patches than `min_keep` after 20 tries by letting the last
    target overlap; `symmetric` never does.
    """

    kind: Literal["multiblock"] = "multiblock"
    num_targets: Annotated[int, Field(ge=1)] = 4
    target_scale: AscendingRange = (0.15, 0.2)
    target_aspect: AscendingRange = (0.75, 1.5)
    context_scale: AscendingRange = (0.85, 1.0)


class RasterizedMasks(_Masks):
    """One quadrant of the image predicts the three others (paper, table 6)."""

    kind: Literal["rasterized"] = "rasterized"


class BlockMasks(_Masks):
    """One large block is predicted from all the rest (paper, table 6, which names no aspect)."""

    kind: Literal["block"] = "block"
    target_scale: AscendingRange = (0.6, 0.6)
    target_aspect: AscendingRange = (0.75, 1.5)


class RandomMasks(_Masks):
    """Patches anywhere are predicted from all the rest (paper, table 6)."""

    kind: Literal["random"] = "random"
    target_ratio: Annotated[tuple[Fraction, Fraction], AfterValidator(_ascending)] = (
        0.6,
        0.6,
    )  # drawn once a batch


def _mask_kind(body: object) -> str:
    if isinstance(body, Mapping):
        return str(body.get("kind", "multiblock"))
    return str(getattr(body, "kind", ""))


MaskConfig = Annotated[
    Annotated[MultiblockMasks, Tag("multiblock")]
    | Annotated[RasterizedMasks, Tag("rasterized")]
    | Annotated[BlockMasks, Tag("block")]
    | Annotated[RandomMasks, Tag("random")],
    Discriminator(_mask_kind),
]
MASK_KINDS = ("multiblock", "rasterized", "block", "random")


class TargetConfig(Config):
    """What is predicted, and how far off a prediction is.

    Attributes:
        space: `embeddings` of the target encoder, layer-normed; or, as an ablation (paper, table
            7), the `pixels` of each patch, normalised as the network sees them; or these pixels
            with mean 0 and variance 1 within each patch (MAE's `normalised-pixels`). The paper
            does not say which of the two it took.
        masked: the target encoder sees the whole image and its `output` is masked, as published;
            or its `input` is: it sees a target block alone (paper, table 11).
        loss: the released code's `smooth_l1` (beta 1), the paper's `l2`, or `l1`.
    """

    space: Literal["embeddings", "pixels", "normalised-pixels"] = "embeddings"
    masked: Literal["output", "input"] = "output"
    loss: Literal["smooth_l1", "l2", "l1"] = "smooth_l1"

    @model_validator(mode="after")
    def _pixels_have_no_encoder(self) -> Self:
        if self.space != "embeddings" and self.masked == "input":
            raise ValueError(f"targets.masked is input, but {self.space} come from no encoder")
        return self


class OptimizationConfig(Config):
    """AdamW and the schedules of learning rate, weight decay and EMA momentum, all per step."""

    epochs: Annotated[int, Field(ge=1)] = 300
    warmup_epochs: Annotated[float, Field(ge=0)] = 40
    start_lr: Annotated[float, Field(ge=0)] = 2e-4
    lr: Annotated[float, Field(gt=0)] = 1e-3
    final_lr: Annotated[float, Field(ge=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.04
    final_weight_decay: Annotated[float, Field(ge=0)] = 0.4
    ema: tuple[Fraction, Fraction] = (0.996, 1.0)
    schedule_scale: Annotated[float, Field(gt=0)] = 1.0  # published: ipe_scale
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU, fp32 on CPU


class WatchConfig(Config):
    """How often, and on how many images, the encoders are checked for collapse.

    Attributes:
        every_steps: between two looks.
        num_images: always the same, drawn by the seed.
        label: by which nearest neighbours are scored, where the data have it.
        loss_limit: a loss so many times that of the first step is broken, as one that is not
            finite; it stops the run.
        rollbacks: so many times, instead of stopping, go on from the last checkpoint without the
            batches seen since.
    """

    every_steps: Annotated[int, Field(ge=1)] = 500
    num_images: Annotated[int, Field(ge=8)] = 512
    label: str = "class"
    loss_limit: Annotated[float, Field(gt=1)] = 10.0
    rollbacks: Annotated[int, Field(ge=0)] = 0


class PretrainConfig(Config):
    """One pretraining run, complete.

    Attributes:
        shared_draws: the released code seeds all GPUs alike, so that their crops and masks
            coincide: True repeats those of the first `masks.group_size` images over the batch.
        checkpoint_epochs: keep a checkpoint every so many epochs.
    """

    data: DataConfig = DataConfig()
    stream: StreamConfig = StreamConfig()
    encoder: EncoderConfig = EncoderConfig()
    predictor: PredictorConfig = PredictorConfig()
    masks: MaskConfig = MultiblockMasks()
    targets: TargetConfig = TargetConfig()
    optimization: OptimizationConfig = OptimizationConfig()
    watch: WatchConfig = WatchConfig()
    seed: Seed = 0
    shared_draws: bool = False
    checkpoint_epochs: Annotated[int, Field(ge=1)] = 50

    @model_validator(mode="after")
    def _image_divides_into_patches(self) -> Self:
        image, patch = self.data.image_px, self.encoder.patch_px
        if any(side % patch for side in self.data.image_size):
            raise ValueError(f"data.image_px {image} is not a multiple of encoder.patch_px {patch}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        height, width = self.data.image_size
        return height // self.encoder.patch_px, width // self.encoder.patch_px


class ExtractConfig(Config):
    """What `ijepa extract` writes; the defaults serve both feature choices of the paper (A.2).

    Attributes:
        encoder: what the user named, see `ijepa.encoders`.
        which: `target` (the paper's) or `context`; only for runs that have both.
        split: of the shard set.
        layers: how many of the last blocks to store, each after the final norm.
        image_px: side of the evaluated square, or (height, width); None takes the encoder's own.
        crop: `center` cuts the middle; `squash` takes the whole image, aspect not kept, as VISSL's
            Clevr protocols do.
        dtype: of the stored features.
        seed: of a `random:` encoder.
    """

    encoder: str
    which: Literal["target", "context"] = "target"
    split: str = "train"
    layers: Annotated[int, Field(ge=1)] = 4
    image_px: Px | tuple[Px, Px] | None = None
    crop: Literal["center", "squash"] = "center"
    dtype: Literal["float16", "float32"] = "float16"
    seed: Seed = 0


class ProbeConfig(Config):
    """Which probe to fit on which label, and how its choices are made.

    Attributes:
        name: one of `ijepa.probe.PROBES`.
        label: a label of the feature files.
        holdout: fraction of train on which C, k, learning rates and heads are chosen.
        shots: images a class for `few-shot`; a value below 1 is a fraction of train.
        draws: how often `few-shot` draws its subset.
        seed: of the hold-out, the draws and the heads.
    """

    name: Literal["logistic", "linear", "knn", "few-shot"] = "logistic"
    label: str = "class"
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    shots: tuple[Annotated[float, Field(gt=0)], ...] = (0.01, 1, 5, 10)
    draws: Annotated[int, Field(ge=1)] = 5
    seed: Seed = 0


def height_width(image_px: int | Size) -> Size:
    """(height, width) in pixels of a square named by its side, or of what is no square."""
    return (image_px, image_px) if isinstance(image_px, int) else image_px


def validated(kind: type[C], body: Mapping[str, Any], source: str) -> C:
    """Check a mapping against a configuration; all faults at once, in one line.

    Raises:
        IjepaError: naming `source` and every key that is wrong.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        faults = [_fault(fault) for fault in error.errors()]
        raise IjepaError(f"{source}: {'; '.join(faults)}.") from error


def _fault(fault: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in fault["loc"] if part not in MASK_KINDS)
    if fault["type"] == "extra_forbidden":
        return f"{where} is not a known setting"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where} = {fault['input']!r}: {message}" if where else message
