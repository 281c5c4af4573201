"""Draw what the method does: its masks, what encoders see, what is predicted."""

import base64
import importlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ijepa.config import (
    RUNTIME,
    AttentionConfig,
    Config,
    EmbeddingConfig,
    EncodersConfig,
    FeaturesConfig,
    MasksConfig,
    NeighborsConfig,
    PcaConfig,
    PictureConfig,
    PredictionsConfig,
    RetrievalConfig,
    Runtime,
    StrPath,
)
from ijepa.data.shards import ShardSet, SplitReader, open_shards
from ijepa.encoders.spec import EncoderSpec
from ijepa.errors import IjepaError
from ijepa.features.store import Features, open_features
from ijepa.files import write_bytes
from ijepa.progress import Progress, automatic
from ijepa.records import read_record
from ijepa.stage import StagePlan, exclusive_work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERSION = 7
STILL, PAGE = (".png", ".svg"), ".html"
# Imported when drawn: torch, timm, scikit-learn and matplotlib each take a second.
KINDS: dict[type[PictureConfig], str] = {
    MasksConfig: "images:masks",
    AttentionConfig: "patches:attention",
    PcaConfig: "patches:pca",
    NeighborsConfig: "features:neighbors",
    RetrievalConfig: "predictions:retrieval",
    EmbeddingConfig: "features:embedding",
    PredictionsConfig: "predictions:predictions",
}


# The drawing, or the text of a page, and the last fields of `Picture`.
Drawing = tuple["Figure | str", dict[str, object]]


class Given(NamedTuple):
    """What a picture is drawn from: `data` is None where there are no images to show."""

    data: ShardSet | None
    features: Sequence[Features]
    out: Path
    runtime: Runtime
    progress: Progress
    channels: tuple[int, ...] | None = None  # shown of images that are not 8-bit RGB

    @property
    def note(self) -> str:
        """A caption: which channels are shown, and how; empty for 8-bit RGB."""
        if self.channels is None:
            return ""
        return (
            f"Channels {', '.join(map(str, self.channels))} as red, green, blue, each from two "
            f"standard deviations below its mean to two above."
        )

    def split(self, name: str) -> SplitReader:
        """Open a split; `data` must be set."""
        assert self.data is not None
        return self.data.split(name)

    def source(self, config: EncodersConfig) -> str:
        """A caption: where the images come from."""
        assert self.data is not None
        drawn = "chosen by key" if config.keys else f"drawn with seed {config.seed}"
        fingerprint = self.data.fingerprint[:12]
        told = f"Data: {self.data.source}, split {config.split} ({fingerprint}), {drawn}."
        return f"{told} {self.note}".rstrip()


class Picture(Config):
    """A finished picture."""

    out: Path
    cached: bool
    """It was there already."""
    encoders: tuple[str, ...]
    """Names of the encoders that it shows."""
    images: int
    """How many images are on it."""
    keys: tuple[str, ...] = ()
    """Keys of the images or queries, one a row; empty if it has no such rows."""
    figures: dict[str, float | tuple[int, ...] | None]
    """The numbers that it shows."""

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        """The picture itself, where it is the last line of a notebook's cell."""
        shown: dict[str, object] = {"text/plain": repr(self)}
        if self.out.suffix == ".png":
            shown["image/png"] = base64.b64encode(self.out.read_bytes()).decode()
        elif self.out.suffix == ".svg":
            shown["image/svg+xml"] = self.out.read_text()
        return shown


def visualize(
    out: StrPath,
    config: PictureConfig,
    data: StrPath | None = None,
    features: Sequence[StrPath] = (),
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
) -> Picture:
    """Draw a picture as PNG or SVG; a map of features also as a page to point at.

    Args:
        out: ends in .png or .svg, of `EmbeddingConfig` also in .html.
        config: its class says what is drawn.
        data: shard set of the images. Masks are drawn on plain patches without it; neighbours and
            maps of features have no thumbnails then.
        features: files of `ijepa extract`: one for a map, one section each for neighbours.
        runtime: device; `force` rebuilds it.
        progress: told of what is done.

    Raises:
        IjepaError: a setting, file, split, image or label that does not exist or fit.
    """
    out, (home, name) = Path(out), KINDS[type(config)].split(":")
    formats = (PAGE, *STILL) if isinstance(config, EmbeddingConfig) else STILL
    if out.suffix not in formats:
        raise IjepaError(f"{out} must end in {' or '.join(formats)}.")
    if data is None and isinstance(config, EncodersConfig | PredictionsConfig):
        raise IjepaError(f"A picture of {name} needs images; name a shard set as `data`.")
    if not features and isinstance(config, FeaturesConfig):
        raise IjepaError("Name a feature file of `ijepa extract`.")
    if len(features) > 1 and isinstance(config, EmbeddingConfig):
        raise IjepaError(f"A map shows one feature file, not {len(features)}; name one.")
    with ExitStack() as stack:
        stores = [stack.enter_context(open_features(f, check_numbers=False)) for f in features]
        shards = None if data is None else open_shards(Path(data))
        channels = _shown_channels(config, shards)
        given = Given(shards, stores, out, runtime, progress, channels)
        config = _fitted(config, given)
        plan = StagePlan(f"visualize {name}", VERSION, config, _inputs(config, given), out)
        with exclusive_work(plan, runtime) as work:
            if not work.cached:
                from ijepa.figures.draw import encoded, style

                whole = [stack.enter_context(open_features(f)) for f in features]  # checks numbers
                given = given._replace(features=whole)
                draw = getattr(importlib.import_module(f"ijepa.visualize.{home}"), f"draw_{name}")
                with style(dark=config.dark):
                    drawn, facts = draw(config, given)
                    is_text = isinstance(drawn, str)
                    content = drawn.encode() if is_text else encoded(drawn, out.suffix)
                write_bytes(work.folder / out.name, content)
                work.publish({"picture": facts, "command": runtime.command})
    record = read_record(out)
    assert record is not None
    return Picture(out=out, cached=work.cached, **record["picture"])


def _shown_channels(config: PictureConfig, data: ShardSet | None) -> tuple[int, ...] | None:
    """The three channels to show, counted from 1; None for 8-bit RGB, or without images."""
    asked, pixels = config.show_channels, data.pixels if data else None
    if asked and (pixels is None or max(asked) > pixels.channels):
        there = f"images of {pixels.channels} channels" if pixels else "8-bit RGB images, or none"
        raise IjepaError(
            f"--show-channels names {', '.join(map(str, asked))}, but there are {there}."
        )
    if pixels is None:
        return None
    return asked or ((1, 2, 3) if pixels.channels > 2 else (1, 1, 1))


def _fitted(config: PictureConfig, given: Given) -> PictureConfig:
    """Name the split that `evaluation` stands for, and draw what there is of what is asked for.

    That is as many images as there are, and another label where the default is not among them.
    """
    fitted: dict[str, object] = {}
    if isinstance(config, EncodersConfig | PredictionsConfig) and given.data:
        named: dict[str, object] = {
            name: given.data.named_split(getattr(config, name))
            for name in ("split", "store_split")
            if name in type(config).model_fields
        }
        config = config.model_copy(update=named)
        fitted["images"] = min(config.images, len(given.split(config.split)))
    if isinstance(config, RetrievalConfig) and given.data:
        measured = config.measured
        there, stored = (len(given.split(name)) for name in (config.split, config.store_split))
        if config.split == config.store_split:  # what is measured lends no patches
            measured = min(measured, max(1, there // 2))
            stored -= max(measured, len(config.keys) or min(config.images, there))
        fitted |= {"measured": measured, "store_images": max(1, min(config.store_images, stored))}
    if isinstance(config, FeaturesConfig):
        labels = [store.labels for store in given.features]
        is_typed = "label" in config.model_fields_set
        if not is_typed and not all(config.label in known for known in labels):
            both = (name for name in labels[0] if all(name in known for known in labels))
            fitted["label"] = next(both, None)
    if isinstance(config, NeighborsConfig):
        fewest = min(store.shape[0] // (1 + store.header.num_views) for store in given.features)
        fitted["queries"] = max(1, min(config.queries, fewest - 1))
    return config.model_copy(update=fitted)


def _inputs(config: PictureConfig, given: Given) -> dict[str, str]:
    """Fingerprints of all that a picture shows."""
    fingerprints = {f"features {n}": one.header.fingerprint for n, one in enumerate(given.features)}
    if given.data:
        fingerprints["data"] = given.data.fingerprint
        for store in given.features:
            if store.header.data_fingerprint != given.data.fingerprint:
                raise IjepaError(
                    f"{store.path} was not extracted from {given.data.folder} but from "
                    f"{store.header.source or 'other data'}; name its shard set with --data."
                )
    if isinstance(config, EncodersConfig):
        for number, name in enumerate(config.encoder):
            spec = EncoderSpec.parse(name, which=config.which, seed=config.seed)
            fingerprints[f"encoder {number}"] = spec.fingerprint(given.progress)
    if isinstance(config, PredictionsConfig):
        fingerprints["encoder"] = EncoderSpec.parse(config.encoder).fingerprint(given.progress)
        record = read_record(Path(config.decoder))
        if record is None or record.get("stage") != "train-decoder":
            raise IjepaError(
                f"{config.decoder} is no finished decoder; make one with `ijepa train-decoder`."
            )
        fingerprints["decoder"] = f"{record['fingerprint']} {record['finished']}"
    return fingerprints


def places_of(wanted: Sequence[str], keys: Sequence[str], where: str) -> list[int]:
    """Places of images in a list of keys; an `IjepaError` names a key that is not there."""
    there = {key: place for place, key in enumerate(keys)}
    if missing := [key for key in wanted if key not in there]:
        raise IjepaError(f"{where} has no image {missing[0]!r}; its first is {keys[0]!r}.")
    return [there[key] for key in wanted]
