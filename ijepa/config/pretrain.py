"""One pretraining run: data, networks, targets, optimisation, watch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ijepa.config.masks import MaskConfig, MultiblockMasks
from ijepa.config.values import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MOST,
    AscendingNumbers,
    Batch,
    Count,
    Few,
    Fraction,
    NotNegative,
    Positive,
    Px,
    Range,
    Rgb,
    Seed,
    Settings,
    Size,
    height_width,
)

MOST_PATCHES = 2**14  # of an image: attention grows with the square


class DataConfig(Settings):
    """Images as the pretraining sees them (published: no flip, no colour changes)."""

    split: str = "train"
    image_px: Px | tuple[Px, Px] = 224  # side of a square, or (height, width)
    batch_size: Batch = 2048  # of all devices together
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


class StreamConfig(Settings):
    """How shards that are not on this machine are shuffled; of no effect on those that are.

    Attributes:
        lanes: streams of shards that each process reads side by side; its workers share them.
        buffer: samples of a lane that are shuffled together, held in memory as encoded images.
        epoch_images: how many images there are, for tars without an index that says it.
    """

    lanes: Few = 8
    buffer: Count = 1000
    epoch_images: Annotated[int, Field(ge=1, le=2**40)] | None = None


class EncoderConfig(Settings):
    """A Vision Transformer without class token (facebookresearch/ijepa vision_transformer.py).

    Attributes:
        arch: a name of `ijepa.config.architectures.ARCHITECTURES`.
        patch_px: side of the square patches.
        init: `published` draws every Linear from a normal of std 0.02 cut at 2; `depth-scaled`
            then divides what each block adds by sqrt(2 * its number), which the released code
            intends and undoes; `xavier` is MAE's.
        position_scale: factor on the fixed sin-cos table; published 1.
    """

    arch: str = "vit_huge"
    patch_px: Px = 14
    init: Literal["published", "depth-scaled", "xavier"] = "published"
    position_scale: Positive = 1.0


class PredictorConfig(Settings):
    """The narrow ViT that predicts one target block at a time; as many heads as the encoder."""

    dim: Annotated[int, Field(ge=4, le=2**14)] = 384
    depth: Few = 12


class TargetConfig(Settings):
    """What is predicted, and how far off a prediction is.

    Attributes:
        space: `embeddings` of the target encoder, layer-normed; or, as an ablation (paper, table
            7), the `pixels` of each patch, normalised as the network sees them; or these pixels
            with mean 0 and variance 1 within each patch (MAE's `normalised-pixels`). The paper
            does not say which of the two it took.
        masked: the target encoder sees the whole image and its `output` is masked, as published;
            or its `input` is: it sees a target block alone (paper, table 11).
        layers: blocks of the target encoder, counted from 1 and ascending, whose outputs are
            predicted side by side, each layer-normed (Bootleg, arXiv 2603.15553: a quarter, half,
            three quarters and all of the depth). None takes the last block alone, as published.
        loss: the released code's `smooth_l1` (beta 1), the paper's `l2`, or `l1`.
    """

    space: Literal["embeddings", "pixels", "normalised-pixels"] = "embeddings"
    masked: Literal["output", "input"] = "output"
    layers: AscendingNumbers | None = None
    loss: Literal["smooth_l1", "l2", "l1"] = "smooth_l1"

    @model_validator(mode="after")
    def _pixels_have_no_encoder(self) -> Self:
        if self.space != "embeddings" and self.masked == "input":
            raise ValueError(f"targets.masked is input, but {self.space} come from no encoder")
        if self.space != "embeddings" and self.layers is not None:
            raise ValueError(f"targets.layers names blocks, but {self.space} come from no encoder")
        return self


class OptimizationConfig(Settings):
    """AdamW and the schedules of learning rate, weight decay and EMA momentum, all per step.

    Attributes:
        precision: of matrix products and attention; `auto` is bf16 on a GPU and fp32 on a CPU.
        teacher: what the target encoder computes in where `precision` is bf16: wholly in `bf16`, or
            in `mixed` precision as the other networks. Its weights are float32 either way.
        schedule: after the warm-up, `cosine` takes the learning rate to `final_lr` and the weight
            decay to `final_weight_decay`, as published. `hold-then-cool` holds both at `lr` and
            `weight_decay`, and takes the learning rate to `final_lr` at the end, as V-JEPA 2.
        cool_fraction: the last fraction of all steps, over which `hold-then-cool` cools.
        ema: momentum of the target encoder at the first and at the last step, linear between them;
            equal numbers hold it.
    """

    epochs: Annotated[int, Field(ge=1, le=10**6)] = 300
    warmup_epochs: NotNegative = 40
    start_lr: NotNegative = 2e-4
    lr: Positive = 1e-3
    final_lr: NotNegative = 1e-6
    weight_decay: NotNegative = 0.04
    final_weight_decay: NotNegative = 0.4
    ema: tuple[Fraction, Fraction] = (0.996, 1.0)
    schedule_scale: Positive = 1.0  # published: ipe_scale
    schedule: Literal["cosine", "hold-then-cool"] = "cosine"
    cool_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    teacher: Literal["bf16", "mixed"] = "bf16"


class WatchConfig(Settings):
    """How often, and on how many images, the encoders are checked for collapse.

    Attributes:
        every_steps: between two looks.
        grad_norm_steps: the gradient norm is measured in every so many steps.
        num_images: always the same, drawn by the seed.
        label: by which nearest neighbours are scored, where the data have it.
        loss_limit: a loss so many times that of the first step is broken, as one that is not
            finite; it stops the run.
        rollbacks: so many times, instead of stopping, go on from the last checkpoint without the
            batches seen since.
    """

    every_steps: Count = 500
    grad_norm_steps: Count = 10
    num_images: Annotated[int, Field(ge=8, le=2**20)] = 512
    label: str = "class"
    loss_limit: Annotated[float, Field(gt=1, le=MOST)] = 10.0
    rollbacks: Annotated[int, Field(ge=0, le=10**6)] = 0


class PretrainConfig(Settings):
    """One pretraining run, complete.

    Attributes:
        shared_draws: the released code seeds all GPUs alike, so that their crops and masks
            coincide: True repeats those of the first `masks.group_size` images over the batch.
        checkpoint_epochs: keep a checkpoint every so many epochs.
        init: digest of the weights that the run starts from, filled in from `--init`; None for
            random ones, drawn by the seed.
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
    checkpoint_epochs: Count = 50
    init: str | None = None

    @model_serializer(mode="wrap")
    def _without_an_empty_init(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Runs made before this setting existed are of the same settings."""
        body: dict[str, object] = serialize(self)
        return {name: value for name, value in body.items() if (name, value) != ("init", None)}

    @model_validator(mode="after")
    def _patches_are_not_too_many(self) -> Self:
        rows, columns = self.grid
        if rows * columns > MOST_PATCHES:
            raise ValueError(
                f"data.image_px {self.data.image_px} has {rows} x {columns} patches of "
                f"{self.encoder.patch_px} px, more than {MOST_PATCHES:,}"
            )
        return self

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
