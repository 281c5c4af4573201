"""One pretraining run: data, networks, masks, targets, optimisation, health checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ijepa.config.values import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MOST,
    AscendingFractions,
    AscendingNumbers,
    AscendingRange,
    Batch,
    Channels,
    Count,
    Few,
    Fraction,
    NotNegative,
    PixelStats,
    Positive,
    Positives,
    Precision,
    Px,
    Range,
    Reals,
    Seed,
    Settings,
    Size,
    height_width,
)
from ijepa.errors import IjepaError

MOST_PATCHES = 2**14  # of an image: attention grows with the square


class DataConfig(Settings):
    """Images as the pretraining sees them (published: no flip, no colour changes)."""

    split: str = "train"
    """Split to train on."""
    image_px: Px | tuple[Px, Px] = 224
    """Side of the square, or (height, width)."""
    batch_size: Batch = 2048
    """Images of a step, over all devices together."""
    crop_scale: Range = (0.3, 1.0)
    """Smallest and largest crop, as a fraction of the image's area."""
    crop_aspect: Range = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a crop, as torchvision has it."""
    flip: bool = False
    """Mirror half of the crops."""
    eval_crop_fraction: Annotated[float, Field(gt=0, le=1)] = 224 / 256
    """Part of the short side that the evaluation view keeps."""
    mean: Reals = IMAGENET_MEAN
    """Mean of each channel, which is subtracted from pixels in [0, 1]."""
    std: Positives = IMAGENET_STD
    """Standard deviation of each channel, by which pixels are then divided."""
    channels: Channels | None = None
    """Channels of images that are not 8-bit RGB. Default: those of the shard set, with the mean and
    std that it records."""

    @model_validator(mode="after")
    def _channels_agree(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            is_default = self.channels is not None and name not in self.model_fields_set
            if len(values) != self.num_channels and not is_default:
                raise ValueError(
                    f"data.{name} has {len(values)} numbers for {self.num_channels} channels"
                )
        return self

    @property
    def num_channels(self) -> int:
        """Of the images that the network takes."""
        return self.channels or 3

    def fitted(self, pixels: PixelStats | None, where: object = "the shard set") -> Self:
        """These settings for images of the shard set `where`: its channels, mean and std.

        With `channels` named, its own `mean` and `std` stay, where they are named. An `IjepaError`
        refuses channels that are not those of the images.
        """
        found = pixels.channels if pixels else 3
        if self.channels not in (None, found):
            raise IjepaError(
                f"{where} holds images of {found} channels, and data.channels is {self.channels}; "
                f"leave it out, or shard images of as many with `ijepa shard --channels`."
            )
        if pixels is None:
            return self.model_copy(update={"channels": None})
        given = self.model_fields_set if self.channels else set()
        measured = {"mean": pixels.mean, "std": pixels.std}
        own = {name: value for name, value in measured.items() if name not in given}
        return self.model_copy(update={"channels": found, **own})

    @property
    def image_size(self) -> Size:
        """(height, width) in pixels."""
        return height_width(self.image_px)

    def transform_text(self, interpolation: str, crop_fraction: float | None) -> str:
        """The evaluation view in words, as feature files and scores record it; None: squashed."""
        crop = "squash" if crop_fraction is None else f"center-crop {crop_fraction:.4g}"
        return f"{crop}, {interpolation} to {self.image_px}, mean {self.mean}, std {self.std}"


class StreamConfig(Settings):
    """How shards that are not on this machine are shuffled; of no effect on those that are."""

    lanes: Few = 8
    """Streams of shards that each process reads side by side; its workers share them."""
    buffer: Count = 1000
    """Samples of a lane that are shuffled together, held in memory as encoded images."""
    epoch_images: Annotated[int, Field(ge=1, le=2**40)] | None = None
    """How many images there are, for tars without an index that says it."""
    member: str | None = None
    """Which image of samples that hold several, such as left.png."""
    # Not part of what the result depends on, as in `ShardConfig`.
    max_bad: Annotated[int, Field(ge=0, exclude=True)] = 0
    """Largest number of samples, in each process, without an image that decodes; another of the
    batch takes the place of each."""


class EncoderConfig(Settings):
    """A Vision Transformer without class token (facebookresearch/ijepa vision_transformer.py)."""

    arch: str = "vit_huge"
    """A name of `ARCHITECTURES`, such as vit_small, or DIMxDEPTHxHEADS."""
    patch_px: Px = 14
    """Side of the square patches."""
    init: Literal["published", "depth-scaled", "xavier"] = "published"
    """`published` draws every Linear from a normal of std 0.02 cut at 2; `depth-scaled` then
    divides what each block adds by sqrt(2 * its number), which the released code intends and
    undoes; `xavier` is MAE's."""
    position_scale: Positive = 1.0
    """Factor on the fixed sin-cos table of positions."""


class PredictorConfig(Settings):
    """The narrow ViT that predicts one target block at a time; as many heads as the encoder."""

    dim: Annotated[int, Field(ge=4, le=2**14)] = 384
    """Width."""
    depth: Few = 12
    """Number of blocks."""


class _Masks(Settings):
    """What all masks share; scales are fractions of the grid's area, aspect is height / width."""

    draw: Literal["published", "symmetric"] = "published"
    """`published` keeps the released sampler's quirks: one random number for scale and aspect, last
    row and column out of reach, contexts cut to one length by keeping the first patches;
    `symmetric` has none of them."""
    min_keep: Annotated[int, Field(ge=0, le=2**14)] = 10
    """Every context keeps more than this many patches."""
    context_patches: Annotated[int, Field(ge=1, le=2**14)] | None = None
    """Cut every context of the run to exactly this many patches, so that all steps have one length;
    without it, each group of images is cut to the shortest context in it, as published."""
    group_size: Batch = 128
    """Images over which contexts are cut to one length. The released code cuts over those of one
    GPU, 128 in configs/in1k_vith14_ep300.yaml."""
    draws_per_image: Few = 1
    """Contexts, each with its own target blocks, that are drawn for an image in a step; all are
    predicted from one pass of the target encoder."""

    @property
    def fewest_context_patches(self) -> int:
        """Patches that every context keeps at least, before the cut."""
        return max(self.min_keep + 1, self.context_patches or 0)


class MultiblockMasks(_Masks):
    """I-JEPA's own masks: several target blocks, and one context block less the targets.

    After 20 tries without a context of more than `min_keep` patches, the published sampler lets it
    overlap the last target, then the last but one; `symmetric` never does.
    """

    kind: Literal["multiblock"] = "multiblock"
    """multiblock, rasterized, block or random."""
    num_targets: Few = 4
    """Target blocks of an image."""
    target_scale: AscendingRange = (0.15, 0.2)
    """Smallest and largest target block, as a fraction of the grid's area."""
    target_aspect: AscendingRange = (0.75, 1.5)
    """Smallest and largest height / width of a target block."""
    context_scale: AscendingRange = (0.85, 1.0)
    """Smallest and largest context block, as a fraction of the grid's area."""


class RasterizedMasks(_Masks):
    """One quadrant of the image predicts the three others (paper, table 6)."""

    kind: Literal["rasterized"] = "rasterized"
    """multiblock, rasterized, block or random."""


class BlockMasks(_Masks):
    """One large block is predicted from all the rest (paper, table 6, which names no aspect)."""

    kind: Literal["block"] = "block"
    """multiblock, rasterized, block or random."""
    target_scale: AscendingRange = (0.6, 0.6)
    """Smallest and largest target block, as a fraction of the grid's area."""
    target_aspect: AscendingRange = (0.75, 1.5)
    """Smallest and largest height / width of the block."""


class RandomMasks(_Masks):
    """Patches anywhere are predicted from all the rest (paper, table 6)."""

    kind: Literal["random"] = "random"
    """multiblock, rasterized, block or random."""
    target_ratio: AscendingFractions = (0.6, 0.6)
    """Smallest and largest fraction of patches that are targets; drawn once a batch."""


def _with_kind(body: object) -> object:
    return {"kind": "multiblock"} | dict(body) if isinstance(body, Mapping) else body


MaskConfig = Annotated[
    MultiblockMasks | RasterizedMasks | BlockMasks | RandomMasks,
    Field(discriminator="kind"),
    BeforeValidator(_with_kind),
]


class TargetConfig(Settings):
    """What is predicted, and how far off a prediction is."""

    space: Literal["embeddings", "pixels", "normalised-pixels"] = "embeddings"
    """`embeddings` of the target encoder, layer-normed; or, as an ablation (paper, table 7), the
    `pixels` of each patch, normalised as the network sees them; or these with mean 0 and variance 1
    within each patch (MAE's). The paper does not say which of the two it took."""
    masked: Literal["output", "input"] = "output"
    """The target encoder sees the whole image and its `output` is masked, as published; or its
    `input` is: it sees a target block alone (paper, table 11)."""
    layers: AscendingNumbers | None = None
    """Blocks of the target encoder, counted from 1 and ascending, whose outputs are predicted side
    by side, each layer-normed (Bootleg, arXiv 2603.15553: a quarter, half, three quarters and all
    of the depth). Without it, the last block alone, as published."""
    norm: Literal["layer", "dyntanh", "none"] = "layer"
    """What the target encoder's tokens pass after its own last norm: `layer`, a layer norm without
    weights, as published; `dyntanh`, tanh(x / 2), which bounds them and keeps their lengths apart
    (arXiv 2508.02829, there with learned factors); or `none`."""
    loss: Literal["smooth_l1", "l2", "l1"] = "smooth_l1"
    """The released code's `smooth_l1` (beta 1), the paper's `l2`, or `l1`."""

    @model_validator(mode="after")
    def _pixels_have_no_encoder(self) -> Self:
        if self.space == "embeddings":
            return self
        given = {
            "masked is input": self.masked == "input",
            "layers names blocks": self.layers is not None,
            f"norm is {self.norm}": self.norm != "layer",
        }
        for setting in (name for name, is_given in given.items() if is_given):
            raise ValueError(f"targets.{setting}, but {self.space} come from no encoder")
        return self


class OptimizationConfig(Settings):
    """AdamW and the schedules of learning rate, weight decay and EMA momentum, all per step."""

    epochs: Annotated[int, Field(ge=1, le=10**6)] = 300
    """Passes over the images."""
    warmup_epochs: NotNegative = 40
    """Epochs in which the learning rate rises."""
    start_lr: NotNegative = 2e-4
    """Learning rate of the first step."""
    lr: Positive = 1e-3
    """Highest learning rate."""
    final_lr: NotNegative = 1e-6
    """Learning rate at the end of the schedule."""
    weight_decay: NotNegative = 0.04
    """Weight decay at the first step."""
    final_weight_decay: NotNegative = 0.4
    """Weight decay at the end of the schedule."""
    ema: tuple[Fraction, Fraction] = (0.996, 1.0)
    """Momentum of the target encoder at the first and at the last step, linear between them; equal
    numbers hold it."""
    schedule_scale: Annotated[float, Field(ge=1, le=MOST)] = 1.0
    """Length of the schedules over that of the training (published: ipe_scale)."""
    schedule: Literal["cosine", "hold-then-cool"] = "cosine"
    """After the warm-up, `cosine` takes the learning rate to `final_lr` and the weight decay to
    `final_weight_decay`, as published; `hold-then-cool` holds both, and takes the learning rate to
    `final_lr` at the end, as V-JEPA 2."""
    cool_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Last fraction of all steps, over which `hold-then-cool` cools."""
    precision: Precision = "auto"
    """Of matrix products and attention; auto: bf16 on a GPU that has it, else fp32."""
    teacher: Literal["bf16", "mixed"] = "bf16"
    """What the target encoder computes in where `precision` is bf16: wholly in `bf16`, or in
    `mixed` precision as the other networks. Its weights are float32 either way."""


class WatchConfig(Settings):
    """How often, and on how many images, the encoders are checked for collapse."""

    every_steps: Count = 500
    """Steps between two health checks."""
    grad_norm_steps: Count = 10
    """Steps between two measurements of the gradient norm."""
    num_images: Annotated[int, Field(ge=8, le=2**20)] = 512
    """Images of a health check; always the same, drawn by the seed."""
    held_out: bool = False
    """Leave these images out of the training, so that their nearest neighbours say how the encoder
    does on images that it has not seen. The paper trains on all."""
    label: str = "class"
    """Label by which nearest neighbours are scored, where the data have it; no label reaches the
    training."""
    keep_best: bool = True
    """Keep the state of the health check with the best nearest neighbours as
    `checkpoints/best.pt`."""
    loss_limit: Annotated[float, Field(gt=1, le=MOST)] = 10.0
    """A loss this many times that of the first step stops the run, as one that is not finite."""


class PretrainConfig(Settings):
    """One pretraining run, complete."""

    data: DataConfig = DataConfig()
    stream: StreamConfig = StreamConfig()
    encoder: EncoderConfig = EncoderConfig()
    predictor: PredictorConfig = PredictorConfig()
    masks: MaskConfig = MultiblockMasks()
    targets: TargetConfig = TargetConfig()
    optimization: OptimizationConfig = OptimizationConfig()
    watch: WatchConfig = WatchConfig()
    seed: Seed = 0
    """Seed of the weights, the order of images, the crops and the masks."""
    shared_draws: bool = False
    """Repeat the crops and masks of the first `masks.group_size` images over the batch: the
    released code seeds all GPUs alike, so that theirs coincide."""
    checkpoint_epochs: Count = 50
    """Keep a checkpoint every so many epochs."""
    init: str | None = None
    """Digest of the weights that the run starts from, filled in from `--init`."""

    @model_validator(mode="after")
    def _image_divides_into_patches_that_are_not_too_many(self) -> Self:
        image, patch = self.data.image_px, self.encoder.patch_px
        rows, columns = self.grid
        if rows * columns > MOST_PATCHES:
            raise ValueError(
                f"data.image_px {image} has {rows} x {columns} patches of {patch} px, more than "
                f"{MOST_PATCHES:,}"
            )
        if any(side % patch for side in self.data.image_size):
            raise ValueError(f"data.image_px {image} is not a multiple of encoder.patch_px {patch}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        height, width = self.data.image_size
        return height // self.encoder.patch_px, width // self.encoder.patch_px
