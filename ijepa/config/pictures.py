"""Settings of pictures, one class a kind; each field is described once, here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ijepa.config.pretrain import PretrainConfig
from ijepa.config.values import Channels, Count, EncoderName, Seed, Settings

Sheet = Annotated[int, Field(ge=1, le=64)]  # how many rows or columns a sheet may have


class PictureConfig(Settings):
    """What all pictures have."""

    dark: bool = False
    """Draw on a dark background."""
    show_channels: tuple[Channels, Channels, Channels] | None = None
    """Channels, counted from 1, to show as red, green and blue of images that are not 8-bit RGB;
    one thrice is grey. Default: the first three; of one or two channels, the first."""


class MasksConfig(PictureConfig):
    """A recipe's masks on images, and how often each patch is seen."""

    recipe: PretrainConfig = PretrainConfig()
    """Its masks, grid, batch and crops."""
    images: Sheet = 4
    """How many images to draw."""
    batches: Count = 100
    """Batches over which ratios and shares are counted."""


class EncodersConfig(PictureConfig):
    """Encoders side by side, looking at some images of a split."""

    encoder: Annotated[tuple[EncoderName, ...], Field(min_length=1)]
    """Encoder, named as for `ijepa extract`; repeat it to compare several side by side."""
    which: Literal["target", "context"] = "target"
    """Which encoder of a run; the paper evaluates the target encoder."""
    split: str = "evaluation"
    """Which split. `evaluation` stands for val, or test, or the only split besides train."""
    images: Sheet = 6
    """How many images to draw."""
    keys: tuple[str, ...] = ()
    """Key of an image to draw, instead of random images; repeatable."""
    seed: Seed = 0
    """Seed of the random choice of images."""

    @field_validator("encoder")
    @classmethod
    def _differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("an encoder is named twice; name each once")
        return names


class AttentionConfig(EncodersConfig):
    """Draw which patches attend to which, for each head of a block."""

    images: Sheet = 4
    """How many images to draw."""
    layer: int = -1
    """Number of the block whose attention heads are shown; -1 is the last."""
    query: Annotated[tuple[str, ...], Field(min_length=1)] = ("center", "mean")
    """Whose attention: center (the middle patch), mean (over all patches, as the average-pooled
    feature reads them), class (the class token), or ROW,COL; repeatable."""


class PcaConfig(EncodersConfig):
    """Draw patch tokens as colours: their first three principal components."""

    layer: Annotated[tuple[int, ...], Field(min_length=1)] = (-1,)
    """Number of a block to show; -1 is the last; repeatable."""
    batch: Count = 64
    """Number of images, including those shown, on whose patches the components are fitted."""
    foreground: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Colour only patches whose first component, from 0 to 1, is above this; try 0.5."""


class RetrievalConfig(EncodersConfig):
    """Draw predictions of hidden blocks as the most similar real patches; needs no decoder."""

    measured: Count = 128
    """Number of images, including those shown, over which errors are averaged."""
    store_split: str = "train"
    """Split from which real patches are taken; never from the image that is predicted."""
    store_images: Count = 512
    """Number of images whose patches may be retrieved."""


class FeaturesConfig(PictureConfig):
    """What pictures of stored features share."""

    label: str | None = "class"
    """Label that names the images, or colours them; null takes none."""
    layer: int = -1
    """Which stored layer; -1 is the last."""
    seed: Seed = 0
    """Seed of the random choice of images, and of t-SNE."""


class NeighborsConfig(FeaturesConfig):
    """Draw the nearest neighbours of some images by their features."""

    queries: Sheet = 6
    """How many queries to draw."""
    keys: tuple[str, ...] = ()
    """Key of a query image, instead of random ones; repeatable."""
    neighbors: Annotated[int, Field(ge=1, le=32)] = 8
    """Number of neighbours shown for each query."""


class EmbeddingConfig(FeaturesConfig):
    """Draw features as a map coloured by label: an interactive page or a still picture."""

    method: Literal["tsne", "pca"] = "tsne"
    """tsne keeps neighbours together; pca shows the two directions of largest variance."""
    images: Annotated[int, Field(ge=3, le=10**6)] = 2000
    """Largest number of images, chosen at random."""


class PredictionsConfig(PictureConfig):
    """Draw decoded samples of predictions: what they share is predicted, what varies is not."""

    encoder: EncoderName
    """Run folder, checkpoint of a run, or random:RUN."""
    decoder: str
    """Decoder of `ijepa train-decoder`, trained on this run."""
    split: str = "evaluation"
    """Which split. `evaluation` stands for val, or test, or the only split besides train."""
    images: Annotated[int, Field(ge=2, le=64)] = 6
    """How many images to draw."""
    samples: Annotated[int, Field(ge=1, le=32)] = 4
    """Number of samples of each prediction."""
    target_samples: Annotated[int, Field(ge=0, le=32)] = 2
    """Number of samples of each true embedding, the best that the decoder can draw."""
    seed: Seed = 0
    """Seed of images, blocks and samples."""
