"""What a prediction holds, in pixels: decoded samples of it, beside those of the truth."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from ijepa.config import RUNTIME, Config, Runtime, StrPath
from ijepa.config.values import Seed
from ijepa.data.shards import ShardSet, open_shards
from ijepa.encoders.spec import EncoderSpec
from ijepa.errors import IjepaError
from ijepa.files import write_bytes
from ijepa.progress import Progress, silent
from ijepa.records import read_record
from ijepa.stage import StagePlan, exclusive_work

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ijepa.decoder.honesty import Held
    from ijepa.decoder.model import Decoder
    from ijepa.encoders.own import TrainedJepa
    from ijepa.figures.prediction_sheet import Pixels

VERSION = 1


class PredictionsConfig(Config):
    """What to draw.

    Attributes:
        encoder: the run whose predictor is looked into; `decoder` was trained on just this run.
        split: that the images are drawn from.
        num_images: rows of the sheet.
        num_samples: of each prediction.
        num_target_samples: of each true embedding: what the decoder could draw at best.
        seed: of images, blocks and samples.
    """

    encoder: str
    decoder: str
    split: str = "val"
    num_images: Annotated[int, Field(ge=2, le=64)] = 6
    num_samples: Annotated[int, Field(ge=1, le=32)] = 4
    num_target_samples: Annotated[int, Field(ge=0, le=32)] = 2
    seed: Seed = 0


class PredictionFigures(Config):
    """The picture, and how much samples vary.

    Attributes:
        keys: of the images, from the top.
        spread_predicted: standard deviation over the samples of one prediction, mean over pixels
            of the block, in levels of 255; likewise `spread_target` of one true embedding. None
            for a single sample.
    """

    out: Path
    cached: bool
    keys: tuple[str, ...]
    spread_predicted: float | None
    spread_target: float | None


def visualize_predictions(
    shards: StrPath,
    out: StrPath,
    config: PredictionsConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> PredictionFigures:
    """Draw context, true block, and samples of the prediction and of the true embedding, as a PNG.

    Args:
        shards: where the images come from.
        out: the picture to make.
        config: of which run, by which decoder.
        runtime: device; `force` makes it again.
        progress: told of the samples drawn.

    Raises:
        IjepaError: diffusers is missing, no such run or decoder, or a decoder of another run.
    """
    shards, out = Path(shards), Path(out)
    data = open_shards(shards)
    inputs = {
        "data": data.fingerprint,
        "encoder": EncoderSpec.parse(config.encoder).fingerprint(),
        "decoder": _decoder_fingerprint(Path(config.decoder)),
    }
    plan = StagePlan("visualize predictions", VERSION, config, inputs, out)
    with exclusive_work(plan, runtime) as work:
        if not work.cached:
            picture, facts = _draw(data, config, runtime, progress)
            write_bytes(work.folder / out.name, picture)
            work.publish_file({"seed": config.seed, "command": runtime.command, "figures": facts})
    record = read_record(out)
    assert record is not None
    return PredictionFigures(out=out, cached=work.cached, **record["figures"])


def _decoder_fingerprint(folder: Path) -> str:
    record = read_record(folder)
    if record is None or record.get("stage") != "train-decoder":
        raise IjepaError(f"{folder} is no finished decoder; make one with `ijepa train-decoder`.")
    return f"{record['fingerprint']} {record['finished']}"


class _Samples(NamedTuple):
    """Blocks of each image, one tensor (n, 3, px, px) a sample."""

    predicted: "list[Tensor]"
    target: "list[Tensor]"


def _draw(
    data: ShardSet, config: PredictionsConfig, runtime: Runtime, progress: Progress
) -> tuple[bytes, dict[str, Any]]:
    """The picture as a PNG, and what there is to say about it."""
    from ijepa.data.loader import ViewPlan, read_views
    from ijepa.decoder.honesty import held_numbers, hold
    from ijepa.decoder.model import load_decoder
    from ijepa.distributed import pick_device
    from ijepa.encoders.base import weights_sha256
    from ijepa.encoders.own import load_jepa

    device = pick_device(runtime.device)
    trained = load_jepa(config.encoder)
    run, sha256 = trained.config, weights_sha256(trained.jepa.state_dict())
    made = load_decoder(Path(config.decoder), trained.jepa, trained.name, sha256).to(device)
    trained.jepa.to(device)
    images = data.split(config.split)
    numbers = held_numbers(len(images), config.num_images, config.seed)
    views = read_views(images, numbers, ViewPlan(run.data.image_px, run.data.eval_crop_fraction))
    held = hold(run, views.to(device), config.seed)
    samples = _sample(trained, made, held, config, progress)
    captions = _captions(data, config, trained, made)
    picture = io.BytesIO()
    _sheet(trained, held, samples, captions).save(picture, "PNG", optimize=True)
    facts = {
        "keys": images.keys(numbers),
        "spread_predicted": _spread(samples.predicted),
        "spread_target": _spread(samples.target),
    }
    return picture.getvalue(), facts


def _sample(
    source: "TrainedJepa",
    made: "Decoder",
    held: "Held",
    config: PredictionsConfig,
    progress: Progress,
) -> _Samples:
    """Sample k of a prediction and of a true embedding begin with the same noise."""
    from ijepa.decoder.honesty import noise_of
    from ijepa.decoder.model import embed, sample_blocks

    counts = (config.num_samples, config.num_target_samples)
    done, found = 0, []
    for count, of in zip(counts, ("predictions", "targets"), strict=True):
        condition = embed(source.jepa, source.config.data, held.images, held.masks, of)
        drawn = []
        for number in range(count):
            noise = noise_of(number, len(held.images), made.config.image_px, config.seed)
            steps = made.config.sampling_steps
            drawn.append(sample_blocks(made, condition, noise.to(condition.device), steps))
            done += 1
            progress("draw samples", done, sum(counts))
        found.append(drawn)
    return _Samples(*found)


def _sheet(source: "TrainedJepa", held: "Held", samples: _Samples, captions: list[str]) -> "Image":
    """Every sample stands in its place among what the context shows."""
    import torch

    from ijepa.decoder.blocks import paste_blocks
    from ijepa.figures.prediction_sheet import Column, hide, prediction_sheet

    patch_px = source.config.encoder.patch_px
    whole, context = _pixels(held.images), held.masks.context.cpu().numpy()
    shown = hide(whole, context, patch_px)
    seen = torch.from_numpy(shown).permute(0, 3, 1, 2).to(held.images.device)
    columns = [Column("image", whole), Column("context", shown)]
    for heading, drawn in (
        ("prediction, decoded", samples.predicted),
        ("true embedding, decoded", samples.target),
    ):
        columns += [
            Column(heading, _pixels(paste_blocks(seen, held.boxes, blocks))) for blocks in drawn
        ]
    boxes = [(top, left, height, width) for top, left, height, width in held.boxes.tolist()]
    return prediction_sheet(columns, boxes, captions)


def _pixels(images: "Tensor") -> "Pixels":
    """(n, height, width, 3) uint8 in the memory of the machine."""
    pixels: Pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def _spread(samples: "list[Tensor]") -> float | None:
    import torch

    if len(samples) < 2:
        return None
    return torch.stack(samples).std(dim=0).mean().item() * 127.5


def _captions(
    data: ShardSet, config: PredictionsConfig, trained: "TrainedJepa", made: "Decoder"
) -> list[str]:
    decoder, layers = made.config, trained.config.targets.layers
    layer = f"block {layers[-1]}" if layers else "last layer"
    return [
        f"encoder {trained.name}, {layer}; data {data.source}, {config.split}; "
        f"{trained.config.masks.kind} blocks, seed {config.seed}",
        f"decoder {config.decoder}: of {decoder.condition}, {decoder.image_px} px, "
        f"{decoder.steps:,} steps, seed {decoder.seed}; {decoder.sampling_steps} Euler steps a "
        f"sample",
    ]
